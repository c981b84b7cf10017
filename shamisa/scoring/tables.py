"""Photographs by their names, and the tables of their scores: what ``shamisa score`` and scores on Ray share."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import remote
from ..data.photos import PhotoError, PhotoFolder, PhotoList
from ..datasets.labels import describe_scale
from ..files import printable, write_json, write_text
from ..networks.checkpoints import read_json

if TYPE_CHECKING:
    from ..scorer import Scorer

COLUMNS = ("file", "score", "raw", "error")
FORMATS = (".csv", ".jsonl")
META = ".meta.json"  # after the name of a table


# ---- files in --------------------------------------------------------------------------------------------------------
def gather(paths: Sequence[str], others: Counter[str] | None = None) -> tuple[list[str], list[PhotoError]]:
    """Photographs named by files, folders, patterns and .txt lists: each once, in order; and folders that cannot be listed.

    others: here files in folders that are no photographs are counted, by ending.

    Each may be a URL, see ``remote``. Raises ValueError for a path or pattern that leads to nothing.
    """
    found: dict[str, None] = {}
    closed: list[PhotoError] = []
    for given in paths:
        distant = remote.is_url(given)
        exists, is_folder = (remote.exists, remote.is_folder) if distant else (os.path.exists, os.path.isdir)
        try:
            there = exists(given)
            matching = [given] if there else remote.glob(given) if distant else sorted(glob.glob(given, recursive=True))
        except remote.RemoteError as error:
            raise ValueError(
                f"paths must be photographs, folders, patterns or .txt lists, got {given!r}: {error.reason}"
            ) from None
        if not matching:
            absent = "no such file, folder or bucket" if distant else "no such file or folder"
            what = "a pattern that matches nothing" if glob.has_magic(given) else absent
            raise ValueError(f"paths must be photographs, folders, patterns or .txt lists, got {given!r}: {what}")
        for path in matching:
            folder = is_folder(path) if there or not distant else False  # a pattern by URL matches only files
            if folder or path.partition("::")[0].lower().endswith(".txt"):
                if path != given and folder:
                    continue  # ** matches the folders as well as what is in them
                source = (PhotoFolder if folder else PhotoList)(path)
                found.update((source.path(i), None) for i in range(len(source)))
                if others is not None:
                    others.update(source.others)
                closed += [PhotoError(os.path.join(path, name), reason) for name, reason in source.skipped.items()]
            else:
                found[path] = None
    return list(found), closed


# ---- table out -------------------------------------------------------------------------------------------------------
def about(scorer: Scorer) -> dict:
    """What made a table, and what its numbers mean: JSON values."""
    return {
        "encoder_hash": scorer.extractor.hash,
        "regressor": scorer.regressor.about,
        **({"view": scorer.extractor.view} if scorer.extractor.view else {}),  # tables of before know none
        "coef_hash": hashlib.sha256(scorer.regressor.coef.numpy().tobytes()).hexdigest(),
        "score": "0..1, higher is better",
        "raw": describe_scale(**scorer.regressor.scale),
    }


def round_row(file: str, score: float | None, raw: float | None, error: str | None) -> tuple:
    """A row as tables hold it: scores of six digits."""
    return file, None if score is None else round(score, 6), None if raw is None else round(raw, 6), error


def rows(scorer: Scorer, paths: Sequence[str]) -> Iterator[tuple]:
    """Files -> rows as tables hold them: file, score, raw, error; in order, in bounded memory."""
    for result in scorer.stream(paths):
        if isinstance(result, PhotoError):
            yield round_row(printable(result.path), None, None, result.reason)
        else:
            path, quality, raw = result
            yield round_row(printable(path), quality, raw, None)


def row_text(kind: str, row: tuple) -> str:
    """A row as a line of a .csv or .jsonl table."""
    if kind == ".jsonl":
        return json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["" if v is None else v for v in row])
    return text.getvalue()


def read_rows(out: Path) -> list[tuple]:
    """Complete rows of a table that a killed process may have left with a torn end."""
    text = out.read_text(encoding="utf-8")
    text = text[: text.rfind("\n") + 1]
    if out.suffix == ".jsonl":
        return [tuple(json.loads(line)[c] for c in COLUMNS) for line in text.splitlines()]
    rows = list(csv.reader(io.StringIO(text)))[1:]
    rows = rows[:-1] if rows and len(rows[-1]) != len(COLUMNS) else rows  # torn inside a quoted name with a line break
    return [(f, float(s) if s else None, float(r) if r else None, e or None) for f, s, r, e in rows]


class Table:
    """The table being written; every row is on its way to the disk before the next photograph is scored.

    ``out.meta.json`` beside it says which encoder and regressor made it and what the numbers mean; ``resume`` refuses
    another.

    Where ``out`` is a URL, whose objects cannot be added to, the table is a local file that is copied there every
    ``UPLOAD`` seconds and at the end: a killed process loses the rows since the last copy, and ``resume`` scores those
    photographs again.
    """

    UPLOAD = 60.0  # seconds between copies; twenty times as long as a copy takes, where that is more

    def __init__(self, out: Path | str, meta: dict, resume: bool) -> None:
        self.url, self.wait, self.copied = (
            (out, self.UPLOAD, time.monotonic()) if remote.is_url(out) else ("", 0.0, 0.0)
        )
        if self.url:
            out = remote.temporary_folder() / remote.base_name(self.url)
            for suffix in ("", META) if resume else ():
                if remote.is_file(self.url + suffix):
                    remote.fetch(self.url + suffix, out.parent)
        self.kind, self.done = out.suffix, set()
        self.failed: list[str] = []  # reasons in earlier rows
        beside = out.with_name(out.name + META)
        if resume and out.exists():
            if (found := read_json(beside)) != meta:
                changed = ", ".join(k for k in {**meta, **found} if found.get(k) != meta.get(k))
                raise ValueError(f"{self.url or out} was started with another {changed}: it cannot be resumed")
            rows = read_rows(out)
            self.done, self.failed = {r[0] for r in rows}, [r[3] for r in rows if r[3] is not None]
        else:
            rows = []
            write_json(beside, meta)
        head = ",".join(COLUMNS) + "\n" if self.kind == ".csv" else ""
        write_text(out, head + "".join(row_text(self.kind, r) for r in rows))  # without a torn end
        self.path, self.file = out, out.open("a", encoding="utf-8")
        if self.url:
            remote.write(self.url + META, beside.read_bytes())
            self._copy()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if self.url:
            self._copy()

    def _copy(self) -> None:
        start = time.monotonic()
        remote.write(self.url, self.path.read_bytes())
        self.copied = time.monotonic()
        self.wait = max(self.UPLOAD, 20 * (self.copied - start))

    def add(self, *row: str | float | None) -> None:
        """One row: file, score, raw, error."""
        self.file.write(row_text(self.kind, row))
        self.file.flush()
        if self.url and time.monotonic() > self.copied + self.wait:
            self._copy()
