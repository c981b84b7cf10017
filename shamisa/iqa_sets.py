"""Image quality data sets: labels from a CSV or by the name of a published set, and their splits.

A set knows its scale, its direction, where its files lie and which distorted images share a reference; ``SETS`` is the only
place for these facts. Labels keep the order of the label file, to which published splits refer by position.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

PARTS = ("train", "val", "test")
FILE_COLUMNS = ("file", "filename", "image", "image_name", "name", "path", "dis_img_path", "dist_img")
SCORE_COLUMNS = ("score", "mos", "dmos")  # recognised without being named; dmos: lower is better
REFERENCE_COLUMNS = ("reference", "ref_img_path", "ref_img")
DISTORTION_COLUMNS = ("distortion", "dis_type")


class LabelError(ValueError):
    """Labels or images of a data set that cannot be used, with the reason."""


@dataclass(frozen=True)
class Labels:
    """Scores of n images."""

    name: str  # of the set or the label file
    files: list[str]  # [n] relative to the root of the set, with /
    score: np.ndarray  # [n] float64
    low: float  # scale of the scores; a few scores may lie outside (LIVE's realigned DMOS do)
    high: float
    lower_better: bool
    reference: list[str] | None = None  # [n] what the distorted image was made from
    distortion: list[str] | None = None  # [n]
    split: list[str] | None = None  # [n] of PARTS

    def __len__(self) -> int:
        return len(self.files)

    def take(self, positions: Iterable[int]) -> Labels:
        """The labels of some images, in the order given."""
        positions = list(positions)
        lists = {
            f: [v[i] for i in positions]
            for f in ("files", "reference", "distortion", "split")
            if (v := getattr(self, f))
        }
        return replace(self, score=self.score[positions], **lists)


# ---- tables ----------------------------------------------------------------------------------------------------------
def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"cannot read labels {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LabelError(f"labels {path} must be UTF-8 text: {error.reason} at byte {error.start}") from None


def _pick(columns: list[str], accepted: tuple[str, ...]) -> list[str]:
    return [c for c in columns if c.strip().lower() in accepted]


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise LabelError(f"{where} must be a number, got {text!r}") from None
    if not np.isfinite(value):
        raise LabelError(f"{where} must be finite, got {text!r}")
    return value


def read_csv(
    path: str | os.PathLike,
    score_column: str | None = None,
    *,
    lower_better: bool | None = None,
    scale: tuple[float, float] | None = None,
    file_column: str | None = None,
) -> Labels:
    """Labels from a CSV (or tab-separated) file with a header: file, score[, reference][, distortion][, split].

    Args:
        score_column: name of the score's column; default ``score``, ``mos`` or ``dmos``, whichever there is.
        lower_better: direction; default False, but True for a column named dmos.
        scale: ends of the scale, low first; default the smallest and largest score.
        file_column: name of the column of files; default one of ``FILE_COLUMNS``.

    Raises:
        LabelError: an unreadable file, missing or ambiguous columns (named, with those found), a score that is no number, a
            file named twice, an unknown part in ``split``; with the line number.
    """
    path = Path(path)
    text = _read_text(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in header else ",")
    columns = [c for c in reader.fieldnames or [] if c is not None]
    found = f"found {', '.join(columns) or 'an empty file'}"

    def column(what: str, given: str | None, option: str, accepted: tuple[str, ...]) -> str:
        if given is not None:
            if given not in columns:
                raise LabelError(f"{path} must have the {what} column {given} ({option}), {found}")
            return given
        matching = _pick(columns, accepted)
        if len(matching) != 1:
            fault = f"{len(matching)} such columns" if matching else "none of them"
            raise LabelError(
                f"{path} must have one {what} column ({', '.join(accepted)}, or name it with {option}): {fault}, {found}"
            )
        return matching[0]

    file_name = column("file", file_column, "--file-column", FILE_COLUMNS)
    score_name = column("score", score_column, "--score-column", SCORE_COLUMNS)
    optional = {}
    for key, accepted in (("reference", REFERENCE_COLUMNS), ("distortion", DISTORTION_COLUMNS), ("split", ("split",))):
        optional[key] = next(iter(_pick(columns, accepted)), None)
    files, scores, extra = [], [], {k: [] for k, c in optional.items() if c}
    seen: dict[str, int] = {}
    for row in reader:
        where = f"{path} line {reader.line_num}"
        file = (row[file_name] or "").strip().replace("\\", "/")
        if not file:
            raise LabelError(f"{where} must name a file, got an empty {file_name}")
        if file in seen:
            raise LabelError(f"{where} names {file} again (first in line {seen[file]})")
        seen[file] = reader.line_num
        files.append(file)
        scores.append(_number(row[score_name], f"{where}: {score_name}"))
        for key in extra:
            extra[key].append((row[optional[key]] or "").strip())
            if key == "split":
                extra[key][-1] = _part(extra[key][-1], where)
    if not files:
        raise LabelError(f"{path} must have at least one row, got only the header")
    score = np.array(scores)
    low, high = scale or (float(score.min()), float(score.max()))
    if lower_better is None:
        lower_better = score_name.strip().lower() == "dmos"
    name = f"{path.resolve().parent.name}-{path.stem}".lstrip("-")  # many label files are called labels.csv
    return Labels(name, files, score, low, high, lower_better, **extra)


def _part(text: str, where: str) -> str:
    part = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}.get(text.lower(), text.lower())
    if part not in PARTS:
        raise LabelError(f"{where}: split must be one of {', '.join(PARTS)}, got {text!r}")
    return part


def _read_pairs(path: Path) -> list[tuple[str, float]]:
    """Lines of a file name and a number, either first, separated by spaces, a tab or a comma."""
    pairs = []
    for i, line in enumerate(_read_text(path).splitlines(), 1):
        words = re.split(r"[\s,]+", line.strip())
        if words == [""]:
            continue
        if len(words) != 2:
            raise LabelError(f"{path} line {i} must be a file name and a score, got {line!r}")
        name, number = words if re.search(r"\.[A-Za-z]\w*$", words[0]) else reversed(words)
        pairs.append((name, _number(number, f"{path} line {i}: score")))
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
    # label files relative to the root -> how to read one; the first that exists is read
    readers: tuple[tuple[str, Callable[[Path, ImageSet], Labels]], ...]


def _labels(spec: ImageSet, rows: list[tuple], references: bool) -> Labels:
    """Rows of (file, score[, reference, distortion])."""
    columns = list(zip(*rows, strict=True))
    more = {"reference": list(columns[2]), "distortion": list(columns[3])} if references else {}
    return Labels(spec.title, list(columns[0]), np.array(columns[1]), spec.low, spec.high, spec.lower_better, **more)


def _table(file: str | None = None, score: str | None = None, folder: str = "") -> Callable:
    """A reader of a CSV with a header; ``folder`` comes before the names of files."""

    def read(path: Path, spec: ImageSet) -> Labels:
        labels = read_csv(path, score, lower_better=spec.lower_better, scale=(spec.low, spec.high), file_column=file)
        reference = None if spec.references is None else labels.reference
        return replace(labels, name=spec.title, files=[folder + f for f in labels.files], reference=reference)

    return read


def _listed(path: Path, spec: ImageSet) -> Labels:
    """A reader of the normalised lists: dis_img_path begins with the name of the set."""
    labels = _table()(path, spec)
    return replace(labels, files=[f.partition("/")[2] for f in labels.files])


def _named(pattern: str, folder: str) -> Callable:
    """A reader of name-and-score lines; the pattern's groups ``reference`` and ``distortion`` tell both from the name."""

    def read(path: Path, spec: ImageSet) -> Labels:
        rows = []
        for name, score in _read_pairs(path):
            match = re.fullmatch(pattern, name, re.IGNORECASE)
            if match is None:
                raise LabelError(f"{path} must name files like {pattern}, got {name!r}")
            parts = match.groupdict()
            rows.append((folder.format(**parts) + name, score, parts["reference"].lower(), parts["distortion"]))
        return _labels(spec, rows, True)

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
        (f"{folder}/img{i}.bmp", float(s), str(np.asarray(n).item()), folder)
        for (folder, i), s, p, n in zip(places, score, pristine, names, strict=True)
        if not p
    ]
    return _labels(spec, rows, True)


def _clive_mat(path: Path, spec: ImageSet) -> Labels:
    (score,) = _load_mat(path, "AllMOS_release")
    (names,) = _load_mat(path.parent / "AllImages_release.mat", "AllImages_release")
    names = [str(np.asarray(n).item()) for n in names]
    if len(names) != len(score):
        raise LabelError(f"{path} must hold one score for each of {len(names)} images, got {len(score)}")
    rows = [
        (f"Images/{n}", float(s)) for n, s in zip(names, score, strict=True) if not n.startswith("t")
    ]  # t1..t7: training
    return _labels(spec, rows, False)


_CSIQ = _named(r"(?P<reference>\w+)\.(?P<distortion>\w+)\.\d\.png", "dst_imgs/{distortion}/")
_KADID = _named(r"(?P<reference>I\d\d)_(?P<distortion>\d\d)_\d\d\.png", "images/")
_TID = _named(r"(?P<reference>I\d\d)_(?P<distortion>\d\d)_\d\.bmp", "distorted_images/")
_PLAIN = ("labels.csv", _table())  # any set, brought into our own form

SETS: dict[str, ImageSet] = {
    "live": ImageSet(
        "LIVE", 779, 29, 0, 100, True,
        "jp2k/ jpeg/ wn/ gblur/ fastfading/ with img1.bmp ..., dmos_realigned.mat and refnames_all.mat (or LIVE.txt)",
        (("dmos_realigned.mat", _live_mat), ("LIVE.txt", _listed), _PLAIN),
    ),
    "csiq": ImageSet(
        "CSIQ", 866, 30, 0, 1, True,
        "dst_imgs/AWGN|BLUR|JPEG|contrast|fnoise|jpeg2000/ with 1600.AWGN.1.png ..., csiq_label.txt (or CSIQ.txt)",
        (("csiq_label.txt", _CSIQ), ("CSIQ.txt", _listed), _PLAIN),
    ),
    "tid2013": ImageSet(
        "TID2013", 3000, 25, 0, 9, False,
        "distorted_images/ with i01_01_1.bmp ..., mos_with_names.txt (or TID2013.txt)",
        (("mos_with_names.txt", _TID), ("TID2013.txt", _listed), _PLAIN),
    ),
    "kadid10k": ImageSet(
        "KADID-10k", 10125, 81, 1, 5, False,  # the scores are named dmos in the original, yet higher is better
        "images/ with I01_01_01.png ..., dmos.csv (or names_with_mos.txt, or KADID-10k.txt)",
        (("dmos.csv", _table(folder="images/")), ("names_with_mos.txt", _KADID), ("KADID-10k.txt", _listed), _PLAIN),
    ),
    "koniq10k": ImageSet(
        "KonIQ-10k", 10073, None, 1, 5, False,
        "1024x768/ with the photographs, koniq10k_scores_and_distributions.csv (or KonIQ-10k.txt)",
        (
            ("koniq10k_scores_and_distributions.csv", _table("image_name", "MOS", "1024x768/")),
            ("KonIQ-10k.txt", _listed), _PLAIN,
        ),
    ),
    "spaq": ImageSet(
        "SPAQ", 11125, None, 0, 100, False,
        "TestImage/ with 00001.jpg ..., 'Annotations/MOS and Image attribute scores.csv' (the .xlsx saved as CSV; or SPAQ.txt)",
        (
            ("Annotations/MOS and Image attribute scores.csv", _table("Image name", "MOS", "TestImage/")),
            ("SPAQ.txt", _listed), _PLAIN,
        ),
    ),
    "clive": ImageSet(
        "LIVE Challenge", 1162, None, 0, 100, False,
        "Images/ with 3.bmp ..., Data/AllMOS_release.mat and Data/AllImages_release.mat (or LIVE_Challenge.txt)",
        (("Data/AllMOS_release.mat", _clive_mat), ("LIVE_Challenge.txt", _listed), _PLAIN),
    ),
    "flive": ImageSet(
        "FLIVE", 39810, None, 0, 100, False,
        "database/ with voc_emotic_ava/ ..., labels_image.csv (columns name, mos)",
        (("labels_image.csv", _table("name", "mos", "database/")), _PLAIN),
    ),
    "biq2021": ImageSet(
        "BIQ2021", 12000, None, 0, 1, False,
        "the photographs and labels.csv (columns file, mos and, for the official split, split)",
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


def find_files(labels: Labels, root: str | os.PathLike) -> list[Path]:
    """Paths of all images, [n]. Names that differ from the disk in upper and lower case only are found (TID2013's do).

    Raises:
        LabelError: the root is no folder, or files are missing: how many, and the first.
    """
    root = Path(root)
    if not root.is_dir():
        raise LabelError(f"root must be a folder with the images, got {root}, which is not a folder")
    listings: dict[Path, dict[str, str]] = {}
    paths, missing = [], []
    for file in labels.files:
        path = root / file
        if not path.is_file():
            folder = path.parent
            if folder not in listings:
                listings[folder] = {e.lower(): e for e in os.listdir(folder)} if folder.is_dir() else {}
            path = folder / listings[folder].get(path.name.lower(), path.name)
            if not path.is_file():
                missing.append(file)
        paths.append(path)
    if missing:
        raise LabelError(
            f"{len(missing)} of {len(labels)} images of {labels.name} are missing in {root}, the first is {missing[0]}"
        )
    return paths


# ---- splits ----------------------------------------------------------------------------------------------------------
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
