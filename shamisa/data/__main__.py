"""Check photographs, and pack them into tar shards.

PATH is whatever training accepts: a folder (searched recursively), a list file, a .tar, a folder of them, a pattern such
as DIR/shard-{000000..000009}.tar, - for a tar on standard input, or pipe:COMMAND.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from .. import checks
from ..cli import complain, guard
from ..files import write_json
from .decode import MAX_BYTES, MAX_PIXELS, MAX_SECONDS, MIN_SIDE, TRUNCATED, PhotoError
from .formats import count, shorten
from .opening import open_photos
from .pack import PackError, pack
from .verify import describe, is_good, summarize, survey


def size(text: str) -> int:
    """ "1G", "500M", "64k" (powers of 1024) or a plain number -> bytes."""
    match = re.fullmatch(r"(\d+)([kKMGT]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a number of bytes such as 500M or 1G, got {text!r}")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]


def make_parser() -> argparse.ArgumentParser:
    """The two commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m shamisa.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser(
        "verify",
        help="read every photograph and report problems",
        description="Report counts, sizes, formats, unreadable photographs with the reason, and exact duplicates. Shards are "
        "checked against the manifest.json in their folder. Exit status 1 if anything is bad (duplicates are not).",
    )
    verify.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    packing = commands.add_parser(
        "pack",
        help="copy photographs into tar shards with a manifest",
        description="Pack photographs with their original bytes and names, in sorted order; packing twice gives identical "
        "files. The folder appears only once it is complete. Exit status 1 if a photograph cannot be read, unless "
        "--skip-bad is given.",
    )
    packing.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the shards")
    packing.add_argument("--shard-size", type=size, metavar="SIZE", help="largest size of a shard, such as 500M [1G]")
    packing.add_argument("--shard-count", type=int, metavar="N", help="write N shards, instead of --shard-size")
    packing.add_argument("--skip-bad", action="store_true", help="leave out photographs that cannot be read")
    for command in (verify, packing):
        command.add_argument("path", metavar="PATH", help="photographs")
        command.add_argument(
            "--workers", type=int, default=0, metavar="N", help="decoding processes; 0: decode in this one [0]"
        )
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        command.add_argument(
            "--min-side", type=int, default=MIN_SIDE, help="shortest side accepted, in pixels [%(default)s]"
        )
        command.add_argument(
            "--max-pixels", type=int, default=MAX_PIXELS, help="largest number of pixels accepted [%(default)s]"
        )
        command.add_argument(
            "--max-bytes", type=size, default=MAX_BYTES, help="largest file accepted, in bytes or as 500M [%(default)s]"
        )
        command.add_argument(
            "--max-seconds",
            type=float,
            default=MAX_SECONDS,
            help="seconds that decoding one photograph may take; 0: no limit [%(default)s]",
        )
        command.add_argument(
            "--truncated",
            choices=TRUNCATED,
            default="skip",
            help="a JPEG without its end marker or its last rows: leave it out, or read it as far as it goes, as viewers do "
            "[%(default)s]",
        )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command -> 0 good, 1 something is bad, 2 bad input, 130 interrupted."""
    given = make_parser().parse_args(argv)
    left = f"{given.out} was not made; start it again" if given.command == "pack" else "nothing was written"
    return guard("data", lambda: run(given), left)


def run(given: argparse.Namespace) -> int:
    """Everything between the command line and the exit status."""
    limits = {
        name: getattr(given, name) for name in ("min_side", "max_pixels", "max_bytes", "max_seconds", "truncated")
    }
    checks.within("--workers", given.workers, 0)
    try:
        if given.command == "verify":
            if given.json is not None and (given.json.is_dir() or not given.json.parent.is_dir()):
                raise ValueError(f"--json must be a file in an existing folder, got {given.json}")
            source = open_photos(given.path, **limits)
            summary = summarize(source, list(survey(source, given.workers, given.quiet)))
            if given.json is not None:
                write_json(given.json, summary)
            print(describe(summary))
            return 0 if is_good(summary) else 1
        options = {"shard_size": given.shard_size, "shard_count": given.shard_count, "skip_bad": given.skip_bad}
        source = open_photos(given.path, **limits)
        if source.ignored:
            print(source.ignored, file=sys.stderr)
        manifest = pack(source, given.out, workers=given.workers, quiet=given.quiet, **options)
    except (PackError, PhotoError) as error:
        return complain("data", error, 1)
    cut_off = manifest["truncated"]
    print(
        f"{given.out}: {manifest['photographs']} photographs in {len(manifest['shards'])} shards, "
        f"{manifest['bytes'] / 2**20:.1f} MiB; {len(manifest['skipped'])} left out"
        + (f"; {count(len(cut_off), 'truncated JPEG')} packed: {shorten(cut_off)}" if cut_off else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
