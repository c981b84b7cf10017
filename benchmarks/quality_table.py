"""The quality model beside its start and beside what else runs without a network, on one label set: ``python -m
benchmarks.quality_table``.

With ``--folds K`` every row is cross-validated inside the train part of the labels, which is what choices are made by. With
``--test`` the rows are fitted on train and judged on test: for a final table only. Rows of features go through the probe's
own ridge regression; ``shipped`` is the packaged model as it is, its regressor included; ``brisque`` and ``piqe`` are the
packages of PyPI as they come (``pip install brisque pypiqe``), and their numbers through a ridge.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from shamisa import load_scorer
from shamisa.data.photos import PhotoError, read_photo
from shamisa.datasets.labels import Labels, find_files, read_csv
from shamisa.datasets.splits import Split, make_splits
from shamisa.files import write_json
from shamisa.scoring import metrics
from shamisa.scoring.features import Extractor, extract
from shamisa.scoring.inputs import open_encoder
from shamisa.scoring.protocol import probe_split
from shamisa.scoring.runtimes import RUNTIMES

from .peers import Missing, need

START = "timm/tf_efficientnet_lite0"
METRICS = ("srcc", "plcc", "plcc_logistic", "krcc")  # as ``metrics.summary`` names them


# ---- splits ----------------------------------------------------------------------------------------------------------
def fold_splits(labels: Labels, count: int, seed: int = 0) -> list[Split]:
    """``count`` folds of the train part (all rows where there is no split column), each fold once the test part; an eighth
    of the others chooses the strength."""
    rows = np.array([i for i in range(len(labels)) if labels.split is None or labels.split[i] != "test"])
    rng = np.random.default_rng([seed, count])
    parts = np.array_split(rng.permutation(rows), count)
    found = []
    for i, test in enumerate(parts):
        rest = rng.permutation(np.concatenate(parts[:i] + parts[i + 1 :]))
        val, train = np.sort(rest[: len(rest) // 8]), np.sort(rest[len(rest) // 8 :])
        found.append(Split(train, val, np.sort(test), f"fold {i + 1} of {count}", carved=True))
    return found


# ---- features --------------------------------------------------------------------------------------------------------
def encoded(given: argparse.Namespace, checkpoint: str, features: str | None, paths: list[Path]) -> Tensor:
    """[n, 5, 2F] of an encoder as the probe names it."""
    runtime = "torch" if checkpoint == "statistics" else given.runtime
    extractor = Extractor(open_encoder(checkpoint, features=features), cache=given.cache, runtime=runtime)
    found = extract(extractor, paths, label=f"{checkpoint} {features or ''}".strip())
    if found.failed:
        raise ValueError(f"cannot read {next(iter(found.failed.values()))}")
    return found.values


def last_layer(stages: Tensor) -> Tensor:
    """Of features of all stages of ``START`` at two scales, those of the last layer, which come first."""
    width = 1280
    return torch.cat([scale[..., :width] for scale in stages.chunk(2, 2)], 2)


def beside(first: Tensor, second: Tensor, split: Split) -> Tensor:
    """Features side by side; the columns of the second, whose scales differ, standardised over train and scaled so that a
    row has norm 1 on average, as a group of the first has."""
    train = second[split.train].flatten(0, 1)
    scaled = (second - train.mean(0)) / train.std(0).clamp(min=1e-8) / second.shape[2] ** 0.5
    return torch.cat([first, scaled], 2)


def pixels(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return read_photo(path).permute(1, 2, 0).contiguous().numpy()


def brisque_features(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Score [n], lower is better, and the 36 numbers [n, 36] that it is computed from."""
    model = need("brisque").BRISQUE(url=False)
    kept: list[np.ndarray] = []
    scale = model.scale_features

    def scaled(features: np.ndarray) -> np.ndarray:
        """What its regressor is fed with; some of the numbers come as arrays of one element, which numpy 2.4 refuses."""
        kept.append(scale([float(np.ravel(f)[0]) for f in features]))
        return kept[-1]

    model.scale_features = scaled
    scores = [float(model.score(pixels(p))) for p in tqdm(paths, desc="brisque", unit="image")]
    return np.array(scores), np.stack(kept).astype(np.float64)


def piqe_score(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Score [n], lower is better, and the same as one feature [n, 1]."""
    piqe = need("pypiqe").piqe
    # it takes OpenCV's order of colours
    scores = np.array([float(piqe(pixels(p)[:, :, ::-1].copy())[0]) for p in tqdm(paths, desc="piqe", unit="image")])
    return scores, scores[:, None]


def kept_on_disk(name: str, cache: Path, paths: list[Path], make: Callable) -> tuple[np.ndarray, np.ndarray]:
    """``make(paths)``, computed only for files that the cache has not."""
    place, known = cache / f"{name}.npz", {}
    if place.is_file():
        with np.load(place, allow_pickle=False) as found:
            known = dict(
                zip(found["files"].tolist(), zip(found["scores"], found["features"], strict=True), strict=True)
            )
    keys = [str(p.resolve()) for p in paths]
    if todo := [p for p, key in zip(paths, keys, strict=True) if key not in known]:
        known |= dict(zip([str(p.resolve()) for p in todo], zip(*make(todo), strict=True), strict=True))
        scores, features = (np.array([row[i] for row in known.values()]) for i in range(2))
        np.savez(place, scores=scores, features=features, files=np.array(list(known)))
    return np.array([known[k][0] for k in keys]), np.stack([known[k][1] for k in keys])


# ---- rows ------------------------------------------------------------------------------------------------------------
def row(name: str, dimension: int | None, numbers: list[dict]) -> dict:
    """Means over the splits, and the smallest and largest SRCC."""
    srcc = [n["srcc"] for n in numbers]
    means = {k: float(np.mean([n[k] for n in numbers])) for k in METRICS}
    return {"row": name, "dimension": dimension, **means, "srcc_low": min(srcc), "srcc_high": max(srcc)}


def fitted(name: str, features: Tensor | Callable[[Split], Tensor], labels: Labels, splits: list[Split]) -> dict:
    """A row of features through the probe's ridge; a function where they depend on the split."""
    numbers, width = [], 0
    for s in splits:
        X = features(s) if callable(features) else features
        numbers.append(probe_split(X, labels, s)[0])
        width = X.shape[2]
    return row(name, width, numbers)


def as_it_comes(name: str, scores: np.ndarray, labels: Labels, splits: list[Split], lower_better: bool) -> dict:
    """A row of finished scores; nothing is fitted."""
    quality = -scores if lower_better else scores
    return row(name, None, [metrics.summary(quality[s.test], labels.score[s.test]) for s in splits])


def shipped(paths: list[Path], judged: np.ndarray, runtime: str) -> np.ndarray:
    """Scores [n] of the packaged model at the positions that are judged, NaN elsewhere."""
    stream = load_scorer(device="cpu", runtime=runtime).stream([str(paths[i]) for i in judged])
    found = list(tqdm(stream, total=len(judged), desc="shipped", unit="image"))
    if failed := [f for f in found if isinstance(f, PhotoError)]:
        raise ValueError(f"cannot read {failed[0]}")
    scores = np.full(len(paths), np.nan)
    scores[judged] = [score for _, score, _ in found]
    return scores


def model_rows(given: argparse.Namespace, labels: Labels, paths: list[Path], splits: list[Split]) -> list[dict]:
    """The packaged model (with ``--test``), encoders named by ``--checkpoint``, the start, statistics."""
    found = []
    start = f"imagenet:{START}"
    stages = encoded(given, start, "stages", paths)
    if given.test:
        judged = np.unique(np.concatenate([s.test for s in splits]))
        scores = shipped(paths, judged, given.runtime)
        found.append(as_it_comes("shipped", scores, labels, splits, lower_better=False))
    for checkpoint in given.checkpoint:
        found.append(fitted(checkpoint, encoded(given, checkpoint, None, paths), labels, splits))
    found.append(fitted("ImageNet start, all stages", stages, labels, splits))
    found.append(fitted("ImageNet start, last layer", last_layer(stages), labels, splits))
    untrained = encoded(given, f"untrained:{START}", "stages", paths)
    found.append(fitted("untrained, all stages", untrained, labels, splits))
    statistics = encoded(given, "statistics", None, paths)
    found.append(fitted("statistics", statistics, labels, splits))
    found.append(fitted("start beside statistics", lambda s: beside(stages, statistics, s), labels, splits))
    return found


def rows(given: argparse.Namespace, labels: Labels, paths: list[Path], splits: list[Split]) -> list[dict]:
    """All rows of the table, those that cannot be had with the reason under ``missing``."""
    cache = Path(given.cache)
    cache.mkdir(parents=True, exist_ok=True)
    found = [] if given.peers == "only" else model_rows(given, labels, paths, splits)
    if given.peers == "without":
        return found
    for name, make in (("brisque", brisque_features), ("piqe", piqe_score)):
        try:
            scores, features = kept_on_disk(name, cache, paths, make)
        except Missing as error:
            found.append({"row": name, "missing": str(error)})
            continue
        found.append(as_it_comes(f"{name}, as it comes", scores, labels, splits, lower_better=True))
        X = torch.from_numpy(features).float()[:, None]
        found.append(fitted(f"{name}, ridge", lambda s, X=X: beside(X[..., :0], X, s), labels, splits))
    return found


def text(found: list[dict], head: str) -> str:
    """The printed table."""
    width = max(len(r["row"]) for r in found) + 2
    lines = [
        head,
        f"{'row':{width}}{'F':>7}  {'SRCC':>6}  {'PLCC':>6}  {'PLCC*':>6}  {'KRCC':>6}  SRCC lowest .. highest",
    ]
    for r in found:
        if "missing" in r:
            lines.append(f"{r['row']:{width}}{r['missing']}")
            continue
        values = "  ".join(f"{r[k]:6.3f}" for k in METRICS)
        lines.append(
            f"{r['row']:{width}}{r['dimension'] or '-':>7}  {values}  {r['srcc_low']:.3f} .. {r['srcc_high']:.3f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_table", description=__doc__, allow_abbrev=False)
    parser.add_argument("--labels", required=True, metavar="CSV")
    parser.add_argument("--root", metavar="DIR", help="folder that the file names are relative to [that of the CSV]")
    parser.add_argument("--checkpoint", nargs="*", default=[], metavar="RUN", help="further rows: trained encoders")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--folds", type=int, metavar="K", help="cross-validation inside the train part")
    how.add_argument("--test", action="store_true", help="fit on train, judge on test")
    parser.add_argument(
        "--cache", default="runs/quality-cache", metavar="DIR", help="features are kept here [%(default)s]"
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch", help="what runs the encoders [%(default)s]")
    parser.add_argument(
        "--peers",
        choices=("with", "without", "only"),
        default="with",
        help="rows of brisque and piqe, which take a second per photograph [%(default)s]",
    )
    parser.add_argument("--out", metavar="JSON", help="also write the table here")
    given = parser.parse_args(argv)
    if given.folds is not None and given.folds < 2:
        parser.error(f"--folds must be at least 2, got {given.folds}")

    labels = read_csv(given.labels)
    if given.folds:  # the test part is not even read
        labels = labels.take(i for i in range(len(labels)) if labels.split is None or labels.split[i] != "test")
    paths = find_files(labels, given.root or Path(given.labels).parent)
    splits = make_splits(labels, 1) if given.test else fold_splits(labels, given.folds)
    head = f"{labels.name}: {len(labels)} images, {'; '.join(s.origin for s in splits[:1])}, {len(splits)} in all"
    found = rows(given, labels, paths, splits)
    print(text(found, head))
    if given.out:
        hashes = [s.hash(labels) for s in splits]
        about = {"labels": labels.name, "images": len(labels), "splits": [s.origin for s in splits], "hashes": hashes}
        write_json(Path(given.out), json.loads(json.dumps({**about, "rows": found})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
