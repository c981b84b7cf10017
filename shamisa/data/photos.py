"""Sources of photographs: folders and lists of files, tar shards by way of ``shards``.

A source is anything with ``len(source)``, ``source[i] -> uint8 [3, H, W]`` (raising ``PhotoError`` where photograph i
cannot be had) and ``source.name(i) -> str``. Equal arguments give equal photographs in equal order, on every machine.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from .. import checks, remote
from ..files import printable
from .decode import (
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SECONDS,
    MIN_SIDE,
    Limits,
    PhotoError,
    decode_photo,
    is_truncated,
    log_remark,
    read_bytes,
    read_photo,
    within,
)
from .formats import EXTENSIONS, describe_ignored

__all__ = ["EXTENSIONS", "EncodedPhotos", "PhotoError", "PhotoFiles", "PhotoFolder", "PhotoList", "Photos"]
__all__ += ["read_photo"]


class Photos(Protocol):
    """What a source of photographs offers."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Tensor:
        """Photograph i, uint8 [3, H, W] RGB; raises PhotoError."""

    def name(self, i: int) -> str:
        """A readable name of photograph i, unique within the source."""


class EncodedPhotos:
    """Photographs stored as encoded images: what folders, lists and shards share.

    Args:
        names: one per photograph.
        cache_bytes: decoded photographs kept in memory, the least recently used leave first; 0 keeps none. Every loader
            worker has its own.
        max_pixels, min_side, max_bytes, max_seconds, truncated: see ``Limits``.

    Attributes:
        skipped: what could not even be listed, name -> reason.
        others: number of files that are no photographs, by ending.
        cut_off: truncated JPEGs that this process has read as far as they go (``truncated="read"``), by position.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        cache_bytes: int = 0,
        max_pixels: int = MAX_PIXELS,
        min_side: int = MIN_SIDE,
        max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        truncated: str = "skip",
    ) -> None:
        self.cache_bytes = checks.integer("cache_bytes", cache_bytes, 0)
        self.limits = Limits(max_pixels, min_side, max_bytes, max_seconds, truncated)
        self.skipped: dict[str, str] = {}
        self.others: dict[str, int] = {}
        self.cut_off: set[int] = set()
        # one buffer for all names: a million Python strings would be copied into every forked worker, page by page
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._names = b"".join(encoded)
        self._cache: OrderedDict[int, Tensor] = OrderedDict()
        self._cached = 0  # bytes

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def ignored(self) -> str:
        """Files beside the photographs, counted by ending, in words; "" where there are none."""
        return describe_ignored(self.others)

    def _encoded_name(self, i: int) -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(f"photograph must lie in 0..{len(self) - 1}, got {i}")
        return self._names[self._ends[i - 1] if i else 0 : self._ends[i]]

    def name(self, i: int) -> str:
        """Name of photograph i, bytes that are not UTF-8 escaped."""
        return printable(self._encoded_name(i))

    def _read(self, i: int) -> bytes:
        raise NotImplementedError

    def _label(self, i: int) -> str:
        """Photograph i in errors: where it lies."""
        return self.name(i)

    def encoded(self, i: int) -> bytes:
        """The bytes of photograph i as they are stored; raises PhotoError."""
        return within(self.limits.max_seconds, self._label(i), lambda: self._read(i))

    def decode(self, i: int, data: bytes) -> Tensor:
        """Photograph i from its bytes, uint8 [3, H, W]; raises PhotoError. Fills ``cut_off``."""
        label = self._label(i)

        def note(remark: str) -> None:
            if is_truncated(remark):
                self.cut_off.add(i)
            else:
                log_remark(label, remark)

        return decode_photo(data, label, self.limits, note=note)

    def __getitem__(self, i: int) -> Tensor:
        """Photograph i, uint8 [3, H, W]; raises PhotoError."""
        if i in self._cache:
            self._cache.move_to_end(i)
            return self._cache[i]
        label = self._label(i)
        photo = within(self.limits.max_seconds, label, lambda: self.decode(i, self._read(i)))
        if photo.numel() <= self.cache_bytes:
            self._cache[i] = photo
            self._cached += photo.numel()
            while self._cached > self.cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].numel()
        return photo

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": OrderedDict(), "_cached": 0}  # workers start with an empty cache


class PhotoFiles(EncodedPhotos):
    """Files named relative to a root, in the order given. Options: see ``EncodedPhotos``."""

    def __init__(self, root: str | os.PathLike, names: Iterable[str], **options: float | str) -> None:
        super().__init__(names, **options)
        self.root = os.fspath(root)

    def path(self, i: int) -> str:
        """Path of photograph i as the file system knows it, or its URL."""
        name = os.fsdecode(self._encoded_name(i))
        if remote.is_url(name) or (remote.is_url(self.root) and not os.path.isabs(name)):
            return name if remote.is_url(name) else remote.join(self.root, name)
        return os.path.join(self.root, name)

    def _label(self, i: int) -> str:
        return printable(self.path(i))

    def _read(self, i: int) -> bytes:
        return read_bytes(self.path(i), self._label(i), self.limits)


class PhotoFolder(PhotoFiles):
    """All photographs below a folder, sorted by relative path. Links to folders are followed, each folder once; names
    that begin with a dot are left out; folders that cannot be listed stand in ``skipped``.

    Args:
        extensions: endings of file names that count as photographs, any case; those that the installed Pillow and its
            plugins read (``formats.py``), so a folder with HEIC files has more photographs where a plugin is installed.
        options: see ``EncodedPhotos``.

    Raises:
        ValueError: the folder is missing, is not a folder, or holds no file with one of the extensions.
    """

    def __init__(self, root: str | os.PathLike, extensions: Iterable[str] = EXTENSIONS, **options: float | str) -> None:
        extensions = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
        distant = remote.is_url(root)
        exists, is_folder, walk = (
            (remote.exists, remote.is_folder, _find) if distant else (os.path.exists, os.path.isdir, _walk)
        )
        try:
            if not exists(root):
                raise ValueError(f"folder must exist, got {os.fspath(root)!r}")
            if not is_folder(root):
                raise ValueError(f"folder must be a folder of photographs, got the file {os.fspath(root)!r}")
            names, others, unlisted = walk(os.fspath(root), extensions)
        except remote.RemoteError as error:
            raise ValueError(f"folder must be one that can be listed, got {root!r}: {error.reason}") from None
        if not names:
            found = f"{sum(others.values())} other files" if others else "no files"
            endings = ", ".join(f"{n} {e or 'without ending'}" for e, n in sorted(others.items())[:8])
            advice = "".join(f"; {part}" for part in describe_ignored(others).split("; ")[1:])
            closed = "".join(f"; {name}: {reason}" for name, reason in unlisted.items())
            raise ValueError(
                f"folder must hold photographs ({' '.join(extensions)}), "
                f"found {found}{f' ({endings})' if endings else ''} in {os.fspath(root)!r}{closed}"
                + (
                    "; shards beside subfolders are named by a pattern: DIR/{000..009}.tar"
                    if others.get(".tar")
                    else ""
                )
                + advice
            )
        super().__init__(root, sorted(names), **options)
        self.skipped.update(unlisted)
        self.others = others


def _find(root: str, extensions: tuple[str, ...]) -> tuple[list[str], dict[str, int], dict[str, str]]:
    """As ``_walk``, by URL."""
    found = remote.find(root)
    endings = [os.path.splitext(name)[1].lower() for name in found]
    names = [name for name, ending in zip(found, endings, strict=True) if ending in extensions]
    return names, dict(Counter(ending for ending in endings if ending not in extensions)), {}


def _walk(root: str, extensions: tuple[str, ...]) -> tuple[list[str], dict[str, int], dict[str, str]]:
    """(names of photographs, number of other files by ending, folders that could not be listed) below root."""
    names: list[str] = []
    others: dict[str, int] = {}
    unlisted: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()  # folders by identity: links may form a circle

    def note(error: OSError) -> None:
        unlisted[printable(os.path.relpath(error.filename, root))] = f"cannot be listed: {error.strerror}"

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=note):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = os.path.relpath(folder, root)
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in extensions:
                names.append(name if prefix == "." else f"{Path(prefix).as_posix()}/{name}")
            else:
                others[ending] = others.get(ending, 0) + 1
    return names, others, unlisted


class PhotoList(PhotoFiles):
    """Photographs named in a text file, one path per line, in its order; empty lines and lines that begin with # are
    left out.

    Args:
        path: the list, a path or a URL. Relative paths in it start at its folder; URLs may stand in it.
        options: see ``EncodedPhotos``.

    Raises:
        ValueError: the list is missing, is not UTF-8 text, or names no file. A missing photograph is a PhotoError
        later.
    """

    def __init__(self, path: str | os.PathLike, **options: float | str) -> None:
        try:
            distant = remote.is_url(path)
            lines = (remote.read_text(path) if distant else Path(path).read_text(encoding="utf-8-sig")).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"list must be a text file with one path per line, got {os.fspath(path)!r}: {error}"
            ) from None
        names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not names:
            raise ValueError(
                f"list must name at least one photograph, got {len(lines)} empty lines in {os.fspath(path)!r}"
            )
        super().__init__(remote.parent(path) if distant else Path(path).parent, names, **options)
