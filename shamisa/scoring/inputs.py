"""What the probe and the scorer are given: encoders by name, and labels with their images."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from .. import remote
from ..data.formats import count, shorten
from ..datasets import iqa_sets, splits
from ..datasets.labels import LabelError, Labels, find_files, find_references, read_csv
from ..datasets.splits import Split
from ..files import printable
from ..networks.checkpoints import load_encoder
from ..networks.devices import choose_device
from ..networks.encoders import LAST, features_of, name_of
from ..networks.models import Encoder
from . import ridge
from .features import CROPS, SCALES, Extractor, Features, extract, extract_difference

UNTRAINED = "untrained:"  # --checkpoint untrained:torchvision/resnet50
IMAGENET = "imagenet:"  # --checkpoint imagenet:torchvision/resnet50
STATISTICS = "statistics"  # --checkpoint statistics: the hand-made baseline


def open_encoder(checkpoint: str | os.PathLike, seed: int = 0, features: str | None = None) -> torch.nn.Module:
    """A run or checkpoint folder or file, ``untrained:NAME`` (random weights by ``seed``), ``imagenet:NAME``, or
    ``statistics`` (``SceneStatistics``, where there is no file of that name); in eval mode.

    features: see ``models.Encoder``; None: those that the run was trained with, else the last layer. Without meaning for
        ``statistics``.

    Raises ValueError or RuntimeError, with the reason.
    """
    checkpoint = os.fspath(checkpoint)
    if checkpoint == STATISTICS and not Path(checkpoint).exists():
        from .scene_statistics import SceneStatistics

        return SceneStatistics().eval()
    for prefix, init in ((UNTRAINED, "none"), (IMAGENET, "imagenet")):
        if checkpoint.startswith(prefix):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return Encoder(checkpoint.removeprefix(prefix), init, features or LAST).eval()
    return load_encoder(checkpoint, features=features)


@dataclass(frozen=True)
class Source:
    """Labels whose images are there."""

    labels: Labels
    paths: list[Path]  # [n]
    references: list[Path] | None = None  # [n], for the full-reference probe

    def extract(self, extractor: Extractor, label: str = "", progress: bool = True) -> Features:
        """Features [n, 5, 2F], or with references their absolute differences."""
        if self.references is None:
            return extract(extractor, self.paths, progress=progress, label=label)
        return extract_difference(extractor, self.paths, self.references, progress=progress, label=label)


def open_source(labels: Labels, root: str | Path, *, full_reference: bool = False, layout: str = "") -> Source:
    """Find the images of labels and, for full reference, the references; LabelError for those that are missing, or for a
    reference of another size than its image (crops could not be compared)."""

    def opened(place: Path | str) -> Path | BinaryIO:
        return remote.open_file(place) if remote.is_url(place) else place

    references = find_references(labels, root, layout) if full_reference else None
    paths = find_files(labels, root)
    for path, reference in zip(paths, references or (), strict=bool(references)):
        try:
            with Image.open(opened(path)) as image, Image.open(opened(reference)) as clean:
                sizes = image.size, clean.size
        except Exception:  # which files are unreadable, and why, is told when they are decoded
            continue
        if sizes[0] != sizes[1]:
            raise LabelError(f"{path} must have the size of its reference {reference}, {sizes[1]}, got {sizes[0]}")
    return Source(labels, paths, references)


def read_source(given: argparse.Namespace) -> Source:
    """The source that --labels or --dataset names; LabelError or ValueError where it cannot be had."""
    if (given.labels is None) == (given.dataset is None):
        raise ValueError(
            "give one of --labels CSV, --dataset NAME and --cross, got " + ("none" if given.labels is None else "both")
        )
    if given.dataset is not None:
        only_for_labels(given, f"--dataset {given.dataset} defines them")
        if given.root is None:
            raise ValueError(f"--dataset {given.dataset} needs --root DIR, {iqa_sets.SETS[given.dataset].layout}")
        return open_set(given.dataset, given.root, given.full_reference)
    if given.scale is not None and not given.scale[0] < given.scale[1]:
        raise ValueError(f"--scale must be LOW < HIGH, got {given.scale[0]:g} {given.scale[1]:g}")
    scale = tuple(given.scale) if given.scale else None
    labels = read_csv(
        given.labels, given.score_column, lower_better=given.lower_better, scale=scale, file_column=given.file_column
    )
    beside = remote.parent(given.labels) if remote.is_url(given.labels) else Path(given.labels).parent
    return open_source(labels, given.root or beside, full_reference=given.full_reference)


def open_set(name: str, root: str, full_reference: bool) -> Source:
    """A published set with its images."""
    labels = iqa_sets.read_set(name, root)
    return open_source(labels, root, full_reference=full_reference, layout=iqa_sets.SETS[name].reference_layout)


def only_for_labels(given: argparse.Namespace, reason: str) -> None:
    """ValueError for an option that belongs to --labels."""
    for name in ("score_column", "file_column", "lower_better", "scale"):
        if getattr(given, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --labels; {reason}")


def read_splits(given: argparse.Namespace, labels: Labels) -> list[Split]:
    """Splits by --split-files, by the labels' own column, or --splits random ones; LabelError or ValueError."""
    if given.splits is not None and given.splits < 1:
        raise ValueError(f"--splits must be at least 1, got {given.splits}")
    if given.split_files is not None:
        if given.splits is not None:
            raise ValueError("--splits and --split-files cannot be combined")
        return splits.read_splits(given.split_files, labels)
    if given.splits is not None and labels.split is not None:
        raise ValueError(f"--splits makes random splits, but {labels.name} has a split column: use one or the other")
    return splits.make_splits(labels, given.splits or 10, given.seed)


def open_extractors(given: argparse.Namespace, encoder: torch.nn.Module | None = None) -> list[tuple[str, Extractor]]:
    """(name, extractor) of --checkpoint (or the module given in its place), --untrained and --compare. Each is tried on
    blank crops: one that cannot take them is a ValueError now, and not when the others have gone through all images."""
    if encoder is not None and given.features is not None and not isinstance(encoder, Encoder):
        raise ValueError(f"--features are for encoders of this package, got {given.features!r} for {name_of(encoder)}")
    if isinstance(encoder, Encoder) and given.features is not None:
        encoder.select(given.features)
    # the run's own choice holds for its comparisons with random weights too
    if encoder is None:
        encoder = open_encoder(given.checkpoint, given.seed, given.features)
    encoders = [(given.checkpoint, encoder)]
    features = given.features or features_of(encoder)
    if given.untrained:
        if not isinstance(encoders[0][1], Encoder):
            raise ValueError(f"--untrained needs a checkpoint with weights, got {given.checkpoint}")
        name = UNTRAINED + encoders[0][1].name
        encoders.append((name, open_encoder(name, given.seed, features)))
    encoders += [(name, open_encoder(name, given.seed, given.features)) for name in given.compare]
    device = choose_device(given.device)
    options = {n: getattr(given, n) for n in ("crop", "view", "batch", "workers", "cache", "truncated")}
    found = [(name, Extractor(e, device=device, **options)) for name, e in encoders]
    blank = torch.zeros(1, SCALES, CROPS, 3, given.crop, given.crop, dtype=torch.uint8)
    for name, extractor in found:
        try:
            extractor.encode(blank)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{name} fails on blank crops of {given.crop} pixels: {error}") from None
    return found


def describe_protocol(given: argparse.Namespace) -> dict:
    """In words, for results.json and the page."""
    kind = "absolute differences to the reference's" if given.full_reference else "no reference"
    return {
        "features": f"{CROPS} crops (corners, centre) of {given.crop} px x {SCALES} scales (full, half), concatenated per crop; {kind}",
        "view": given.view,
        "regressor": "ridge per crop, predictions averaged over crops",
        "strength": f"{ridge.STRENGTHS}, by SRCC on val",
        "plcc": "raw; plcc_logistic after a 4-parameter logistic fitted on test",
    }


def source_of(encoder: torch.nn.Module) -> str | None:
    """Where its weights come from, in words, if it knows."""
    source = getattr(encoder, "source", None)
    return source if isinstance(source, str) else None


def open_folder(given: argparse.Namespace, name: str) -> Path:
    """The folder of the results, --out or runs/name, made if need be, as that of --report: not only once all work is done.
    An interrupted probe must not look like a finished one."""
    out = Path(given.out or Path("runs") / name)
    for folder in filter(None, (out, given.report)):
        remote.check_local("out", folder)
        Path(folder).mkdir(parents=True, exist_ok=True)
    (out / "results.json").unlink(missing_ok=True)
    return out


def find_faults(features: Features, labels: Labels, extractor: Extractor) -> dict:
    """What results.json says of images that could not be read, truncated JPEGs apart, and of those read all the same."""
    failed = [({"file": labels.files[i], "reason": str(e)}, e.truncated) for i, e in features.failed.items()]
    return {
        "unreadable": [entry for entry, truncated in failed if not truncated],
        "truncated": [entry for entry, truncated in failed if truncated],
        "truncated_read": sorted(printable(path) for path in extractor.cut_off),
    }


def describe_faults(faults: dict, images: int) -> list[str]:
    """The same in lines."""
    unreadable, truncated, read = faults["unreadable"], faults["truncated"], faults["truncated_read"]
    lines = []
    if unreadable:
        lines.append(
            f"{len(unreadable)} of {images} images cannot be read and are left out, the first is {unreadable[0]['reason']}"
        )
    if truncated:
        names = shorten([entry["file"] for entry in truncated])
        lines.append(
            f"{count(len(truncated), 'truncated JPEG')} of {images} images left out (--truncated read reads them): {names}"
        )
    if read:
        lines.append(f"{count(len(read), 'truncated JPEG')} read as far as they go: {shorten(read)}")
    return lines
