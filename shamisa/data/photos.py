"""Photographs: one file to one ``uint8 [3, H, W]`` RGB tensor, and folders and lists of files as sources.

A source is anything with ``len(source)``, ``source[i] -> uint8 [3, H, W]`` (raising ``PhotoError`` where photograph i
cannot be had) and ``source.name(i) -> str``. Equal arguments give equal photographs in equal order, on every machine.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jp2")
MAX_PIXELS = 100_000_000  # a larger photograph is refused before it is decoded
MIN_SIDE = 32  # pixels; photographs with a shorter side are refused by the sources

_ORIENTATION_TAG = 0x0112
_ORIENTATION = {  # EXIF orientation -> the turn that makes the photograph upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(Exception):
    """A photograph that cannot be used: ``path`` says which, ``reason`` why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that it survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Photos(Protocol):
    """What a source of photographs offers."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Tensor:
        """Photograph i, uint8 [3, H, W] RGB; raises PhotoError."""

    def name(self, i: int) -> str:
        """A readable name of photograph i, unique within the source."""


# ---- one file --------------------------------------------------------------------------------------------------------
def read_photo(
    path: str | os.PathLike,
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = 1,
    admit: Callable[[int], None] | None = None,
) -> Tensor:
    """One image file -> uint8 [3, H, W] RGB, upright. The strides are those of interleaved pixels (no copy is made).

    Greyscale is repeated into three channels; palettes are looked up; alpha, a transparent palette entry or colour is
    composited over white; 16-bit greyscale is scaled to 8 bits with rounding (16-bit colour by Pillow's decoder, which
    keeps the high byte); 32-bit integers are read as 16-bit ones when they fit, floats as 0..1; CMYK is converted by
    Pillow without a profile (colour profiles are not applied); the EXIF orientation is; of several frames or pages the
    first is taken.

    Args:
        max_pixels: width x height above which the file is refused before decoding. Pillow's own limit
            (``2 * PIL.Image.MAX_IMAGE_PIXELS``) holds as well.
        min_side: the shortest side accepted, pixels.
        admit: called with width x height before decoding; may wait until there is memory for it.

    Raises:
        PhotoError: no such file, not a regular file, no permission, empty, not an image, truncated, corrupt, too large,
            too small, or samples without a defined range. Whatever the decoder raises becomes this error.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise PhotoError(_printable(path), "is a directory" if stat.S_ISDIR(status.st_mode) else "is not a file")
        if status.st_size == 0:
            raise PhotoError(_printable(path), "is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters comes as an exception
            with Image.open(path) as image:
                width, height = image.size
                if width * height > max_pixels:
                    reason = f"has {width} x {height} pixels, more than max_pixels = {max_pixels}"
                    raise PhotoError(_printable(path), reason)
                if min(width, height) < min_side:
                    reason = f"has {width} x {height} pixels, a side is shorter than min_side = {min_side}"
                    raise PhotoError(_printable(path), reason)
                if admit is not None:
                    admit(width * height)
                image.load()
                pixels = np.array(_upright(_rgb(image), _orientation(image)))  # [H, W, 3] uint8
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(_printable(path), "is not an image that Pillow can read") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on hostile files
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "no message"
        raise PhotoError(_printable(path), f"{type(error).__name__}: {reason}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow -> RGB."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I"):  # I;16 and its byte orders, and I (32 bits), which older Pillows use for 16-bit files
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError(f"integer samples reach from {samples.min()} to {samples.max()}, expected 0..65535")
        return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if mode == "F":
        samples = np.asarray(image)
        if not (samples.min() >= 0 and samples.max() <= 1):  # NaN fails too
            raise ValueError(f"float samples reach from {samples.min()} to {samples.max()}, expected 0..1")
        return Image.fromarray((samples * 255 + 0.5).astype(np.uint8)).convert("RGB")
    if mode == "La":  # premultiplied; Pillow converts it to RGBA only by way of LA
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # metadata that cannot be parsed states no orientation; the pixels are good
        return 1


def _upright(rgb: Image.Image, orientation: int) -> Image.Image:
    return rgb.transpose(_ORIENTATION[orientation]) if orientation in _ORIENTATION else rgb


def _printable(path: str | bytes) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ---- sources ---------------------------------------------------------------------------------------------------------
class PhotoFiles:
    """Files named relative to a root, in the order given.

    Args:
        cache_bytes: decoded photographs kept in memory, the least recently used leave first; 0 keeps none. Every loader
            worker has its own.
        max_pixels, min_side: see ``read_photo``.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        names: Iterable[str],
        *,
        cache_bytes: int = 0,
        max_pixels: int = MAX_PIXELS,
        min_side: int = MIN_SIDE,
    ) -> None:
        self.root = os.fspath(root)
        self.cache_bytes = _at_least("cache_bytes", cache_bytes, 0)
        self.max_pixels = _at_least("max_pixels", max_pixels, 1)
        self.min_side = _at_least("min_side", min_side, 1)
        self.skipped: dict[str, str] = {}  # what could not even be listed: name -> reason
        # one buffer for all names: a million Python strings would be copied into every forked worker, page by page
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._names = b"".join(encoded)
        self._cache: OrderedDict[int, Tensor] = OrderedDict()
        self._cached = 0  # bytes

    def __len__(self) -> int:
        return len(self._ends)

    def _encoded(self, i: int) -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(f"photograph must lie in 0..{len(self) - 1}, got {i}")
        return self._names[self._ends[i - 1] if i else 0 : self._ends[i]]

    def name(self, i: int) -> str:
        """Path of photograph i relative to the root, bytes that are not UTF-8 escaped."""
        return _printable(self._encoded(i))

    def path(self, i: int) -> str:
        """Path of photograph i as the file system knows it."""
        return os.path.join(self.root, os.fsdecode(self._encoded(i)))

    def __getitem__(self, i: int) -> Tensor:
        """Photograph i, uint8 [3, H, W]; raises PhotoError."""
        if i in self._cache:
            self._cache.move_to_end(i)
            return self._cache[i]
        photo = read_photo(self.path(i), max_pixels=self.max_pixels, min_side=self.min_side)
        if photo.numel() <= self.cache_bytes:
            self._cache[i] = photo
            self._cached += photo.numel()
            while self._cached > self.cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].numel()
        return photo

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": OrderedDict(), "_cached": 0}  # workers start with an empty cache


class PhotoFolder(PhotoFiles):
    """All photographs below a folder, sorted by relative path. Links to folders are followed, each folder once; names
    that begin with a dot are left out; folders that cannot be listed stand in ``skipped``.

    Args:
        extensions: endings of file names that count as photographs, any case.
        cache_bytes, max_pixels, min_side: see ``PhotoFiles``.

    Raises:
        ValueError: the folder is missing, is not a folder, or holds no file with one of the extensions.
    """

    def __init__(self, root: str | os.PathLike, extensions: Iterable[str] = EXTENSIONS, **options: int) -> None:
        extensions = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
        if not os.path.exists(root):
            raise ValueError(f"folder must exist, got {os.fspath(root)!r}")
        if not os.path.isdir(root):
            raise ValueError(f"folder must be a folder of photographs, got the file {os.fspath(root)!r}")
        names, others, unlisted = _walk(os.fspath(root), extensions)
        if not names:
            found = f"{sum(others.values())} other files" if others else "no files"
            endings = ", ".join(f"{n} {e or 'without ending'}" for e, n in sorted(others.items())[:8])
            closed = "".join(f"; {name}: {reason}" for name, reason in unlisted.items())
            raise ValueError(
                f"folder must hold photographs ({' '.join(extensions)}), "
                f"found {found}{f' ({endings})' if endings else ''} in {os.fspath(root)!r}{closed}"
            )
        super().__init__(root, sorted(names), **options)
        self.skipped.update(unlisted)


def _walk(root: str, extensions: tuple[str, ...]) -> tuple[list[str], dict[str, int], dict[str, str]]:
    """(names of photographs, number of other files by ending, folders that could not be listed) below root."""
    names: list[str] = []
    others: dict[str, int] = {}
    unlisted: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()  # folders by identity: links may form a circle

    def note(error: OSError) -> None:
        unlisted[_printable(os.path.relpath(error.filename, root))] = f"cannot be listed: {error.strerror}"

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
        path: the list. Relative paths in it start at its folder.
        cache_bytes, max_pixels, min_side: see ``PhotoFiles``.

    Raises:
        ValueError: the list is missing, is not UTF-8 text, or names no file. A missing photograph is a PhotoError
        later.
    """

    def __init__(self, path: str | os.PathLike, **options: int) -> None:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"list must be a text file with one path per line, got {os.fspath(path)!r}: {error}"
            ) from None
        names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not names:
            raise ValueError(
                f"list must name at least one photograph, got {len(lines)} empty lines in {os.fspath(path)!r}"
            )
        super().__init__(Path(path).parent, names, **options)


def open_photos(path: str | os.PathLike, **options: int) -> PhotoFiles:
    """A folder (``PhotoFolder``) or a list file (``PhotoList``), whichever the path is."""
    return PhotoList(path, **options) if os.path.isfile(path) else PhotoFolder(path, **options)


def _at_least(name: str, given: int, low: int) -> int:
    if not isinstance(given, int) or given < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {given!r}")
    return given
