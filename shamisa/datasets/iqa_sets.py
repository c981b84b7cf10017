"""Published image quality data sets by name: labels in their own formats.

A set knows its scale, its direction, where its files and references lie and what it calls its distortions; ``SETS`` is the
only place for these facts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .labels import LabelError, Labels, find_files, find_references, read_csv, read_label_file, read_number  # noqa: F401  the face of data sets
from .splits import PARTS, Split, check_split, make_splits, read_splits, shared_references  # noqa: F401


def _read_pairs(path: Path) -> list[tuple[str, float]]:
    """Lines of a file name and a number, either first, separated by spaces, a tab or a comma."""
    pairs = []
    for i, line in enumerate(read_label_file(path).splitlines(), 1):
        words = re.split(r"[\s,]+", line.strip())
        if words == [""]:
            continue
        if len(words) != 2:
            raise LabelError(f"{path} line {i} must be a file name and a score, got {line!r}")
        name, number = words if re.search(r"\.[A-Za-z]\w*$", words[0]) else reversed(words)
        pairs.append((name, read_number(number, f"{path} line {i}: score")))
    return pairs


# ---- published sets --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ImageSet:
    """What is known about a published data set."""

    title: str
    images: int  # rows of the label file, as its paper states or, where that differs, as distributed
    references: int | None  # None: authentic distortions
    low: float
    high: float
    lower_better: bool
    layout: str  # what the folder must hold, told in errors
    reference_layout: str  # where the references lie, told in errors of the full-reference probe
    # label files relative to the root -> how to read one; the first that exists is read
    readers: tuple[tuple[str, Callable[[Path, ImageSet], Labels]], ...]


def _labels(spec: ImageSet, rows: list[tuple]) -> Labels:
    """Rows of (file, score[, reference, distortion[, level]])."""
    files, score, *more = (list(column) for column in zip(*rows, strict=True))
    named = dict(zip(("reference", "distortion", "level"), more, strict=False))
    return Labels(spec.title, files, np.array(score), spec.low, spec.high, spec.lower_better, **named)


@dataclass(frozen=True)
class _Names:
    """What the names of distorted images tell."""

    pattern: str  # with the groups reference, distortion and level; any case
    folder: str  # of the image, by the groups
    reference: str  # file of the reference, by the groups
    distortions: tuple[str, ...] = ()  # names of the distortions numbered 1, 2, ...; none: the group is the name

    def read(self, name: str, path: Path) -> tuple[str, str, str, str]:
        """File name -> (file, reference, distortion, level); LabelError naming the label file."""
        match = re.fullmatch(self.pattern, name, re.IGNORECASE)
        if match is None:
            raise LabelError(f"{path} must name files like {self.pattern}, got {name!r}")
        parts = match.groupdict() | {"reference": match["reference"].lower()}
        kind = parts["distortion"]
        if self.distortions:
            if not 1 <= int(kind) <= len(self.distortions):
                raise LabelError(f"{path} must name distortions 1..{len(self.distortions)}, got {name!r}")
            kind = f"{kind} {self.distortions[int(kind) - 1]}"
        return self.folder.format(**parts) + name, self.reference.format(**parts), kind, str(int(parts["level"]))


def _table(file: str | None = None, score: str | None = None, folder: str = "") -> Callable:
    """A reader of a CSV with a header; ``folder`` comes before the names of files."""

    def read(path: Path, spec: ImageSet) -> Labels:
        labels = read_csv(path, score, lower_better=spec.lower_better, scale=(spec.low, spec.high), file_column=file)
        reference = None if spec.references is None else labels.reference
        return replace(labels, name=spec.title, files=[folder + f for f in labels.files], reference=reference)

    return read


def _inside(path: str) -> str:
    """Of a path that begins with the name of the set: the rest."""
    return path.partition("/")[2]


def _listed(names: _Names | None = None, folder: str = "") -> Callable:
    """A reader of the normalised lists, whose paths begin with the name of the set, and ``folder`` where one is given."""

    def read(path: Path, spec: ImageSet) -> Labels:
        labels = _table()(path, spec)
        files = [_inside(f).removeprefix(folder) for f in labels.files]
        if names is not None:
            rows = [names.read(f.rpartition("/")[2], path) for f in files]
            return _labels(spec, [(f, s, *row[1:]) for f, s, row in zip(files, labels.score, rows, strict=True)])
        if spec.references is None:
            return replace(labels, files=files, distortion=None)  # "Authentic" throughout
        return replace(labels, files=files, reference=[_inside(r) for r in labels.reference])

    return read


def _named(names: _Names) -> Callable:
    """A reader of name-and-score lines, without a header."""

    def read(path: Path, spec: ImageSet) -> Labels:
        rows = [(score, *names.read(name, path)) for name, score in _read_pairs(path)]
        return _labels(spec, [(file, score, *more) for score, file, *more in rows])

    return read


def _named_table(names: _Names) -> Callable:
    """A reader of a CSV with a header whose file names tell the rest."""

    def read(path: Path, spec: ImageSet) -> Labels:
        labels = _table()(path, spec)
        rows = [names.read(f, path) for f in labels.files]
        return _labels(spec, [(row[0], s, *row[1:]) for s, row in zip(labels.score, rows, strict=True)])

    return read


def _load_mat(path: Path, *names: str) -> list[np.ndarray]:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # scipy raises many kinds on damaged files
        raise LabelError(f"cannot read {path}: {error}") from None
    if missing := [n for n in names if n not in content]:
        found = [n for n in content if not n.startswith("__")]
        raise LabelError(f"{path} must hold {', '.join(missing)}, found {', '.join(found)}")
    return [content[n].ravel() for n in names]


_LIVE_FOLDERS = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))  # images in each


def _live_mat(path: Path, spec: ImageSet) -> Labels:
    score, pristine = _load_mat(path, "dmos_new", "orgs")
    (names,) = _load_mat(path.parent / "refnames_all.mat", "refnames_all")
    places = [(folder, i) for folder, count in _LIVE_FOLDERS for i in range(1, count + 1)]
    if not len(score) == len(pristine) == len(names) == len(places):
        raise LabelError(f"{path} must hold {len(places)} scores, got {len(score)}, {len(pristine)} and {len(names)}")
    rows = [
        (f"{folder}/img{i}.bmp", float(s), f"refimgs/{np.asarray(n).item()}", folder)
        for (folder, i), s, p, n in zip(places, score, pristine, names, strict=True)
        if not p
    ]
    return _labels(spec, rows)


def _clive_mat(path: Path, spec: ImageSet) -> Labels:
    (score,) = _load_mat(path, "AllMOS_release")
    (names,) = _load_mat(path.parent / "AllImages_release.mat", "AllImages_release")
    names = [str(np.asarray(n).item()) for n in names]
    if len(names) != len(score):
        raise LabelError(f"{path} must hold one score for each of {len(names)} images, got {len(score)}")
    rows = [
        (f"Images/{n}", float(s)) for n, s in zip(names, score, strict=True) if not n.startswith("t")
    ]  # t1..t7: training
    return _labels(spec, rows)


_CSIQ = _Names(
    r"(?P<reference>\w+)\.(?P<distortion>\w+)\.(?P<level>\d)\.png", "dst_imgs/{distortion}/", "src_imgs/{reference}.png"
)
_KADID = _Names(
    r"(?P<reference>I\d\d)_(?P<distortion>\d\d)_(?P<level>\d\d)\.png", "images/", "images/{reference}.png",
    (
        "Gaussian blur", "lens blur", "motion blur", "colour diffusion", "colour shift", "colour quantization",
        "colour saturation 1", "colour saturation 2", "JPEG 2000", "JPEG", "white noise", "white noise in colour",
        "impulse noise", "multiplicative noise", "denoise", "brighten", "darken", "mean shift", "jitter",
        "non-eccentricity patch", "pixelate", "quantization", "colour block", "high sharpen", "contrast change",
    ),
)  # fmt: skip
_TID = _Names(
    r"(?P<reference>I\d\d)_(?P<distortion>\d\d)_(?P<level>\d)\.bmp", "distorted_images/", "reference_images/{reference}.bmp",
    (
        "Gaussian noise", "noise in colour", "spatially correlated noise", "masked noise", "high-frequency noise",
        "impulse noise", "quantization noise", "Gaussian blur", "denoising", "JPEG", "JPEG 2000", "JPEG errors",
        "JPEG 2000 errors", "non-eccentricity pattern", "local blocks", "mean shift", "contrast change",
        "colour saturation", "multiplicative noise", "comfort noise", "compressed noise", "dithered quantization",
        "chromatic aberration", "sparse sampling",
    ),
)  # fmt: skip
_PLAIN = ("labels.csv", _table())  # any set, brought into our own form
_NONE = "its images have no references"

SETS: dict[str, ImageSet] = {
    "live": ImageSet(
        "LIVE", 779, 29, 0, 100, True,
        "jp2k/ jpeg/ wn/ gblur/ fastfading/ with img1.bmp ..., dmos_realigned.mat and refnames_all.mat (or LIVE.txt)",
        "refimgs/ with bikes.bmp ...",
        (("dmos_realigned.mat", _live_mat), ("LIVE.txt", _listed()), _PLAIN),
    ),
    "csiq": ImageSet(
        "CSIQ", 866, 30, 0, 1, True,
        "dst_imgs/AWGN|BLUR|JPEG|contrast|fnoise|jpeg2000/ with 1600.AWGN.1.png ..., csiq_label.txt (or CSIQ.txt)",
        "src_imgs/ with 1600.png ...",
        (("csiq_label.txt", _named(_CSIQ)), ("CSIQ.txt", _listed(_CSIQ)), _PLAIN),
    ),
    "tid2013": ImageSet(
        "TID2013", 3000, 25, 0, 9, False,
        "distorted_images/ with i01_01_1.bmp ..., mos_with_names.txt (or TID2013.txt)",
        "reference_images/ with I01.BMP ...",
        (("mos_with_names.txt", _named(_TID)), ("TID2013.txt", _listed(_TID)), _PLAIN),
    ),
    "kadid10k": ImageSet(
        "KADID-10k", 10125, 81, 1, 5, False,  # the scores are named dmos in the original, yet higher is better
        "images/ with I01_01_01.png ..., dmos.csv (or names_with_mos.txt, or KADID-10k.txt)",
        "images/ with I01.png ...",
        (
            ("dmos.csv", _named_table(_KADID)), ("names_with_mos.txt", _named(_KADID)),
            ("KADID-10k.txt", _listed(_KADID)), _PLAIN,
        ),
    ),
    "koniq10k": ImageSet(
        "KonIQ-10k", 10073, None, 1, 5, False,
        "1024x768/ with the photographs, koniq10k_scores_and_distributions.csv (or KonIQ-10k.txt)",
        _NONE,
        (
            ("koniq10k_scores_and_distributions.csv", _table("image_name", "MOS", "1024x768/")),
            ("KonIQ-10k.txt", _listed()), _PLAIN,
        ),
    ),
    "spaq": ImageSet(
        "SPAQ", 11125, None, 0, 100, False,
        "TestImage/ with 00001.jpg ..., 'Annotations/MOS and Image attribute scores.csv' (the .xlsx saved as CSV; or SPAQ.txt)",
        _NONE,
        (
            ("Annotations/MOS and Image attribute scores.csv", _table("Image name", "MOS", "TestImage/")),
            ("SPAQ.txt", _listed(folder="Dataset/")), _PLAIN,
        ),
    ),
    "clive": ImageSet(
        "LIVE Challenge", 1162, None, 0, 100, False,
        "Images/ with 3.bmp ..., Data/AllMOS_release.mat and Data/AllImages_release.mat (or LIVE_Challenge.txt)",
        _NONE,
        (("Data/AllMOS_release.mat", _clive_mat), ("LIVE_Challenge.txt", _listed()), _PLAIN),
    ),
    "flive": ImageSet(
        "FLIVE", 39810, None, 0, 100, False,
        "database/ with voc_emotic_ava/ ..., labels_image.csv (columns name, mos)",
        _NONE,
        (("labels_image.csv", _table("name", "mos", "database/")), _PLAIN),
    ),
    "biq2021": ImageSet(
        "BIQ2021", 12000, None, 0, 1, False,
        "the photographs and labels.csv (columns file, mos and, for the official split, split)",
        _NONE,
        (_PLAIN,),
    ),
}  # fmt: skip


def read_set(name: str, root: str | os.PathLike) -> Labels:
    """Labels of a published set from a local copy of it.

    Raises:
        LabelError: an unknown name, no label file in the folder (its layout is told), or a malformed label file.
    """
    if name not in SETS:
        raise LabelError(f"dataset must be one of {', '.join(SETS)}, got {name!r}")
    spec, root = SETS[name], Path(root)
    if not root.is_dir():
        raise LabelError(
            f"root of {spec.title} must be a folder holding {spec.layout}; got {root}, which is not a folder"
        )
    for file, read in spec.readers:
        if (root / file).is_file():
            return read(root / file, spec)
    looked = ", ".join(file for file, _ in spec.readers)
    raise LabelError(f"{root} must hold {spec.title}: {spec.layout}; none of {looked} found")
