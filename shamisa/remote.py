"""Files by URL: ``s3://``, ``gs://``, ``hf://``, ``https://``, ``memory://``, ``zip://...::s3://...``, whatever fsspec opens.

Local paths never come here: every function that takes either asks ``is_url`` first. What fails for a moment is tried
``ATTEMPTS`` times; what is absent or forbidden fails at once. All errors are ``RemoteError`` with a reason of one line.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

ATTEMPTS = 4
WAIT = 0.5  # seconds before the second attempt, doubled before each further one
BLOCK = 1 << 20  # bytes that ``open_file`` reads at a time

_URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)", re.I)  # two characters before the colon: C: is a drive
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError)
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError")  # botocore's

T = TypeVar("T")


class RemoteError(OSError):
    """A URL that cannot be read, listed or written, and the ``reason``."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url, self.reason = url, reason

    def __reduce__(self) -> tuple:
        return RemoteError, (self.url, self.reason)


def is_url(path: object) -> bool:
    """Whether this is a URL for fsspec; any ``Path`` is a local one."""
    return isinstance(path, str) and _URL.match(path) is not None


def why(error: Exception) -> str:
    """The reason of an error of a file, local or not, without its name."""
    if isinstance(error, RemoteError):
        return error.reason
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def check_local(name: str, path: str | os.PathLike) -> None:
    """ValueError where a place that must be local is a URL, also one that ``Path`` has rewritten (``s3:/bucket``)."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path), re.I):
        raise ValueError(f"{name} must be a local path, got {os.fspath(path)!r}: URLs are for reading, and for scores")


def base_name(url: str) -> str:
    """The last part of a URL's path, without what is chained behind ``::``."""
    return _parts(url)[1].rpartition("/")[2]


def join(url: str, name: str) -> str:
    """The URL of a file below a folder's."""
    head, chain, rest = url.partition("::")
    return f"{head if head.endswith('/') else head + '/'}{name}{chain}{rest}"


def parent(url: str) -> str:
    """The URL of the folder that a file lies in."""
    scheme, path, rest = _parts(url)
    return f"{scheme}{path.rpartition('/')[0]}{rest}"


def _parts(url: str) -> tuple[str, str, str]:
    """("zip://", "a/b", "::s3://...") of a URL."""
    head, chain, rest = url.partition("::")
    scheme, slashes, path = head.partition("://")
    return scheme + slashes, path.rstrip("/"), chain + rest


# ---- attempts --------------------------------------------------------------------------------------------------------
def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL and the path in it. fsspec keeps one instance for each process, also after a fork."""
    try:
        import fsspec.core

        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise RemoteError(url, f"needs another package ({error}): pip install 'shamisa[remote]' serves s3://") from None


def _try(url: str, function: Callable[[Any, str], T]) -> T:
    """function(file system, path), again after errors that may pass; RemoteError in the end."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function(*_system(url))
        except RemoteError:
            raise
        except Exception as error:  # each file system has exceptions of its own
            if isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES:
                raise RemoteError(url, _reason(error)) from None
            if attempt == ATTEMPTS:
                raise RemoteError(url, f"failed {ATTEMPTS} times, the last time by {_reason(error)}") from None
            time.sleep(WAIT * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file, folder or bucket"
    if isinstance(error, IsADirectoryError):
        return "is a directory"
    text = " ".join((str(error) or "no message").split())
    return f"access denied ({text})" if isinstance(error, PermissionError) else f"{type(error).__name__}: {text}"


# ---- reading ---------------------------------------------------------------------------------------------------------
def exists(url: str) -> bool:
    """Whether there is a file or a folder; RemoteError where that cannot be found out."""
    return _kind(url) is not None


def is_folder(url: str) -> bool:
    """Whether there is a folder, or anything below this name."""
    return _kind(url) == "directory"


def is_file(url: str) -> bool:
    """Whether there is a file."""
    return _kind(url) == "file"


def _kind(url: str) -> str | None:
    def ask(system: Any, path: str) -> str | None:
        try:
            return system.info(path)["type"]
        except FileNotFoundError:
            return None

    return _try(url, ask)


def size(url: str) -> int:
    """Bytes of a file."""

    def ask(system: Any, path: str) -> int:
        about = system.info(path)
        if about["type"] == "directory":
            raise IsADirectoryError(path)
        if about.get("size") is None:
            raise ValueError("its size is unknown")
        return int(about["size"])

    return _try(url, ask)


def read(url: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of a file, or those from ``start`` to ``stop``."""
    if stop is not None and stop <= start:
        return b""
    span = {} if start == 0 and stop is None else {"start": start, "end": stop}
    return _try(url, lambda system, path: system.cat_file(path, **span))


def read_text(url: str) -> str:
    """A text file in UTF-8, with or without a mark; UnicodeDecodeError for another encoding."""
    return read(url).decode("utf-8-sig")


def open_file(url: str) -> BinaryIO:
    """A file to read, with seek. Only its opening is tried again."""
    return _try(url, lambda system, path: system.open(path, "rb", block_size=BLOCK))


def find(url: str) -> list[str]:
    """Names of all files below a folder, relative to it, sorted; without those that begin with a dot or lie below such."""

    def ask(system: Any, path: str) -> list[str]:
        root = path.rstrip("/")
        names = [found[len(root) :].lstrip("/") if root else found.lstrip("/") for found in system.find(path)]
        return sorted(n for n in names if n and not any(part.startswith(".") for part in n.split("/")))

    return _try(url, ask)


def glob(url: str) -> list[str]:
    """URLs of the files that match a pattern, sorted."""
    scheme, _, rest = _parts(url)

    def named(system: Any, found: str) -> str:
        if scheme in ("file://", "local://") or "://" in found:
            return system.unstrip_protocol(found)
        return f"{scheme}{found.lstrip('/')}{rest}"

    def ask(system: Any, path: str) -> list[str]:
        matching = system.glob(path, detail=True)
        return [named(system, found) for found in sorted(matching) if matching[found]["type"] != "directory"]

    return _try(url, ask)


# ---- writing, and copies ---------------------------------------------------------------------------------------------
def write(url: str, content: bytes) -> None:
    """Replace a file. Object stores do so at once: readers see the old content or the new."""

    def put(system: Any, path: str) -> None:
        system.pipe_file(path, content)
        system.invalidate_cache()

    _try(url, put)


def check_writable(url: str) -> None:
    """RemoteError where no file can be written beside this URL: tried with an empty one, which is removed."""
    probe = join(parent(url), f".{base_name(url)}.{os.getpid()}")
    write(probe, b"")
    _try(probe, lambda system, path: system.rm_file(path))


_copies: list[str] = []  # the folder for copies, made when first needed


def temporary_folder() -> Path:
    """A new folder that is removed when the process ends."""
    if not _copies:
        _copies.append(tempfile.mkdtemp(prefix="shamisa-"))
        owner = os.getpid()
        atexit.register(lambda: os.getpid() == owner and shutil.rmtree(_copies[0], ignore_errors=True))
    return Path(tempfile.mkdtemp(dir=_copies[0]))


def fetch(url: str, folder: Path | None = None) -> Path:
    """A copy of a file in a local folder, by default a new temporary one, under its own name."""
    target = (folder or temporary_folder()) / base_name(url)
    size(url)  # its error for a folder
    _try(url, lambda system, path: system.get_file(path, str(target)))
    return target
