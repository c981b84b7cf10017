"""Scores of images: the labels of a data set, and how a CSV of them is read.

Labels keep the order of the label file, to which published splits refer by position.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from .. import remote

SCALE = ("low", "high", "lower_better")  # what the scale of some scores is
QUALITY = "(score - low) / (high - low), one minus that if lower_better, clipped to 0..1: higher is better"

Scores = TypeVar("Scores", np.ndarray, Tensor)

PARTS = ("train", "val", "test")
FILE_COLUMNS = ("file", "filename", "image", "image_name", "name", "path", "dis_img_path", "dist_img")
SCORE_COLUMNS = ("score", "mos", "dmos")  # recognised without being named; dmos: lower is better
REFERENCE_COLUMNS = ("reference", "ref_img_path", "ref_img")
DISTORTION_COLUMNS = ("distortion", "dis_type")
OPTIONAL = ("reference", "distortion", "level", "split")  # lists of ``Labels`` that may be missing


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
    reference: list[str] | None = (
        None  # [n] what the distorted image was made from: a file relative to the root, or any name
    )
    distortion: list[str] | None = None  # [n]
    level: list[str] | None = None  # [n] of the distortion, as the set numbers them
    split: list[str] | None = None  # [n] of PARTS

    def __len__(self) -> int:
        return len(self.files)

    def take(self, positions: Iterable[int]) -> Labels:
        """The labels of some images, in the order given."""
        positions = list(positions)
        lists = {f: [v[i] for i in positions] for f in ("files", *OPTIONAL) if (v := getattr(self, f))}
        return replace(self, score=self.score[positions], **lists)

    def quality(self) -> np.ndarray:
        """Scores on the common scale, [n] float64, see ``to_quality``."""
        return to_quality(self.score, **self.scale)

    @property
    def scale(self) -> dict:
        """low, high and lower_better, as result files and regressors keep them."""
        return {k: getattr(self, k) for k in SCALE}


def to_quality(score: Scores, low: float, high: float, lower_better: bool) -> Scores:
    """Scores, an array or a tensor -> the common scale: 0 and 1 are the ends of their own, higher is better; not clipped."""
    q = (score - low) / (high - low)
    return 1 - q if lower_better else q


def describe_scale(low: float, high: float, lower_better: bool) -> str:
    """The ends of a scale and its direction, in words."""
    return f"{low:g}..{high:g}, {'lower' if lower_better else 'higher'} is better"


def read_label_file(path: Path | str) -> str:
    try:
        return remote.read_text(path) if remote.is_url(path) else Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"cannot read labels {path}: {remote.why(error)}") from None
    except UnicodeDecodeError as error:
        raise LabelError(f"labels {path} must be UTF-8 text: {error.reason} at byte {error.start}") from None


def _pick(columns: list[str], accepted: tuple[str, ...]) -> list[str]:
    return [c for c in columns if c.strip().lower() in accepted]


def read_number(text: str | None, where: str) -> float:
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
    """Labels from a CSV (or tab-separated) file with a header: file, score and any of reference, distortion,
    level, split.

    Args:
        path: of the file, or a URL (see ``remote``).
        score_column: name of the score's column; default ``score``, ``mos`` or ``dmos``, whichever there is.
        lower_better: direction; default False, but True for a column named dmos.
        scale: ends of the scale, low first; default the smallest and largest score.
        file_column: name of the column of files; default one of ``FILE_COLUMNS``.

    Raises:
        LabelError: an unreadable file, missing or ambiguous columns (named, with those found), a score that is no number, a
            file named twice, an unknown part in ``split``; with the line number.
    """
    path = path if remote.is_url(path) else Path(path)
    text = read_label_file(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in header else ",")
    columns = [c for c in reader.fieldnames or [] if c is not None]
    found = f"found {', '.join(columns) or 'an empty file'}"
    if len(columns) == 1 and ";" in header:
        raise LabelError(f"columns of {path} must be separated by commas or tabs, got semicolons: {header.strip()}")

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
    accepted_names = {"reference": REFERENCE_COLUMNS, "distortion": DISTORTION_COLUMNS}
    for key in OPTIONAL:
        accepted = accepted_names.get(key, (key,))
        optional[key] = next(iter(_pick(columns, accepted)), None)
    files, scores, extra = [], [], {k: [] for k, c in optional.items() if c}
    seen: dict[str, int] = {}
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if any(cell.strip() for cell in row.get(None, ())):  # a decimal comma, or a comma in a name without quotes
            got = len(columns) + len(row[None])
            raise LabelError(f"{where} must have the {len(columns)} cells of the header, got {got}")
        file = (row[file_name] or "").strip().replace("\\", "/")
        if not file:
            raise LabelError(f"{where} must name a file, got an empty {file_name}")
        if file in seen:
            raise LabelError(f"{where} names {file} again (first in line {seen[file]})")
        seen[file] = reader.line_num
        files.append(file)
        scores.append(read_number(row[score_name] or "", f"{where}: {score_name}"))
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
    if isinstance(path, Path):
        folder, stem = path.resolve().parent.name, path.stem
    else:
        folder, stem = remote.base_name(remote.parent(path)), os.path.splitext(remote.base_name(path))[0]
    name = f"{folder}-{stem}".lstrip("-")  # many label files are called labels.csv
    return Labels(name, files, score, low, high, lower_better, **extra)


def _part(text: str, where: str) -> str:
    part = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}.get(text.lower(), text.lower())
    if part not in PARTS:
        raise LabelError(f"{where}: split must be one of {', '.join(PARTS)}, got {text!r}")
    return part


def find_files(labels: Labels, root: str | os.PathLike) -> list[Path | str]:
    """Paths of all images, [n]; their URLs, where the root is one. Names that differ from the disk only in upper and lower case (TID2013's do)
    or in how Unicode composes a letter are found.

    Raises:
        LabelError: the root is no folder; files are missing: how many, and the first; one image under two names (it could
            be in train and test).
    """
    paths = _find(labels.files, root, f"images of {labels.name}", "")
    first: dict[str, str] = {}
    for name, path in zip(labels.files, paths, strict=True):
        other = first.setdefault(path if remote.is_url(path) else os.path.abspath(path), name)
        if other != name:
            raise LabelError(f"{labels.name} must name every image once, got {other} and {name}, which are one file")
    return paths


def find_references(labels: Labels, root: str | os.PathLike, layout: str = "") -> list[Path | str]:
    """Paths of the references of all images, [n], found as ``find_files`` does.

    Args:
        layout: where the set keeps them, told in errors.

    Raises:
        LabelError: labels without references, or references that are not there.
    """
    layout = layout or "the reference column must name files relative to the root"
    if labels.reference is None:
        raise LabelError(f"full reference needs labels that name references, {labels.name} has none: {layout}")
    return _find(labels.reference, root, f"references of {labels.name}", f": {layout}")


def _find(names: list[str], root: str | os.PathLike, what: str, layout: str) -> list[Path | str]:
    distant = remote.is_url(root)
    if not (remote.is_folder(root) if distant else Path(root).is_dir()):
        raise LabelError(f"root must be a folder with the images, got {root}, which is not a folder")
    found = _find_by_url(names, root) if distant else _find_on_disk(names, Path(root))
    missing = [name for name in dict.fromkeys(names) if name not in found]
    if missing:
        first = f"the first is {missing[0]}{layout}"
        raise LabelError(f"{len(missing)} of {len(set(names))} {what} are missing in {root} (--root), {first}")
    return [found[name] for name in names]


def _plain(name: str) -> str:  # é can be one character or two
    return unicodedata.normalize("NFC", name).lower()


def _find_by_url(names: list[str], root: str) -> dict[str, str]:
    there = {_plain(name): name for name in remote.find(root)}
    exact = set(there.values())
    chosen = {name: name if name in exact else there.get(_plain(name)) for name in names}
    return {name: remote.join(root, place) for name, place in chosen.items() if place is not None}


def _find_on_disk(names: list[str], root: Path) -> dict[str, Path]:
    listings: dict[Path, dict[str, str]] = {}
    found: dict[str, Path] = {}
    for name in dict.fromkeys(names):
        path = root / name
        if not path.is_file():
            folder = path.parent
            if folder not in listings:
                listings[folder] = {_plain(e): e for e in os.listdir(folder)} if folder.is_dir() else {}
            path = folder / listings[folder].get(_plain(path.name), path.name)
            if not path.is_file():
                continue
        found[name] = path
    return found
