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
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from . import remote
from .cli import guard
from .data.decode import TRUNCATED, is_truncated
from .data.formats import count as count_of
from .data.formats import describe_ignored, shorten
from .data.photos import PhotoError
from .files import printable
from .scorer import FITTED, Scorer, load_scorer
from .scoring.runtimes import RUNTIMES
from .scoring.tables import COLUMNS, FORMATS, META, Table, about, gather, read_rows, row_text, rows  # noqa: F401  (public names)


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
