"""One crop of a photograph at a scale: where it lies, which pixels it needs, and the cut itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_FILTER = Image.Resampling.BICUBIC  # widened when it shrinks, so antialiased


@dataclass(frozen=True)
class Part:
    """Rows and columns of a photograph from (top, left) on; height and width are those of the whole photograph."""

    pixels: Tensor  # uint8 [3, h, w]
    top: int
    left: int
    height: int
    width: int

    def take(self, rows: slice, columns: slice) -> Tensor:
        """Pixels by their rows and columns in the whole photograph, which must lie in the part."""
        top, left = self.top, self.left
        return self.pixels[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def needed(height: int, width: int, scale: float, place: tuple[int, int] | list[int], crop: int) -> tuple[slice, slice]:
    """Rows and columns of a photograph of that size which ``cut`` reads for a crop; arguments as there."""
    rows, columns = _spans(height, width, scale, place, crop)
    if scale == 1:
        return rows.source, columns.source
    return _reach(height, rows)[0], _reach(width, columns)[0]


def cut(photo: Tensor | Part, scale: float, place: tuple[int, int] | list[int], pad: str, *, out: Tensor) -> None:
    """Write a square crop of a photograph at a scale into out.

    Args:
        photo: uint8 [3, H, W], or a part of it that holds ``needed(...)``.
        scale: in (0, 1]; the photograph has round(scale * side) pixels a side, at least one.
        place: two words 0..2^32-1, row and column: (word * (free + 1)) >> 32 with free = the difference of the
            sides.
        pad: "zero" or "reflect" where the photograph is smaller.
        out: uint8 [3, crop, crop], filled with zeros.
    """
    crop = out.shape[-1]
    photo = photo if isinstance(photo, Part) else Part(photo, 0, 0, photo.shape[1], photo.shape[2])
    rows, columns = _spans(photo.height, photo.width, scale, place, crop)
    part = photo.take(rows.source, columns.source) if scale == 1 else _shrink(photo, rows, columns)
    if pad == "reflect" and part.shape[1:] != out.shape[1:]:
        out.copy_(part[:, rows.reflected(crop)][:, :, columns.reflected(crop)])
    else:
        out[:, rows.target, columns.target] = part


class _Span:
    """Where a crop meets one side of a photograph: out[target] = photo[source]."""

    def __init__(self, source: int, target: int, length: int, side: int) -> None:
        self.source, self.target = slice(source, source + length), slice(target, target + length)
        self.side = side

    def reflected(self, crop: int) -> Tensor:
        """Positions in photo[source] for all of the crop, mirrored at its ends without repeating them, int64 [crop]."""
        length = self.target.stop - self.target.start
        period = max(1, 2 * (length - 1))
        i = (torch.arange(crop) - self.target.start) % period
        return torch.minimum(i, period - i)


def _span(side: int, scale: float, crop: int, word: int) -> _Span:
    small = int(side * scale + 0.5) or 1
    free = (word * (abs(small - crop) + 1)) >> 32
    return _Span(free, 0, crop, small) if small >= crop else _Span(0, free, small, small)


def _spans(height: int, width: int, scale: float, place: tuple[int, int] | list[int], crop: int) -> tuple[_Span, _Span]:
    return _span(height, scale, crop, place[0]), _span(width, scale, crop, place[1])


def _reach(side: int, span: _Span) -> tuple[slice, float, float]:
    """Pixels of a side that the filter reads for a span, and the span's ends in pixels from the first of them."""
    ratio = side / span.side
    low, high = span.source.start * ratio, span.source.stop * ratio
    margin = int(3 * ratio) + 2  # the filter reaches 2 * ratio to either side
    first, last = max(0, int(low) - margin), min(side, int(high) + 1 + margin)
    return slice(first, last), low - first, min(high, side) - first


def _shrink(photo: Part, rows: _Span, columns: _Span) -> Tensor:
    """photo resized to rows.side x columns.side, of which only the spans are computed."""
    lines, top, bottom = _reach(photo.height, rows)
    across, left, right = _reach(photo.width, columns)
    height, width = (span.source.stop - span.source.start for span in (rows, columns))
    pixels = np.ascontiguousarray(photo.take(lines, across).permute(1, 2, 0).numpy())
    # one direction a call: in one call the size decides which comes first, and that can move a level
    narrow = Image.fromarray(pixels).resize((width, len(pixels)), _FILTER, box=(left, 0, right, len(pixels)))
    small = narrow.resize((width, height), _FILTER, box=(0, top, width, bottom))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)
