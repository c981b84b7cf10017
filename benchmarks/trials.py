"""What might improve on the start of the packaged model, by cross-validation inside the train part of a label set:
``python -m benchmarks.trials --labels CSV [--checkpoint RUN ...]``.

Rows: features of the ImageNet start at all stages; of every RUN, alone, beside the start, and with its weights halfway between
the start's and its own; other uses of the start's features (deviation over the crops beside their mean, a Gaussian kernel). The
test part is not read. Every row is ridge regression with the strength that suits it best, which flatters all rows alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shamisa.datasets.labels import find_files, read_csv
from shamisa.files import write_json
from shamisa.scoring.crops import VIEW
from shamisa.scoring.features import Extractor, extract
from shamisa.scoring.inputs import open_encoder
from shamisa.scoring.metrics import plcc, srcc
from shamisa.scoring.runtimes import RUNTIMES

from . import quality_table

START = f"imagenet:{quality_table.START}"
FOLDS, SHUFFLES = 5, 3
ALPHAS = np.logspace(-3, 2.5, 23)  # strengths


def halfway(start: nn.Module, trained: nn.Module) -> nn.Module:
    """``trained`` with the mean of both networks' weights, in place."""
    old, new = start.state_dict(), trained.state_dict()
    if {k: t.shape for k, t in old.items()} != {k: t.shape for k, t in new.items()}:
        raise ValueError(f"checkpoint must hold the network of {START}, got another")
    trained.load_state_dict({k: (old[k] + t) / 2 if t.is_floating_point() else t for k, t in new.items()})
    return trained


def centred(kernel: Tensor, train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of a kernel [n, n]: [train, train] and [test, train], as if the mean of train had been taken from the features."""
    inside, across = kernel[train][:, train], kernel[test][:, train]
    mean = inside.mean(0)
    return inside - mean - mean[:, None] + mean.mean(), across - across.mean(1, keepdim=True) - mean + mean.mean()


def cross_validate(kernel: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Kernel float64 [n, n], quality [n] -> mean SRCC and PLCC over all folds at the strength with the best SRCC, and that."""
    found = []
    for seed in range(SHUFFLES):
        order = np.random.default_rng([seed, FOLDS]).permutation(len(y))
        for test in np.array_split(order, FOLDS):
            train = np.setdiff1d(order, test)
            inside, across = centred(kernel, train, test)
            values, vectors = torch.linalg.eigh(inside)
            target = vectors.T @ (y[train] - y[train].mean())
            predicted = [across @ (vectors @ (target / (values.clamp(min=0) + a))) for a in ALPHAS]
            truth = y[test].numpy()
            found.append([[m(p.numpy(), truth) for p in predicted] for m in (srcc, plcc)])
    mean = np.mean(found, axis=0)
    best = int(mean[0].argmax())
    return float(mean[0, best]), float(mean[1, best]), float(ALPHAS[best])


def gaussian(X: Tensor) -> Tensor:
    """Kernel [n, n] whose width is the median distance."""
    squared = torch.cdist(X, X) ** 2
    return torch.exp(-squared / squared.median())


def kernels(given: argparse.Namespace, paths: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and kernel [n, n] of every row."""

    def features(encoder: nn.Module, label: str) -> Tensor:
        """[n, 5, 2F] float64."""
        found = extract(Extractor(encoder, cache=given.cache, runtime=given.runtime, view=VIEW), paths, label=label)
        if found.failed:
            raise ValueError(f"cannot read {next(iter(found.failed.values()))}")
        return found.values.double()

    crops = features(open_encoder(START, features="stages"), "start")
    start, deviation = crops.mean(1), crops.std(1, correction=0)
    yield "start", start @ start.T
    yield "start, mean and deviation over the crops", start @ start.T + deviation @ deviation.T
    yield "start, Gaussian kernel", gaussian(start)
    for run in given.checkpoint:
        name = Path(run).name
        trained = features(open_encoder(run, features="stages"), name).mean(1)
        yield name, trained @ trained.T
        yield f"{name} beside the start", trained @ trained.T + start @ start.T
        mixed = halfway(open_encoder(START, features="stages"), open_encoder(run, features="stages"))
        mixed = features(mixed, f"{name}, halfway").mean(1)
        yield f"{name}, halfway from the start", mixed @ mixed.T


def main(argv: list[str] | None = None) -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trials", description=__doc__, allow_abbrev=False)
    parser.add_argument("--labels", required=True, metavar="CSV")
    parser.add_argument("--root", metavar="DIR", help="folder that the file names are relative to [that of the CSV]")
    parser.add_argument("--checkpoint", nargs="*", default=[], metavar="RUN", help="trained from the start")
    parser.add_argument("--cache", metavar="DIR", help="features are kept here [none]")
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch", help="what runs the encoders [%(default)s]")
    parser.add_argument("--out", metavar="JSON", help="also write the table here")
    given = parser.parse_args(argv)
    labels = read_csv(given.labels)
    labels = labels.take(i for i in range(len(labels)) if labels.split is None or labels.split[i] != "test")
    y = torch.as_tensor(labels.quality(), dtype=torch.float64)
    rows = []
    for name, kernel in kernels(given, find_files(labels, given.root or Path(given.labels).parent)):
        rank, linear, strength = cross_validate(kernel, y)
        rows.append({"row": name, "srcc": rank, "plcc": linear, "strength": strength})
        print(f"{name:45}  SRCC {rank:.4f}  PLCC {linear:.4f}  strength {strength:.3g}", flush=True)
    if given.out:
        about = {"labels": labels.name, "images": len(labels), "folds": FOLDS, "shuffles": SHUFFLES}
        write_json(Path(given.out), {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
