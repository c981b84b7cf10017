"""One file: bytes from the disk within limits, pixels from the bytes, and one error for all that can go wrong."""

from __future__ import annotations

import io
import logging
import os
import queue
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .. import checks, remote
from ..files import printable
from . import formats  # noqa: F401  (registers Pillow's plugins)
from .colour import hdr, to_srgb

MAX_PIXELS = 100_000_000  # a larger photograph is refused before it is decoded
MAX_BYTES = 1 << 30  # a larger file is refused before it is read
MAX_SECONDS = 60.0  # a photograph that takes longer is given up
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
TRUNCATED = ("skip", "read")
CUT_OFF = "is truncated"  # how the reason of a truncated JPEG begins
READ_CUT_OFF = f"{CUT_OFF}: a JPEG without its end, read as far as it goes"
_END_OF_JPEG = b"\xff\xd9"
_PIECE = 1 << 26  # bytes asked of the system at once


class PhotoError(Exception):
    """A photograph that cannot be used: ``path`` says which, ``reason`` why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that it survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

    @property
    def truncated(self) -> bool:
        """Whether it is a truncated JPEG, which ``Limits(truncated="read")`` reads."""
        return is_truncated(self.reason)


def is_truncated(reason: str | None) -> bool:
    """Whether that is the reason of a truncated JPEG."""
    return reason is not None and reason.startswith(CUT_OFF)


@dataclass(frozen=True)
class Limits:
    """What a photograph may cost, and whether one that is cut off counts.

    Args:
        max_pixels: width x height above which a file is refused before it is decoded. Pillow's own limit,
            ``2 * PIL.Image.MAX_IMAGE_PIXELS`` (179 million pixels unless changed), holds as well.
        min_side: the shortest side accepted, pixels.
        max_bytes: size above which a file is refused before it is read.
        max_seconds: reading and decoding that take longer are given up; 0 waits for ever. Time while the process is
            stopped hardly counts. What hangs in the system (a network mount that is gone) leaves a thread behind that
            waits for it; codecs that cannot be interrupted (WebP, JPEG 2000) are noticed when they return, which
            ``max_pixels`` bounds. What is given up depends on the machine: keep the limit far above what good
            photographs take, or batches are no longer a function of the seed alone.
        truncated: a JPEG without its end marker or its last rows: "skip" refuses it, "read" reads it as far as it goes, as
            viewers do (what is missing is grey).

    Raises:
        ValueError: a limit that is not a number or too small, an unknown ``truncated``.
    """

    max_pixels: int = MAX_PIXELS
    min_side: int = MIN_SIDE
    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS
    truncated: str = "skip"

    def __post_init__(self) -> None:
        checks.choice("truncated", self.truncated, TRUNCATED)
        for name in ("max_pixels", "min_side", "max_bytes"):
            checks.integer(name, getattr(self, name), 1)
        checks.number("max_seconds", self.max_seconds, 0, 999999)


def read_photo(
    path: str | os.PathLike,
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = 1,
    truncated: str = "skip",
    admit: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Tensor:
    """One image file -> uint8 [3, H, W] RGB, upright. The strides are those of interleaved pixels (no copy is made).

    Greyscale is repeated into three channels; palettes are looked up; an embedded ICC profile is converted to sRGB; alpha is
    composited over white; 16-bit and floating samples become 8-bit ones; the gain map or the PQ or HLG curve of an HDR
    picture is not applied (``colour.py`` says all this exactly); the EXIF orientation is; of several frames or pages the
    first is taken.

    Args:
        max_pixels, min_side, truncated: see ``Limits``, whose other limits hold with their defaults, but without a time limit.
        admit: called with width x height before decoding; may wait until there is memory for it.
        note: called with what should be known of a photograph that is read (cut off, HDR), in words; None logs it.

    Raises:
        PhotoError: no such file, not a regular file, no permission, empty, not an image, truncated, corrupt, too large,
            too small, or samples without a defined range. Whatever the decoder raises becomes this error.
    """
    path, limits = os.fspath(path), Limits(max_pixels, min_side, max_seconds=0, truncated=truncated)
    return decode_photo(read_bytes(path, printable(path), limits), printable(path), limits, admit, note)


# ---- bytes -----------------------------------------------------------------------------------------------------------
def read_bytes(
    path: str, name: str, limits: Limits, *, offset: int = 0, size: int | None = None, whole: int | None = None
) -> bytes:
    """The bytes of a file, or ``size`` of them from ``offset``. Safe beside other readers of the same file.

    Args:
        path: of a local file, or a URL (see ``remote``).
        name: of the photograph, for the error.
        whole: the size that the file must have, where known.

    Raises:
        PhotoError: no such file, not a regular file, no permission, empty, larger than max_bytes, changed.
    """
    if remote.is_url(path):
        return _read_remote(path, name, limits, offset, size, whole)
    with photo_errors(name):
        _check_regular(os.stat(path), name)
        # a pipe put in its place meanwhile would wait for ever without O_NONBLOCK
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            status = os.fstat(file)
            _check_regular(status, name)
            size = _check_size(path, name, limits, status.st_size, size, whole)
            pieces, end = [], offset + size
            while offset < end:
                pieces.append(os.pread(file, min(_PIECE, end - offset), offset))
                offset += len(pieces[-1])
                if not pieces[-1]:
                    raise PhotoError(name, f"ended {end - offset} bytes early while it was read")
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(file)


def _read_remote(path: str, name: str, limits: Limits, offset: int, size: int | None, whole: int | None) -> bytes:
    try:
        size = _check_size(path, name, limits, remote.size(path), size, whole)
        data = remote.read(path, offset, offset + size)
    except remote.RemoteError as error:
        raise PhotoError(name, error.reason) from None
    if len(data) != size:
        raise PhotoError(name, f"ended {size - len(data)} bytes early while it was read")
    return data


def _check_size(path: str, name: str, limits: Limits, found: int, size: int | None, whole: int | None) -> int:
    """The number of bytes to read of a file that has ``found``."""
    if whole is not None and found != whole:
        raise PhotoError(name, f"{printable(path)} has changed: {found} bytes, {whole} when indexed")
    size = found if size is None else size
    if size == 0:
        raise PhotoError(name, "is empty (0 bytes)")
    if size > limits.max_bytes:
        raise PhotoError(name, f"has {size} bytes, more than max_bytes = {limits.max_bytes}")
    return size


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PhotoError(name, "is a directory" if stat.S_ISDIR(status.st_mode) else "is not a file")


# ---- pixels ----------------------------------------------------------------------------------------------------------
def decode_photo(
    data: bytes,
    name: str,
    limits: Limits,
    admit: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Tensor:
    """An encoded image -> uint8 [3, H, W] RGB, upright, by the rules of ``read_photo``; raises PhotoError."""
    remarks: list[str] = []
    with photo_errors(name):
        image = open_photo(data, name, limits)
        if admit is not None:
            admit(image.width * image.height)
        try:
            image.load()
        except OSError as error:
            if image.format not in ("JPEG", "MPO") or "truncated" not in str(error):
                raise
            if limits.truncated == "skip":
                raise PhotoError(name, f"{CUT_OFF}: a JPEG without its end ({error})") from None
            remarks.append(READ_CUT_OFF)
            image.close()
            image = open_photo(data + _END_OF_JPEG, name, limits)  # the decoder fills what is missing
            image.load()
        with image:
            if (beyond := hdr(image, data)) is not None:
                remarks.append(
                    f"has {beyond}, which is not applied: HDR is out of scope, it is read as a picture of 8 bits"
                )
            pixels = np.array(upright(to_srgb(image), orientation(image)))  # [H, W, 3] uint8
    for remark in remarks:
        (note or (lambda text: log_remark(name, text)))(remark)
    return torch.from_numpy(pixels).permute(2, 0, 1)


_told: set[str] = set()  # what was logged in this process


def log_remark(name: str, remark: str) -> None:
    """To the log: of HDR once in a process, of a truncated photograph once each."""
    key = name if remark.startswith(CUT_OFF) else ""
    if key not in _told:
        _told.add(key)
        logging.getLogger("shamisa").warning("%s %s", name, remark)


@contextmanager
def photo_errors(name: str) -> Iterator[None]:
    """Whatever is raised inside becomes a PhotoError of that name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters comes as an exception
            yield
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(name, "is not an image that Pillow can read") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on hostile files
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "no message"
        raise PhotoError(name, f"{type(error).__name__}: {reason}") from error


def open_photo(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The header of an encoded image, its sides checked; pixels are decoded when asked for. Call it inside
    ``photo_errors``."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    if width * height > limits.max_pixels:
        raise PhotoError(name, f"has {width} x {height} pixels, more than max_pixels = {limits.max_pixels}")
    if min(width, height) < limits.min_side:
        raise PhotoError(name, f"has {width} x {height} pixels, a side is shorter than min_side = {limits.min_side}")
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or none that makes sense."""
    try:
        found = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # metadata that cannot be parsed states no orientation; the pixels are good
        return 1
    return found if found in _ORIENTATION else 1


def upright(rgb: Image.Image, orientation: int) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    return rgb.transpose(_ORIENTATION[orientation]) if orientation in _ORIENTATION else rgb


# ---- time ------------------------------------------------------------------------------------------------------------
T = TypeVar("T")
_SLICES = 10  # a process that is stopped and continued loses one of them, not all


def within(seconds: float, name: str, function: Callable[[], T]) -> T:
    """function(), or a PhotoError of that name where it takes longer than ``seconds`` (0: no limit).

    Python cannot interrupt a system call or a decoder of another thread, and signals reach only the main thread. So the
    work is done in a helper thread, one for each thread that asks; one that does not answer in time is left to itself.
    """
    if not seconds:
        return function()
    helper = getattr(_local, "helper", None)
    if helper is None or helper.process != os.getpid():  # threads do not survive a fork
        helper = _local.helper = _Helper()
    helper.asked.put(function)
    for _ in range(_SLICES):
        try:
            value, error = helper.answered.get(timeout=seconds / _SLICES)
            break
        except queue.Empty:
            continue
    else:
        _local.helper = None
        raise PhotoError(name, f"took longer than max_seconds = {seconds:g}")
    if error is not None:
        raise error
    return value


class _Helper:
    def __init__(self) -> None:
        self.process = os.getpid()
        self.asked: queue.SimpleQueue = queue.SimpleQueue()
        self.answered: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self.asked, self.answered), daemon=True).start()

    def __del__(self) -> None:
        self.asked.put(None)


def _serve(asked: queue.SimpleQueue, answered: queue.SimpleQueue) -> None:
    while (function := asked.get()) is not None:
        try:
            answer = function(), None
        except BaseException as error:
            answer = None, error
        answered.put(answer)
        del function, answer  # a photograph is not kept until the next one


_local = threading.local()
