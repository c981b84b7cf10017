"""The ``shamisa`` command: ``shamisa train|probe|score|serve|... ...``, as ``python -m shamisa.NAME``."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from .files import printable

COMMANDS = {
    "train": "train an encoder without labels (without arguments: a short demonstration)",
    "probe": "fit a ridge regressor on frozen features and report SRCC and PLCC",
    "score": "score photographs with the packaged model, or with a trained encoder and a regressor",
    "serve": "serve scores over HTTP, with a page to drop a photograph on",
    "export": "export the packaged model, or encoder and regressor, as one program, .onnx or .pt2",
    "data": "check photographs, or pack them into tar shards",
    "distort": "draw the distortions of a photograph: each at 5 levels, or random compositions",
    "bench": "measure the engine and the objective on this machine",
}


INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C


class _Lines(logging.Handler):
    """Plain lines on what is stderr at the time, whatever the bytes of a path in them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr)


def show_log() -> None:
    """What the package logs below the commands (logger "shamisa") comes on stderr from now on, from INFO upwards."""
    log = logging.getLogger("shamisa")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
        log.setLevel(logging.INFO)


def complain(command: str, message: object, status: int) -> int:
    """One line on stderr, whatever the bytes of a path in it; -> the status."""
    print(printable(f"shamisa {command}: {message}"), file=sys.stderr)
    return status


def guard(command: str, work: Callable[[], int], left: str) -> int:
    """``work()`` -> its exit status; 2 for bad input, 130 after Ctrl-C, both told in one line.

    left: what an interrupted command has left, and how to go on.
    """
    show_log()
    try:
        return work()
    except (ValueError, RuntimeError, OSError) as error:
        return complain(command, error, 2)
    except KeyboardInterrupt:
        return complain(command, f"interrupted; {left}", INTERRUPTED)


def main(argv: list[str] | None = None) -> int:
    """Entry point: the first word chooses the command, the rest goes to it. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        module = {"distort": "sheet", "data": "data.__main__"}.get(argv[0], argv[0])
        try:
            return import_module(f"shamisa.{module}").main(argv[1:]) or 0
        except KeyboardInterrupt:  # while it is imported
            return complain(argv[0], "interrupted; nothing was done", INTERRUPTED)
    if argv == ["--version"]:
        from ._version import __version__

        print(f"shamisa {__version__}")
        return 0
    usage = "usage: shamisa COMMAND ...\n\ncommands:\n" + "".join(f"  {n:10}{text}\n" for n, text in COMMANDS.items())
    usage += "\n`shamisa COMMAND --help` explains a command.\n"
    if argv in ([], ["--help"], ["-h"]):
        print(usage, end="")
        return 0
    print(f"shamisa: unknown command {argv[0]!r}\n\n{usage}", end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
