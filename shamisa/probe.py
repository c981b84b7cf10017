"""Probe a frozen encoder: ridge regression from its features to human scores, judged by SRCC and PLCC.

Protocol: five crops at two scales; each crop is a training row with its image's score; the ridge penalty is the one of 100
with the highest SRCC on validation images; predictions are averaged over the crops. Prints a table, and writes
results.json, predictions.csv, scatter.png and the regressor (regressor.safetensors and its JSON) to the folder --out;
--report also writes an HTML page. With --cross, the regressor of each data set is tested on all others.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .cli import guard
from .data.decode import TRUNCATED
from .datasets import iqa_sets, splits
from .datasets.labels import QUALITY
from .datasets.splits import Split
from .files import say, write_json, write_text
from .measuring.versions import versions
from .networks.encoders import describe, features_of, name_of
from .scoring import ridge
from .scoring.crops import FULL, VIEW
from .scoring.features import Extractor
from .scoring.inputs import (
    Source,
    describe_faults,
    describe_protocol,
    find_faults,
    open_extractors,
    open_folder,
    read_source,
    read_splits,
    source_of,
)
from .scoring.protocol import finite, group_table, median, median_groups, probe_split, table, without


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m shamisa.probe",
        usage="%(prog)s --checkpoint RUN (--labels CSV | --dataset NAME | --cross SET=DIR SET=DIR ...) [options]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="a run folder, a checkpoint folder or file, untrained:NAME or imagenet:NAME (NAME as torchvision/resnet50), "
        "or statistics: a baseline of 27 hand-made statistics of natural scenes, colour and sharpness",
    )
    parser.add_argument(
        "--features",
        metavar="NAMES",
        help="what is taken of the encoders: last, stages, or some of last,stage1,stage2,..., see shamisa train --help [as "
        "the run was trained, else last]",
    )
    parser.add_argument("--untrained", action="store_true", help="also probe the same network with random weights")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN", help="also probe these, in the same tables")
    parser.add_argument(
        "--full-reference",
        action="store_true",
        help="use |h(image) - h(reference)| as features; the labels must name references, and the root must hold them",
    )
    labels = parser.add_argument_group("labels: one of --labels, --dataset and --cross")
    labels.add_argument(
        "--labels", metavar="CSV", help="CSV file with the columns file, score[, reference, distortion, level, split]"
    )
    labels.add_argument(
        "--dataset", type=str.lower, choices=tuple(iqa_sets.SETS), help="a published data set, in its own layout"
    )
    labels.add_argument(
        "--cross",
        nargs="+",
        metavar="SET=DIR",
        help="train on each data set and test on all others: two or more of SET=DIR (SET as for --dataset), CSV, CSV=DIR",
    )
    labels.add_argument("--root", metavar="DIR", help="folder that the file names are relative to [that of the CSV]")
    labels.add_argument("--score-column", metavar="NAME", help="column with the scores [score, mos or dmos]")
    labels.add_argument("--file-column", metavar="NAME", help="column with the file names [file, filename, image, ...]")
    labels.add_argument(
        "--lower-better",
        action="store_true",
        default=None,
        help="lower scores mean better quality [only if the column is named dmos]",
    )
    labels.add_argument(
        "--scale",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="ends of the rating scale [lowest and highest score]",
    )
    split = parser.add_argument_group("splits")
    split.add_argument(
        "--splits", type=int, metavar="N", help="number of random splits, when the labels have none [10]"
    )
    split.add_argument(
        "--split-files",
        metavar="DIR",
        help="folder with published splits: train.npy, val.npy and test.npy, each of row positions",
    )
    split.add_argument("--seed", type=int, default=0, help="seed of the splits and of random weights [0]")
    work = parser.add_argument_group("work")
    work.add_argument("--crop", type=int, default=224, help="side of the crops, in pixels [224]")
    work.add_argument(
        "--view",
        default=VIEW,
        metavar="PIXELS|full",
        help="viewing size: larger photographs are shrunk to it first, pixels of the longer side; full: no limit, as "
        "published; the regressor records it [%(default)s]",
    )
    work.add_argument("--batch", type=int, help="photographs per encoder call, ten crops each [1 on a CPU, 8 on a GPU]")
    work.add_argument("--workers", type=int, default=2, help="decoding threads [2]")
    work.add_argument(
        "--truncated",
        choices=TRUNCATED,
        default="skip",
        help="a JPEG without its end marker or its last rows: leave it out, or read it as far as it goes [%(default)s]",
    )
    work.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N [auto]")
    work.add_argument(
        "--cache", metavar="DIR", help="cache features here, keyed by the hashes of encoder and file [none]"
    )
    work.add_argument("--out", metavar="DIR", help="folder for the results [runs/probe-LABELS]")
    work.add_argument(
        "--report", metavar="DIR", help="also write an HTML page with tables, plots and thumbnails to this folder"
    )
    work.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


@dataclass(frozen=True)
class First:
    """The first encoder on the first split: what the files and the page show."""

    source: Source  # of the images that could be read
    split: Split
    numbers: dict
    prediction: np.ndarray  # [test]
    model: ridge.Ridge
    extractor: Extractor


def write_results(out: Path, results: dict, first: First, about: dict, title: str) -> None:
    """The files of the first split: predictions, scatter plot and regressor, and results.json last."""
    from .reports.plots import scatter

    labels, test = first.source.labels, first.split.test
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("file", "score", "prediction"))
    writer.writerows(zip([labels.files[i] for i in test], labels.score[test], first.prediction, strict=True))
    write_text(out / "predictions.csv", text.getvalue())
    scatter(first.prediction, labels.score[test], out / "scatter.png", title)
    regressor = ridge.Regressor(first.model.coef[0].cpu(), first.model.intercept[0].cpu(), about)
    regressor.save(out / "regressor.safetensors")
    write_json(out / "results.json", results)


def probe_encoder(encoder: torch.nn.Module, arguments: Sequence[str]) -> dict:
    """Probe any module that maps normalised images [N, 3, H, W] to h [N, F], from Python; see ``encoders`` for what it may
    state about itself. Prints and writes what the command does; returns what results.json holds.

    arguments: of the command, without --checkpoint: ["--labels", "scores.csv", "--out", "DIR"].

    Raises ValueError or RuntimeError for bad input, before any features are computed.
    """
    arguments = ["--checkpoint", name_of(encoder), *map(str, arguments)]
    given = make_parser().parse_args(arguments)
    given.command = shlex.join(["shamisa.probe.probe_encoder", *arguments])
    return run(given, encoder)


def run(given: argparse.Namespace, encoder: torch.nn.Module | None = None) -> dict:
    """Everything between the command line and the exit status; returns what results.json holds. ``encoder``: a module in
    place of the one that --checkpoint names.

    Raises ValueError or RuntimeError for bad input, before any features are computed.
    """
    if not 0 <= given.seed < 1 << 63:
        raise ValueError(f"--seed must lie in 0..2^63-1, got {given.seed}")
    if given.cross is not None:
        from .reports.cross import run_cross, summarise

        results, files = run_cross(given, encoder)
        for line in [*summarise(results), *(f"wrote {file}" for file in files)]:
            say(line)
        return results
    source = read_source(given)
    labels = source.labels
    chosen = read_splits(given, labels)
    extractors = open_extractors(given, encoder)
    out = open_folder(given, f"probe-{labels.name}")

    rows, records, first = [], [], None
    for name, extractor in extractors:
        start = time.perf_counter()
        features = source.extract(extractor, name, not given.quiet)
        seconds = time.perf_counter() - start
        read = labels.take(features.kept)
        kept = [splits.check_split(read, without(s, features.kept)) for s in chosen]
        start, numbers = time.perf_counter(), []
        for s in kept:
            n, model, prediction = probe_split(features.values, read, s, extractor.device)
            numbers.append(n)
            if first is None:
                paths = [source.paths[i] for i in features.kept]
                first = First(Source(read, paths), s, n, prediction, model, extractor)
        rows.append((name, numbers))
        records.append(
            {
                "checkpoint": name,
                **describe(extractor.encoder),
                "weights": source_of(extractor.encoder),
                "encoder_hash": extractor.hash,
                "feature_dim": features.values.shape[2],
                "median": median(numbers),
                "groups": median_groups(numbers),
                "splits": [{k: v for k, v in n.items() if k != "val_srccs"} for n in numbers],
                "seconds": {"features": round(seconds, 2), "ridge": round(time.perf_counter() - start, 2)},
            }
        )
    hashes = [s.hash(labels) for s in chosen]
    about = {
        **describe(first.extractor.encoder),
        # features of full reference are others: the mark keeps `shamisa score` from taking this regressor
        "encoder_hash": ("full-reference:" if given.full_reference else "") + first.extractor.hash,
        "checkpoint": given.checkpoint,
        "crop": given.crop,
        "view": first.extractor.view or FULL,
        "full_reference": given.full_reference,
        "labels": labels.name,
        "split": chosen[0].origin,
        "split_hash": hashes[0],
        **labels.scale,
        "quality": QUALITY,
        "test": finite({k: v for k, v in first.numbers.items() if k not in ("groups", "val_srccs")}),
    }
    faults = find_faults(features, labels, extractor)
    results = finite(
        {
            "command": given.command,
            "labels": labels.name,
            "images": len(labels),
            **faults,
            "scale": labels.scale,
            "full_reference": given.full_reference,
            "protocol": describe_protocol(given),
            "splits": [{"origin": s.origin, "hash": h} for s, h in zip(chosen, hashes, strict=True)],
            "encoders": records,
            "versions": versions(),
        }
    )
    n = first.numbers
    which = f" of the first of {len(chosen)} splits" if len(chosen) > 1 else ""
    title = f"{name_of(first.extractor.encoder)} on {labels.name}, {len(first.split.test)} test images{which}: SRCC {n['srcc']:.4f}, PLCC {n['plcc']:.4f}"
    write_results(out, results, first, about, title)
    several = f"{len(chosen)} splits, the first: " if len(chosen) > 1 else ""
    kind = ", full reference" if given.full_reference else ""
    say(f"{labels.name}: {len(read)} images{kind}, {several}{chosen[0].origin}, split hash {hashes[0][:16]}")
    for line in describe_faults(faults, len(labels)):
        say(line)
    for name, extractor in extractors:
        if (weights := source_of(extractor.encoder)) not in (None, "random", name):
            say(f"{name}: weights: {weights}, features {features_of(extractor.encoder)}")
    say(table(rows))
    if groups := group_table(rows):
        say(groups)
    say(f"wrote {out}/results.json, predictions.csv, scatter.png, regressor.safetensors")
    if given.report:
        from .reports.report import write_report

        say(f"wrote {write_report(given.report, results, first)}")
    return results


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 for bad input, 130 interrupted, told on stderr in one line."""
    argv = sys.argv[1:] if argv is None else argv
    given = make_parser().parse_args(argv)
    given.command = shlex.join(["python", "-m", "shamisa.probe", *argv])
    kept = f"features so far are in {given.cache}" if given.cache else "features are kept only with --cache DIR"

    def work() -> int:
        run(given)
        return 0

    return guard("probe", work, f"{kept}; start it again")


if __name__ == "__main__":
    sys.exit(main())
