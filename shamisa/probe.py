"""Probe a frozen encoder: ridge regression from its features to human scores, judged by SRCC and PLCC.

Protocol: five crops at two scales, each crop a row with its image's score; the strength of the ridge chosen among 100 by
SRCC on validation images; predictions averaged over the crops. Prints a table; writes results.json, predictions.csv,
scatter.png, and the regressor (regressor.safetensors with its JSON) into the folder --out.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import iqa_sets, metrics, ridge, runs
from .features import CROPS, SCALES, Extractor, extract
from .iqa_sets import LabelError, Labels, Split
from .models import Encoder

UNTRAINED = "untrained:"  # --checkpoint untrained:torchvision/resnet50
IMAGENET = "imagenet:"  # --checkpoint imagenet:torchvision/resnet50


def open_encoder(checkpoint: str, seed: int = 0) -> Encoder:
    """A run or checkpoint folder or file, ``untrained:NAME`` (random weights by ``seed``), or ``imagenet:NAME``.

    Raises ValueError or RuntimeError, with the reason.
    """
    for prefix, init in ((UNTRAINED, "none"), (IMAGENET, "imagenet")):
        if checkpoint.startswith(prefix):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return Encoder(checkpoint.removeprefix(prefix), init).eval()
    return runs.load_encoder(checkpoint)


def open_device(name: str) -> torch.device:
    """ "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"; ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be auto, cpu or an available GPU (cuda, cuda:N), got {name!r}: {error}"
        ) from None
    return device


def probe_split(
    features: Tensor,  # [n, K, F]
    labels: Labels,
    split: Split,
    device: torch.device | str = "cpu",
) -> tuple[dict, ridge.Ridge, np.ndarray]:
    """Choose the strength on val, fit on train (with val again where it was carved from train), judge on test.

    Returns:
        numbers (n, alpha, srcc of val, and ``metrics.summary`` of test), the regressor, and predictions of test [m].
    """
    train, val, test = split.train, split.val, split.test
    y = labels.score
    model, values = ridge.select(features[train], y[train], features[val], y[val], device=device)
    if split.carved:
        both = np.sort(np.concatenate([train, val]))
        model = ridge.fit_path(features[both], y[both], model.alpha, device)
    prediction = model.predict(features[test])[:, 0].cpu().numpy()
    sizes = {p: len(getattr(split, p)) for p in iqa_sets.PARTS}
    numbers = {"n": sizes, "alpha": model.alpha.item(), "val_srcc": float(np.nanmax(values))}
    return {**numbers, **metrics.summary(prediction, y[test])}, model, prediction


def without(split: Split, kept: list[int]) -> Split:
    """The split of the images that could be read: positions among ``kept``."""
    place = {old: new for new, old in enumerate(kept)}
    parts = {p: np.array([place[i] for i in getattr(split, p) if i in place], dtype=np.int64) for p in iqa_sets.PARTS}
    return replace(split, **parts)


def median(numbers: list[dict]) -> dict:
    """Median of every metric over the splits, and their standard deviation as ``KEY_std``."""
    values = {k: np.array([n[k] for n in numbers]) for k in metrics.SUMMARY}
    spread = {f"{k}_std": float(v.std()) for k, v in values.items()} if len(numbers) > 1 else {}
    return {**{k: float(np.median(v)) for k, v in values.items()}, **spread}


def table(rows: list[tuple[str, list[dict]]]) -> str:
    """The printed table: one row for each (encoder, numbers of its splits)."""
    width = max(len(name) for name, _ in rows) + 2
    several = max(len(numbers) for _, numbers in rows) > 1
    lines = [
        f"{'encoder':{width}}{'test':>6}  {'SRCC':>7}  {'PLCC':>7}  {'PLCC*':>7}  {'KRCC':>7}  {'RMSE':>8}  {'strength':>9}"
    ]
    for name, numbers in rows:
        m = median(numbers)
        n = int(np.median([x["n"]["test"] for x in numbers]))
        correlations = "  ".join(f"{m[k]:7.4f}" for k in ("srcc", "plcc", "plcc_logistic", "krcc"))
        alpha = float(np.median([x["alpha"] for x in numbers]))
        lines.append(f"{name:{width}}{n:6d}  {correlations}  {m['rmse']:8.4f}  {alpha:9.3g}")
        if several:
            spread = "  ".join(f"{m[k + '_std']:7.4f}" for k in ("srcc", "plcc", "plcc_logistic", "krcc"))
            lines.append(f"{'  standard deviation':{width}}{'':6}  {spread}  {m['rmse_std']:8.4f}")
    lines.append(
        "PLCC* is after a 4-parameter logistic fitted on the test images"
        + (f"; medians of {len(rows[0][1])} splits" if several else "")
    )
    return "\n".join(lines)


def _finite(content: object) -> object:
    """NaN -> None: JSON has no NaN."""
    if isinstance(content, dict):
        return {k: _finite(v) for k, v in content.items()}
    if isinstance(content, list):
        return [_finite(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m shamisa.probe",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="a run folder, a checkpoint folder or file, untrained:NAME or imagenet:NAME (NAME as torchvision/resnet50)",
    )
    parser.add_argument("--untrained", action="store_true", help="probe the same network with random weights as well")
    labels = parser.add_argument_group("labels: either --labels or --dataset")
    labels.add_argument("--labels", metavar="CSV", help="columns file, score[, reference][, distortion][, split]")
    labels.add_argument("--dataset", choices=tuple(iqa_sets.SETS), help="a published set, in its own layout")
    labels.add_argument("--root", required=True, metavar="DIR", help="the folder that the files are relative to")
    labels.add_argument("--score-column", metavar="NAME", help="column of the scores [score, mos or dmos]")
    labels.add_argument("--file-column", metavar="NAME", help="column of the files [file, filename, image, ...]")
    labels.add_argument(
        "--lower-better", action="store_true", default=None, help="low scores are good ones [if named dmos]"
    )
    labels.add_argument(
        "--scale", nargs=2, type=float, metavar=("LOW", "HIGH"), help="ends of the scale [those of the scores]"
    )
    split = parser.add_argument_group("splits")
    split.add_argument("--splits", type=int, metavar="N", help="random splits when the labels have none [10]")
    split.add_argument(
        "--split-files", metavar="DIR", help="published splits: train.npy, val.npy, test.npy of positions"
    )
    split.add_argument("--seed", type=int, default=0, help="of the splits and of untrained weights [0]")
    work = parser.add_argument_group("work")
    work.add_argument("--crop", type=int, default=224, help="side of the crops, pixels [224]")
    work.add_argument("--batch", type=int, default=8, help="photographs per call of the encoder, ten crops each [8]")
    work.add_argument("--workers", type=int, default=2, help="threads that decode photographs [2]")
    work.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N [auto]")
    work.add_argument("--cache", metavar="DIR", help="keep features here, by the hashes of encoder and file [none]")
    work.add_argument("--out", metavar="DIR", help="folder of the results [runs/probe-LABELS]")
    work.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def read_labels(given: argparse.Namespace) -> Labels:
    """Labels by --labels or --dataset; LabelError or ValueError where they cannot be had."""
    if (given.labels is None) == (given.dataset is None):
        raise ValueError(
            "give either --labels CSV or --dataset NAME, got " + ("none" if given.labels is None else "both")
        )
    if given.dataset is not None:
        for name in ("score_column", "file_column", "lower_better", "scale"):
            if getattr(given, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} belongs to --labels; --dataset {given.dataset} knows its own"
                )
        return iqa_sets.read_set(given.dataset, given.root)
    if given.scale is not None and not given.scale[0] < given.scale[1]:
        raise ValueError(f"--scale must be LOW < HIGH, got {given.scale[0]:g} {given.scale[1]:g}")
    scale = tuple(given.scale) if given.scale else None
    return iqa_sets.read_csv(
        given.labels, given.score_column, lower_better=given.lower_better, scale=scale, file_column=given.file_column
    )


def read_splits(given: argparse.Namespace, labels: Labels) -> list[Split]:
    """Splits by --split-files, by the labels' own column, or --splits random ones; LabelError or ValueError."""
    if given.splits is not None and given.splits < 1:
        raise ValueError(f"--splits must be at least 1, got {given.splits}")
    if given.split_files is not None:
        if given.splits is not None:
            raise ValueError("--splits and --split-files exclude each other")
        return iqa_sets.read_splits(given.split_files, labels)
    if given.splits is not None and labels.split is not None:
        raise ValueError(f"--splits makes random splits, but {labels.name} has a split column: leave one of them out")
    return iqa_sets.make_splits(labels, given.splits or 10, given.seed)


def write_results(
    out: Path,
    results: dict,
    labels: Labels,
    split: Split,
    prediction: np.ndarray,
    regressor: ridge.Regressor,
    title: str,
) -> None:
    """The files of the first split: predictions, scatter plot and regressor, and results.json last."""
    from .plots import scatter

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("file", "score", "prediction"))
    writer.writerows(zip([labels.files[i] for i in split.test], labels.score[split.test], prediction, strict=True))
    runs.write_text(out / "predictions.csv", text.getvalue())
    scatter(prediction, labels.score[split.test], out / "scatter.png", title)
    regressor.save(out / "regressor.safetensors")
    runs.write_json(out / "results.json", _finite(results))


def run(given: argparse.Namespace) -> dict:
    """Everything between the command line and the exit status; returns what results.json holds.

    Raises ValueError or RuntimeError for bad input, before any features are computed.
    """
    labels = read_labels(given)
    paths = iqa_sets.find_files(labels, given.root)
    splits = read_splits(given, labels)
    encoder = open_encoder(given.checkpoint, given.seed)
    encoders = [(given.checkpoint, encoder)]
    if given.untrained:
        name = UNTRAINED + encoder.name
        encoders.append((name, open_encoder(name, given.seed)))
    device = open_device(given.device)
    options = {n: getattr(given, n) for n in ("crop", "batch", "workers", "cache")}
    extractors = [(name, Extractor(e, device=device, **options)) for name, e in encoders]
    out = Path(given.out or Path("runs") / f"probe-{labels.name}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").unlink(missing_ok=True)  # an interrupted probe must not look like a finished one

    rows, records, first = [], [], None
    for name, extractor in extractors:
        start = time.perf_counter()
        features = extract(extractor, paths, progress=not given.quiet, label=name)
        seconds = time.perf_counter() - start
        read = labels.take(features.kept)
        kept = [iqa_sets.check_split(read, without(s, features.kept)) for s in splits]
        start, numbers = time.perf_counter(), []
        for s in kept:
            n, model, prediction = probe_split(features.values, read, s, device)
            numbers.append(n)
            first = first or (n, model, prediction, read, s, extractor)
        rows.append((name, numbers))
        records.append(
            {
                "checkpoint": name,
                "encoder": extractor.encoder.name,
                "encoder_hash": extractor.hash,
                "feature_dim": features.values.shape[2],
                "median": median(numbers),
                "splits": numbers,
                "seconds": {"features": round(seconds, 2), "ridge": round(time.perf_counter() - start, 2)},
            }
        )
    hashes = [s.hash(labels) for s in splits]
    n, model, prediction, read, split, extractor = first
    about = {
        "encoder": extractor.encoder.name,
        "encoder_hash": extractor.hash,
        "checkpoint": given.checkpoint,
        "crop": given.crop,
        "labels": labels.name,
        "split": splits[0].origin,
        "split_hash": hashes[0],
        "low": labels.low,
        "high": labels.high,
        "lower_better": labels.lower_better,
        "quality": "(score - low) / (high - low), one minus that if lower_better, clipped to 0..1: higher is better",
        "test": _finite(n),
    }
    results = {
        "labels": labels.name,
        "images": len(labels),
        "unreadable": [{"file": labels.files[i], "reason": e.reason} for i, e in features.failed.items()],
        "scale": {"low": labels.low, "high": labels.high, "lower_better": labels.lower_better},
        "protocol": {
            "features": f"{CROPS} crops (corners, centre) of {given.crop} px x {SCALES} scales (full, half), concatenated per crop",
            "regressor": "ridge per crop, predictions averaged over crops",
            "strength": "of 100 from 1e-3 to 1e3, by SRCC on val",
            "plcc": "raw; plcc_logistic after a 4-parameter logistic fitted on test",
        },
        "splits": [{"origin": s.origin, "hash": h} for s, h in zip(splits, hashes, strict=True)],
        "encoders": records,
        "versions": _versions(),
    }
    regressor = ridge.Regressor(model.coef[0].cpu(), model.intercept[0].cpu(), about)
    title = f"{extractor.encoder.name} on {labels.name}, {len(split.test)} test images: SRCC {n['srcc']:.4f}, PLCC {n['plcc']:.4f}"
    write_results(out, results, read, split, prediction, regressor, title)
    several = f"{len(splits)} x " if len(splits) > 1 else ""
    print(f"{labels.name}: {len(read)} images, {several}{splits[0].origin}, split hash {hashes[0][:16]}")
    if features.failed:
        worst = next(iter(features.failed.values()))
        print(f"{len(features.failed)} of {len(labels)} images cannot be read and are left out, the first is {worst}")
    print(table(rows))
    print(f"wrote {out}/results.json, predictions.csv, scatter.png, regressor.safetensors")
    return results


def _versions() -> dict:
    from .config import versions

    return versions()


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 for bad input, told on stderr in one line."""
    given = make_parser().parse_args(argv)
    try:
        run(given)
    except (LabelError, ValueError, RuntimeError, OSError) as error:
        print(f"shamisa probe: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
