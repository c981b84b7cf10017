"""Cross-dataset matrix of the probe: the regressor of each data set, tested on all others (``--cross`` of ``shamisa.probe``).

Scores are mapped to a common scale first, 0..1 by the ends of each set's own, higher is better. The strength of a set's
regressor is the one with the best mean SRCC on the val parts of its splits; with it the regressor is fitted on the whole
set and tested on the whole of every other. On the diagonal stands the median over the set's own splits, trained on train
and tested on test. Sets may share photographs (LIVE and TID2013 both took them from the Kodak set): a high number between
such sets is worth less.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..datasets import iqa_sets, splits
from ..datasets.labels import LabelError, Labels, read_csv
from ..files import folder_of, is_file, write_json
from ..measuring.versions import versions
from ..networks.encoders import describe
from ..scoring import inputs, metrics, ridge
from ..scoring.protocol import finite, median, probe_split, without

SHOWN = (("SRCC", "srcc"), ("PLCC", "plcc"))


def open_sources(given: argparse.Namespace) -> dict[str, inputs.Source]:
    """name -> source of every ``SET=DIR``, ``CSV`` or ``CSV=DIR`` of --cross; ValueError or LabelError."""
    sources: dict[str, inputs.Source] = {}
    for text in given.cross:
        name, sign, root = text.partition("=")
        if name in iqa_sets.SETS:
            if not root:
                raise ValueError(f"--cross {name} needs its folder, {name}=DIR: {iqa_sets.SETS[name].layout}")
            source = inputs.open_set(name, root, given.full_reference)
        else:
            file, sign, root = (text, "", "") if is_file(text) else text.rpartition("=")
            if not sign and not is_file(text):
                sets = ", ".join(iqa_sets.SETS)
                raise ValueError(
                    f"--cross must be SET=DIR with SET one of {sets}, or a label file CSV[=DIR], got {text!r}"
                )
            labels = read_csv(file)
            source = inputs.open_source(labels, root or folder_of(file) or ".", full_reference=given.full_reference)
            name = labels.name
        if name in sources:
            raise ValueError(f"--cross must name every data set once, got {name} twice")
        sources[name] = source
    if len(sources) < 2:
        raise ValueError(f"--cross must name at least two data sets, got {len(sources)}")
    for name, source in sources.items():
        if not source.labels.low < source.labels.high:
            raise LabelError(f"scores of {name} must not all be equal, got {source.labels.low:g}")
    return sources


def run_cross(given: argparse.Namespace, encoder: torch.nn.Module | None = None) -> tuple[dict, list[Path]]:
    """The probe with --cross: writes cross.json into --out, and a page; -> its content, for ``summarise``, and the files."""
    for option in ("labels", "dataset", "root", "split_files"):
        if getattr(given, option) is not None:
            raise ValueError(f"--cross has labels of its own: leave out --{option.replace('_', '-')}")
    inputs.only_for_labels(given, "--cross takes them from the data sets or the CSV columns")
    if given.splits is not None and given.splits < 1:
        raise ValueError(f"--splits must be at least 1, got {given.splits}")
    sources = open_sources(given)
    chosen = {name: splits.make_splits(s.labels, given.splits or 10, given.seed) for name, s in sources.items()}
    extractors = inputs.open_extractors(given, encoder)
    out = inputs.open_folder(given, "probe-cross")
    (out / "cross.json").unlink(missing_ok=True)

    records, faults = [], {"unreadable": [], "truncated": [], "truncated_read": []}
    for i, (checkpoint, extractor) in enumerate(extractors):
        means, labels, rows = {}, {}, {}
        for name, source in sources.items():
            found = source.extract(extractor, f"{checkpoint} {name}", not given.quiet)
            read = source.labels.take(found.kept)
            if not i:
                fresh = inputs.find_faults(found, source.labels, extractor)
                for key in ("unreadable", "truncated"):
                    faults[key] += [{"set": name, **entry} for entry in fresh[key]]
                faults["truncated_read"] = fresh["truncated_read"]  # the extractor's, of all sets so far
            kept = [splits.check_split(read, without(s, found.kept)) for s in chosen[name]]
            rows[name] = _fit(found.values, read, kept, extractor.device)
            # all that the other sets' regressors need: the crops of one set at a time are in memory
            means[name], labels[name] = found.values.mean(1), read
            del found
        matrix = {name: _row(name, *rows[name], means, labels) for name in sources}
        records.append(
            {
                "checkpoint": checkpoint,
                **describe(extractor.encoder),
                "encoder_hash": extractor.hash,
                "matrix": matrix,  # trained on -> tested on -> numbers
            }
        )
    results = finite(
        {
            "command": given.command,
            "full_reference": given.full_reference,
            "protocol": inputs.describe_protocol(given)
            | {
                "scores": "0..1 by the ends of each set's scale, higher is better",
                "strength": f"{ridge.STRENGTHS}, by the mean SRCC on the val parts of the set's splits",
                "off the diagonal": "trained on the whole set, tested on the whole other set",
                "diagonal": "median over the splits of the set, tested on their test parts",
            },
            "sets": {
                name: {
                    "labels": s.labels.name,
                    "images": len(s.labels),
                    "scale": s.labels.scale,
                    "splits": [{"origin": p.origin, "hash": p.hash(s.labels)} for p in chosen[name]],
                }
                for name, s in sources.items()
            },
            **faults,
            "encoders": records,
            "versions": versions(),
        }
    )
    write_json(out / "cross.json", results)
    files = [out / "cross.json"]
    if given.report:
        from .report import write_cross

        files.append(write_cross(given.report, results))
    return results, files


def summarise(results: dict) -> list[str]:
    """What the command prints, line by line."""
    lines = []
    for name, s in results["sets"].items():
        hashed = s["splits"][0]["hash"][:16]
        lines.append(f"{name}: {s['images']} images, {len(s['splits'])} splits, the first with hash {hashed}")
    lines += [matrix_table(record["checkpoint"], record["matrix"]) for record in results["encoders"]]
    faults = {key: results[key] for key in ("unreadable", "truncated", "truncated_read")}
    lines += inputs.describe_faults(faults, sum(s["images"] for s in results["sets"].values()))
    return lines


def _fit(X: Tensor, labels: Labels, kept: list[splits.Split], device: torch.device) -> tuple[ridge.Ridge, dict]:
    """A set's own features [n, 5, 2F] -> the regressor of the whole set, and the numbers within it."""
    y = labels.quality()
    within = replace(labels, score=y, low=0.0, high=1.0, lower_better=False)
    numbers = [probe_split(X, within, s, device)[0] for s in kept]
    alpha = ridge.ALPHAS[int(np.nanargmax(np.mean([x["val_srccs"] for x in numbers], 0)))]
    n = int(np.median([x["n"]["test"] for x in numbers]))
    return ridge.fit_path(X, y, [alpha], device), {"n": n, "alpha": alpha, **median(numbers)}


def _row(name: str, model: ridge.Ridge, within: dict, means: dict[str, Tensor], labels: dict) -> dict[str, dict]:
    """Numbers of the regressor of one set on all sets, {tested on: numbers}; means are features [n, 2F] over the crops."""
    found = {}
    for other, X in means.items():
        if other == name:
            found[other] = within
            continue
        prediction = model.predict(X)[:, 0].cpu().numpy()
        numbers = metrics.summary(prediction, labels[other].quality())
        found[other] = {"n": len(prediction), "alpha": within["alpha"], **numbers}
    return found


def matrix_table(title: str, matrix: dict[str, dict[str, dict]]) -> str:
    """The printed matrices: a row for what was trained on, a column for what was tested on."""
    names = list(matrix)
    width = max(len(n) for n in (*names, "SRCC"))
    lines = [f"{title}: trained on the row, tested on the column; * within a set, the median of its splits"]
    for label, key in SHOWN:
        lines.append(f"{label:{width}}  " + "  ".join(f"{n:>{max(8, len(n))}}" for n in names))
        for row in names:
            cells = []
            for column in names:
                value = matrix[row][column][key]
                text = ("-" if value is None else f"{value:.4f}") + ("*" if row == column else " ")
                cells.append(f"{text:>{max(8, len(column))}}")
            lines.append(f"{row:{width}}  " + "  ".join(cells))
    return "\n".join(lines)
