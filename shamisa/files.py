"""Small files: written at once or not at all, their SHA-256, and their names in print."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from . import remote

_ESCAPED = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)}  # how Python holds such bytes in a str


def sync(path: Path) -> None:
    """Flush a file or the entries of a folder to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders; its renames are journalled
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file at once: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """As ``write_text``; NaN and infinity raise ValueError, because they are not JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


# ---- paths or URLs ---------------------------------------------------------------------------------------------------
def is_file(path: str | os.PathLike) -> bool:
    """Whether there is such a file, by path or URL."""
    return remote.is_file(path) if remote.is_url(path) else os.path.isfile(path)


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of a file, by path or URL; OSError where it cannot be read."""
    return remote.read(path) if remote.is_url(path) else Path(path).read_bytes()


def size_of(path: str | os.PathLike) -> int:
    """Bytes of a file, by path or URL; OSError where there is none."""
    return remote.size(path) if remote.is_url(path) else os.path.getsize(path)


def folder_of(path: str | os.PathLike) -> str:
    """The folder, or its URL, that a file lies in."""
    return remote.parent(path) if remote.is_url(path) else os.path.dirname(path)


def in_folder(folder: str | os.PathLike, name: str) -> str:
    """The path, or the URL, of a file in a folder."""
    return remote.join(folder, name) if remote.is_url(folder) else os.path.join(folder, name)


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of the bytes of a file, by path or URL, in hexadecimal digits; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with remote.open_file(path) if remote.is_url(path) else open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def printable(content: object) -> str:
    """Anything -> text that any output can encode: bytes of file names that are not UTF-8 become \\xNN."""
    if isinstance(content, bytes):
        return content.decode("utf-8", "backslashreplace")
    return str(content).translate(_ESCAPED).encode("utf-8", "backslashreplace").decode()


def say(content: str) -> None:
    """Print, whatever the bytes of a path."""
    print(printable(content))
