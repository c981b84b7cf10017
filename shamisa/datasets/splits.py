"""Train, val and test: random, official and published splits of labels, their hash, and the check that parts are disjoint."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .labels import PARTS, LabelError, Labels


@dataclass(frozen=True)
class Split:
    """Disjoint positions in the labels. ``carved``: val was taken from an official train part, and belongs to it again once
    the strength is chosen."""

    train: np.ndarray  # int64, sorted
    val: np.ndarray
    test: np.ndarray
    origin: str  # in words: how it was made
    carved: bool = False

    def hash(self, labels: Labels) -> str:
        """SHA-256 over the names of the files of each part: the same for the same split, whatever the order of rows and the case of names."""
        parts = {p: sorted(labels.files[i].lower() for i in getattr(self, p)) for p in PARTS}
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


def shared_references(labels: Labels, split: Split) -> list[str]:
    """References with images in more than one part, sorted."""
    if labels.reference is None:
        return []
    parts = [{labels.reference[i] for i in getattr(split, p)} for p in PARTS]
    return sorted((parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2]))


def check_split(labels: Labels, split: Split) -> Split:
    """The split, or LabelError where parts overlap in images or references, are empty, or point outside the labels."""
    for p in PARTS:
        part = getattr(split, p)
        if len(part) < 2:
            raise LabelError(f"{p} of {split.origin} must have at least 2 images, got {len(part)}")
        if part.min() < 0 or part.max() >= len(labels):
            raise LabelError(
                f"{p} of {split.origin} must hold positions in 0..{len(labels) - 1}, got {part.min()}..{part.max()}"
            )
    together = np.concatenate([split.train, split.val, split.test])
    values, counts = np.unique(together, return_counts=True)
    if (counts > 1).any():
        twice = labels.files[values[counts > 1][0]]
        raise LabelError(
            f"{split.origin} has {int((counts > 1).sum())} images in more than one part, the first is {twice}"
        )
    if shared := shared_references(labels, split):
        raise LabelError(f"{split.origin} has {len(shared)} references in more than one part, the first is {shared[0]}")
    return split


def _divide(
    labels: Labels, positions: np.ndarray, shares: tuple[float, ...], rng: np.random.Generator
) -> list[np.ndarray]:
    """Random parts with the given shares of the images or, where there are references, of the references; the rest last."""
    keys = np.array(labels.reference, dtype=object)[positions] if labels.reference else positions
    groups = np.unique(keys)
    if len(groups) <= len(shares):
        raise LabelError(
            f"{labels.name} must have more than {len(shares)} images or references to split, got {len(groups)}"
        )
    order = rng.permutation(len(groups))
    parts, start = [], 0
    for share in shares:
        count = max(1, round(share * len(groups)))
        parts.append(positions[np.isin(keys, groups[order[start : start + count]])])
        start += count
    return [*parts, positions[np.isin(keys, groups[order[start:]])]]


def make_splits(labels: Labels, count: int, seed: int = 0) -> list[Split]:
    """Splits for the probe.

    With a ``split`` column there is one, the official one; without a val part there, an eighth of train serves to choose
    the strength. Otherwise ``count`` random ones, 70/10/20, the i-th a function of (seed, i) and the label file's order. Both
    kinds of random choice keep images of one reference together.

    Raises:
        LabelError: see ``check_split``.
    """
    if labels.split is None:
        splits = []
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            test, val, train = _divide(labels, np.arange(len(labels)), (0.2, 0.1), rng)
            splits.append(check_split(labels, Split(train, val, test, f"random split {i} of seed {seed}")))
        return splits
    parts = {p: np.array([i for i, s in enumerate(labels.split) if s == p], dtype=np.int64) for p in PARTS}
    for p in ("train", "test"):
        if not len(parts[p]):
            raise LabelError(f"split of {labels.name} must have rows of {p}, got {sorted(set(labels.split))}")
    carved = not len(parts["val"])
    if carved:
        rng = np.random.default_rng([seed, 0])
        parts["val"], parts["train"] = _divide(labels, parts["train"], (1 / 8,), rng)
    origin = f"the split column{f', val an eighth of train by seed {seed}' if carved else ''}"
    return [check_split(labels, Split(**parts, origin=origin, carved=carved))]


def read_splits(folder: str | os.PathLike, labels: Labels, *, check: bool = True) -> list[Split]:
    """Published splits: train.npy, val.npy, test.npy of positions, [n] or [splits, n] padded with -1.

    Raises:
        LabelError: missing or malformed files; with ``check`` also what ``check_split`` finds.
    """
    tables = {}
    for p in PARTS:
        path = Path(folder) / f"{p}.npy"
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise LabelError(f"cannot read the split {path}: {error}") from None
        if table.ndim not in (1, 2) or table.dtype.kind not in "iu":
            raise LabelError(f"{path} must hold integers [n] or [splits, n], got {table.dtype} {list(table.shape)}")
        tables[p] = np.atleast_2d(table).astype(np.int64)
    counts = {p: len(t) for p, t in tables.items()}
    if len(set(counts.values())) != 1:
        raise LabelError(f"train, val and test in {folder} must have equally many splits, got {counts}")
    splits = []
    for i in range(counts["train"]):
        parts = {p: np.sort(t[i][t[i] >= 0]) for p, t in tables.items()}
        split = Split(**parts, origin=f"published split {i}")
        splits.append(check_split(labels, split) if check else split)
    return splits
