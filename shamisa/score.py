"""Score photographs: one number in 0..1 for each, higher is better.

Without options the packaged model scores them, and a line with file and score is printed for each. With --out or
--checkpoint a table is written.

PATHS are photographs, folders (searched recursively), patterns with * or **, and .txt lists of one path per line; each may
be a URL (s3://, gs://, hf://, https://, zip://FOLDER::FILE.zip, ...), and so may the checkpoint, the regressor and the
table, which is then copied there every minute. The table
has one row per photograph: file, score, raw (the score on the scale of the regressor's training labels), error. Photographs
that cannot be read have an error and no scores. Exit status: 0 all scored, 1 some could not be read, 2 bad input (nothing
done).
"""

from __future__ import annotations

import argparse
import csv
import glob
import hashlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import remote
from .cli import guard
from .data.decode import TRUNCATED, is_truncated
from .data.formats import count as count_of
from .data.formats import describe_ignored, shorten
from .data.photos import PhotoError, PhotoFolder, PhotoList
from .datasets.labels import describe_scale
from .files import printable, write_json, write_text
from .networks.checkpoints import read_json
from .scorer import FITTED, Scorer, load_scorer
from .scoring.runtimes import RUNTIMES

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
            what = "a pattern that matches nothing" if glob.has_magic(given) else "no such file or folder"
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
                changed = ", ".join(k for k in meta if found.get(k) != meta[k])
                raise ValueError(f"{out} was started with another {changed}: it cannot be resumed")
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


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="shamisa score",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="photographs, folders, patterns, .txt lists")
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="run folder, or whatever else the probe accepts as --checkpoint [the packaged model]",
    )
    parser.add_argument(
        "--regressor", metavar="FILE", help="regressor.safetensors written by the probe [that of the packaged model]"
    )
    parser.add_argument(
        "--view",
        default=FITTED,
        metavar="PIXELS|full|fitted",
        help="viewing size: larger photographs are shrunk to it first, pixels of the longer side; full: no limit; fitted: "
        "that of the regressor [%(default)s; 1024 for the packaged model]",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="table to write, .csv or .jsonl [scores.csv; for the packaged model none: lines on standard output]",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an existing table: photographs that have a row are not scored again",
    )
    parser.add_argument(
        "--batch", type=int, help="photographs per encoder call, ten crops each [1 on a CPU, 8 on a GPU]"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="decoding threads; together they hold at most 100 megapixels [2]"
    )
    parser.add_argument(
        "--truncated",
        choices=TRUNCATED,
        default="skip",
        help="a JPEG without its end marker or its last rows: leave it out, or read it as far as it goes [%(default)s]",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N [auto]")
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="what runs the encoder: torch, or on a CPU openvino, faster for many photographs [%(default)s]",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    ray = parser.add_argument_group(
        "on a Ray cluster", "--out is then a folder, or the URL of one, for tables in parts [scores]"
    )
    ray.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="score on the cluster at HOST:PORT, or auto; without an address on all CPUs of this machine",
    )
    ray.add_argument(
        "--format", choices=("parquet", "csv", "jsonl"), default="parquet", help="of the parts [%(default)s]"
    )
    ray.add_argument("--part", type=int, default=1000, help="photographs of a part [%(default)s]")
    ray.add_argument("--actors", type=int, help="processes that hold the encoder [as many as there is room for]")
    ray.add_argument("--gpus", type=float, default=0.0, help="GPUs of each of them, such as 1 or 0.5 [0: the CPU]")
    return parser


def open_place(out: str, formats: Sequence[str], resume: bool) -> Path | str:
    """The place of a table, a local path or a URL; ValueError where it cannot be written there, or stands there."""
    distant = remote.is_url(out)
    place = out if distant else Path(out)
    if os.path.splitext(remote.base_name(out) if distant else out)[1] not in formats:
        raise ValueError(f"--out must end in {' or '.join(formats)}, got {out!r}")
    try:
        if (remote.exists(out) if distant else place.exists()) and not resume:
            raise ValueError(f"--out {out} exists: continue with --resume, or choose another")
        if distant:
            remote.check_writable(out)
    except remote.RemoteError as error:
        raise ValueError(f"--out must be a URL that can be written to, got {out}: {error.reason}") from None
    if not distant and not place.parent.is_dir():
        raise ValueError(f"--out must lie in an existing folder, got {place.parent}")
    return place


def run(given: argparse.Namespace) -> int:
    """Number of photographs that could not be scored, earlier rows of a resumed table included.

    Raises ValueError or RuntimeError for bad input, before anything is written.
    """
    from tqdm import tqdm

    if given.ray is not None:
        from .ray import command

        return command(given)
    if given.out is None and given.checkpoint is None:
        return print_scores(given)
    out = open_place(given.out or "scores.csv", FORMATS, given.resume)
    others: Counter[str] = Counter()
    paths, closed = gather(given.paths, others)
    if others:
        print(describe_ignored(others), file=sys.stderr)
    scorer = open_scorer(given)
    table = Table(out, about(scorer), given.resume)
    todo = [p for p in paths if printable(p) not in table.done]
    failed = list(closed)
    bar = tqdm(total=len(paths), initial=len(paths) - len(todo), unit="image", disable=given.quiet)
    with table, bar:
        for row in rows(scorer, todo):
            table.add(*row)
            if row[3] is not None:
                failed.append(PhotoError(row[0], row[3]))
            bar.update()
    for error in failed:
        print(f"cannot be scored: {printable(error.path)}: {error.reason}", file=sys.stderr)
    scored = len(todo) - (len(failed) - len(closed))
    count = len(failed) + len(table.failed)
    earlier = f", {len(table.done)} rows from before" if table.done else ""
    left_out = sum(map(is_truncated, [error.reason for error in failed] + table.failed))
    cut_off = [f"{count_of(left_out, 'truncated JPEG')} among them (--truncated read)"] if left_out else []
    if scorer.extractor.cut_off:
        names = shorten([printable(path) for path in scorer.extractor.cut_off])
        cut_off.append(f"{count_of(len(scorer.extractor.cut_off), 'truncated JPEG')} scored as far as they go: {names}")
    print(
        "; ".join([f"{out}: {scored} of {len(paths)} photographs scored{earlier}; {count} could not be read", *cut_off])
    )
    return count


def open_scorer(given: argparse.Namespace) -> Scorer:
    """The scorer that the command line asks for."""
    names = ("view", "device", "batch", "workers", "truncated", "runtime")
    return load_scorer(given.checkpoint, given.regressor, **{name: getattr(given, name) for name in names})


def print_scores(given: argparse.Namespace) -> int:
    """Lines of file and score on standard output, each as soon as it is known; as ``run``."""
    if given.resume:
        raise ValueError("--resume needs --out FILE, the table to continue, got none")
    others: Counter[str] = Counter()
    paths, closed = gather(given.paths, others)
    if others:
        print(describe_ignored(others), file=sys.stderr)
    failed = list(closed)
    for result in open_scorer(given).stream(paths):
        if isinstance(result, PhotoError):
            failed.append(result)
        else:
            print(f"{printable(result[0])} {result[1]:.4f}", flush=True)
    for error in failed:
        print(f"cannot be scored: {printable(error.path)}: {error.reason}", file=sys.stderr)
    return len(failed)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all scored, 1 some could not be read, 2 bad input, 130 interrupted."""
    given = make_parser().parse_args(argv)
    printed = given.out is None and given.checkpoint is None
    left = "the rest was not scored" if printed else f"continue with --resume --out {given.out or 'scores.csv'}"
    return guard("score", lambda: 1 if run(given) else 0, left)


if __name__ == "__main__":
    sys.exit(main())
