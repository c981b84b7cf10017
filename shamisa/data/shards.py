"""Tar shards in the layout of webdataset as a source with random access.

A shard is a plain tar of images and other members (labels, captions), grouped by name. Every image member is a
photograph, as every image file of a folder is; other members are left out. The headers are read once, the bodies are
skipped; after that a photograph is one read at an offset, so shards serve any order, any number of workers and ranks,
and a resumed run, exactly as a folder does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from .. import remote
from ..files import printable, size_of
from .decode import read_bytes
from .formats import EXTENSIONS
from .photos import EncodedPhotos

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST = 1_000_000  # shards that a pattern may name
_BLOCK = 512  # bytes of a tar header


class PhotoShards(EncodedPhotos):
    """All photographs of tar shards, sorted by name over all shards: a folder packed into shards has its order.

    A name that several shards hold is preceded by the shard's. What is damaged, cut off, linked, sparse or repeated in
    a shard stands in ``skipped``; the rest of the shard is used.

    A stream cannot be read in any order. It is copied to a file in the folder for temporary files (``TMPDIR``), which
    needs as much room as the stream and is removed with the source; memory holds one piece of it at a time. Each rank
    that opens a stream reads one of its own, so the standard input serves a single process.

    Args:
        path: a .tar file, a folder of them, a pattern with ``{000..009}`` or ``{a,b}``, ``-`` or ``pipe:COMMAND``; see
            ``open_photos``.
        extensions: endings of member names that count as photographs, any case.
        options: see ``EncodedPhotos``.

    Raises:
        ValueError: no such shards, compressed ones, a stream that fails, or no photograph in any of them.
    """

    def __init__(self, path: str | os.PathLike, extensions: Iterable[str] = EXTENSIONS, **options: float | str) -> None:
        extensions = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
        places = expand_shards(path)
        self._spooled: list[weakref.finalize] = []  # their temporary files
        self._paths = [self._spool(place) if _is_stream(place) else place for place in places]
        labels = _labels(places)
        found: list[tuple[str, int, int, int]] = []  # name, shard, offset, bytes
        skipped: dict[str, str] = {}
        others: Counter[str] = Counter()
        for shard, label in enumerate(labels):
            before = len(found)
            for name, offset, size in _index(self._paths[shard], label, extensions, skipped, others):
                found.append((name, shard, offset, size))
            if len(found) == before and label not in skipped:
                skipped[label] = "holds no photographs"
        if not found:
            faults = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
            raise ValueError(f"shards must hold photographs ({' '.join(extensions)}), found none in {path!s}; {faults}")
        found.sort()
        shared = {name for name, n in Counter(name for name, *_ in found).items() if n > 1}
        super().__init__((f"{labels[s]}/{name}" if name in shared else name for name, s, *_ in found), **options)
        self.skipped.update(skipped)
        self.others.update(others)
        self._labels = labels
        self._shard, self._offset, self._size = (np.array(c, np.int64) for c in list(zip(*found, strict=True))[1:])
        self._whole = [size_of(p) for p in self._paths]

    @property
    def shards(self) -> list[str]:
        """Paths of the tars; those of temporary files for streams."""
        return list(self._paths)

    def _label(self, i: int) -> str:
        name, shard = self.name(i), self._labels[self._shard[i]]
        return name if name.startswith(f"{shard}/") else f"{shard}/{name}"

    def _read(self, i: int) -> bytes:
        self._encoded_name(i)  # i in range
        shard, offset, size = int(self._shard[i]), int(self._offset[i]), int(self._size[i])
        whole = self._whole[shard]
        return read_bytes(self._paths[shard], self._label(i), self.limits, offset=offset, size=size, whole=whole)

    def _spool(self, place: str) -> str:
        file = tempfile.NamedTemporaryFile(prefix="shamisa-", suffix=".tar", delete=False)
        self._spooled.append(weakref.finalize(self, _remove, file.name, os.getpid()))
        with file:
            _copy_stream(place, file)
        return file.name

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_spooled": []}  # the process that made a temporary file removes it


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not a forked worker
        os.unlink(path)


# ---- names of shards -------------------------------------------------------------------------------------------------
def names_shards(path: str | os.PathLike) -> bool:
    """Whether ``open_photos`` reads this as shards."""
    path = os.fspath(path)
    if _is_stream(path):
        return True
    if remote.is_url(path):
        head = path.partition("::")[0]
        if _is_tar(head) or "{" in head or not remote.is_folder(path):
            return _is_tar(head) or "{" in head
        names = remote.find(path)
        photographs = any(os.path.splitext(name)[1].lower() in EXTENSIONS for name in names)
        return any(map(_is_tar, names)) and not photographs and not any("/" in name for name in names)
    if os.path.isdir(path):
        try:
            entries = [e for e in os.scandir(path) if not e.name.startswith(".")]
        except OSError:  # a folder that cannot be listed gets its error as one of photographs
            return False
        photographs = any(os.path.splitext(e.name)[1].lower() in EXTENSIONS for e in entries)
        tars = any(_is_tar(e.name) for e in entries)
        return tars and not photographs and not any(e.is_dir() for e in entries)
    return _is_tar(path) or (not os.path.exists(path) and "{" in path)


def expand_shards(path: str | os.PathLike) -> list[str]:
    """Tar files and streams that a name or pattern stands for; ValueError where there are none or some are missing."""
    path = os.fspath(path)
    if remote.is_url(path):
        return _expand_url(path)
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if _is_tar(name) and not name.startswith("."))
        if not names:
            raise ValueError(f"shards must be .tar files, found none in the folder {path!r}")
        return [os.path.join(path, name) for name in names]
    places = [path] if os.path.exists(path) else _expand_braces(path)
    missing = [place for place in places if not _is_stream(place) and not os.path.isfile(place)]
    if missing:
        raise ValueError(f"shards must exist, {len(missing)} of {len(places)} do not, such as {missing[0]!r}")
    return places


def _expand_url(url: str) -> list[str]:
    if "{" not in url and remote.is_folder(url):
        return [remote.join(url, name) for name in remote.find(url) if _is_tar(name) and "/" not in name]
    places = _expand_braces(url)
    missing = [place for place in places if not remote.is_file(place)]
    if missing:
        raise ValueError(f"shards must exist, {len(missing)} of {len(places)} do not, such as {missing[0]!r}")
    return places


def _expand_braces(pattern: str) -> list[str]:
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    first, dots, last = brace[1].partition("..")
    if dots:
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last) < int(first) + _MOST):
            raise ValueError(f"shards must be numbered as {{000..009}}, upwards, got {brace[0]} in {pattern!r}")
        choices = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        choices = brace[1].split(",")
    ends = _expand_braces(pattern[brace.end() :])
    if len(choices) * len(ends) > _MOST:
        raise ValueError(f"shards must be at most {_MOST}, got {len(choices) * len(ends)} from {pattern!r}")
    return [pattern[: brace.start()] + choice + end for choice in choices for end in ends]


def _is_stream(place: str) -> bool:
    return place == "-" or place.startswith("pipe:")


def _is_tar(name: str) -> bool:
    return re.search(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$", name, re.I) is not None  # compressed ones get their error


def _labels(places: list[str]) -> list[str]:
    """Short names of shards for errors, distinct."""
    short = [place if _is_stream(place) else os.path.basename(place.partition("::")[0]) for place in places]
    chosen = short if len(set(short)) == len(short) else places
    return ["standard input" if place == "-" else printable(place) for place in chosen]


def _copy_stream(place: str, target: BinaryIO) -> None:
    command = place.removeprefix("pipe:").strip()
    try:
        if place == "-":
            shutil.copyfileobj(sys.stdin.buffer, target, 1 << 20)
            return
        with subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            shutil.copyfileobj(process.stdout, target, 1 << 20)
    except OSError as error:
        raise ValueError(f"shards from {place!r} must fit into {target.name!r}: {error.strerror or error}") from None
    if process.returncode:
        raise ValueError(f"shards must come from a command that succeeds, got status {process.returncode}: {command}")


# ---- headers ---------------------------------------------------------------------------------------------------------
def _index(
    path: str, label: str, extensions: tuple[str, ...], skipped: dict[str, str], others: Counter[str]
) -> Iterable[tuple[str, int, int]]:
    """Name, offset and bytes of every photograph of a tar; what is wrong goes into skipped, others are counted."""
    whole = size_of(path)
    seen: set[str] = set()
    try:
        file = remote.open_file(path) if remote.is_url(path) else open(path, "rb")  # noqa: SIM115
    except OSError as error:
        skipped[label] = f"cannot be opened: {remote.why(error)}"
        return
    with file:
        start = file.read(_BLOCK)
        kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
        if kind is not None:
            raise ValueError(f"shards must be plain tars, got one compressed by {kind}: {label}; decompress it first")
        if not whole:
            skipped[label] = "is empty (0 bytes)"
        for member in _members(file, whole, label, skipped):
            name = _tidy(member.name)
            if name is None or member.isdir():
                continue
            if (ending := os.path.splitext(name)[1].lower()) not in extensions:
                others[ending] += 1
                continue
            fault = _fault(member, whole, name in seen)
            if fault is not None:
                skipped[f"{label}/{printable(name)}"] = fault
                continue
            seen.add(name)
            yield name, member.offset_data, member.size


def _members(file: BinaryIO, whole: int, label: str, skipped: dict[str, str]) -> Iterable[tarfile.TarInfo]:
    """Every member whose header can be read; bytes between them that are no tar are noted."""
    end, tar, error = 0, None, ""

    def note(start: int, stop: int) -> None:
        if _damaged(file, start, stop):
            skipped.setdefault(
                label, f"is damaged from byte {start} to {stop} of {whole}; what is there is lost{error}"
            )

    while True:
        try:
            # zeros inside are passed over (tars that were joined), and so is what is not a header
            tar = tar or tarfile.TarFile(fileobj=_rewound(file), ignore_zeros=True)
            member = tar.next()
        except Exception as fault:  # tarfile raises its own and others on hostile headers
            member, error = None, f" ({fault or type(fault).__name__})"
        if member is None:
            break
        note(end, member.offset)
        tar.members.clear()  # it keeps them all
        end = tar.offset
        yield member
    note(min(end, whole), whole)


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _damaged(file: BinaryIO, start: int, stop: int) -> bool:
    """Whether bytes that belong to no member are anything but zeros or a header for all members (pax global)."""
    if start >= stop:
        return False
    position = file.tell()
    file.seek(start)
    first = file.read(min(_BLOCK, stop - start))
    bad = any(first)
    if bad and first[156:157] == tarfile.XGLTYPE:
        bad = False
    else:
        while not bad and file.tell() < stop and (piece := file.read(min(1 << 20, stop - file.tell()))):
            bad = any(piece)
    file.seek(position)
    return bad


def _tidy(name: str) -> str | None:
    """Path inside the archive; None for hidden files, which a folder leaves out too."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if any(part.startswith(".") for part in parts) else "/".join(parts)


def _fault(member: tarfile.TarInfo, whole: int, seen: bool) -> str | None:
    if seen:
        return "has the name of an earlier member"
    if member.issparse():
        return "is sparse"
    if not member.isreg():
        return "is a link" if member.islnk() or member.issym() else "is not a file"
    if member.offset_data + member.size > whole:
        return f"is cut off: the shard ends after {max(0, whole - member.offset_data)} of its {member.size} bytes"
    return None
