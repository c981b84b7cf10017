"""Resizing, by Pillow itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def check_resize(photo: Tensor, top: float, bottom: float, left: float, right: float, height: int, width: int) -> None:
    """ValueError for arguments that ``resize_bicubic`` does not take."""
    if photo.dtype != torch.uint8 or photo.dim() != 3 or photo.shape[0] != 3 or 0 in photo.shape:
        raise ValueError(f"photo must be uint8 [3, H, W] and not empty, got {photo.dtype} {list(photo.shape)}")
    if not (0 <= top < bottom <= photo.shape[1] and 0 <= left < right <= photo.shape[2]):
        raise ValueError(
            f"the rectangle must lie in the photo of {list(photo.shape[1:])} pixels, "
            f"got rows {top} to {bottom}, columns {left} to {right}"
        )
    if not (0 < height < 1 << 20 and 0 < width < 1 << 20):
        raise ValueError(f"height and width must lie in 1..2^20-1, got {height} and {width}")


def resize_bicubic(
    photo: Tensor, top: float, bottom: float, left: float, right: float, height: int, width: int
) -> Tensor:
    """A rectangle of a photograph in another size: Pillow's antialiased bicubic filter (a = -0.5).

    Rows are shortened first, then columns, with 8 bits between. The kernels give the same bits.

    Args:
        photo: uint8 [3, H, W].
        top, bottom, left, right: the rectangle in pixels, may be fractions; the filter reads beyond it.
        height, width: of the result.

    Returns:
        uint8 [3, height, width].
    """
    from PIL import Image

    check_resize(photo, top, bottom, left, right, height, width)
    pixels = np.ascontiguousarray(photo.permute(1, 2, 0).cpu().numpy())
    # one direction a call: in one call the size decides which comes first, and that can move a level
    bicubic = Image.Resampling.BICUBIC
    narrow = Image.fromarray(pixels).resize((width, len(pixels)), bicubic, box=(left, 0, right, len(pixels)))
    small = narrow.resize((width, height), bicubic, box=(0, top, width, bottom))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous().to(photo.device)
