"""The ten crops of images as tensor arithmetic: any device, any size, exportable; the same pixels as ``features.views``.

``features.views`` halves a photograph with PyTorch's antialiased bicubic filter for uint8, which exists on CPUs only and in
no exchange format. It works in integers: 16-bit weights, a rounding to 8 bits after each of its two passes. Here the same
integers are matrix products in float64, which holds them exactly, and only the pixels that the crops need are made.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLACES = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))  # (row, column) of the crops: 0 first, 1 last, 2 central
_TAPS = 9  # 2 * ceil(2 * scale) + 1 of a bicubic filter; halving has 1 <= scale <= 2
_BITS = 16  # of a signed weight


def ten_crops(images: Tensor, crop: int) -> Tensor:
    """Images uint8 [N, 3, H, W] -> their crops uint8 [N, 2, 5, 3, crop, crop]: of full and of half size, five places.

    Equal to ``features.views`` of each image, bit for bit. On the device of ``images``; 25 MB of working memory for an
    image at crop = 224.
    """
    places = torch.tensor(PLACES, device=images.device)
    rows, cols = (_crop_positions(images, dim, crop) for dim in (2, 3))
    full = _take(images, rows[places[:, 0]], cols[places[:, 1]])
    (rows, down), (cols, across) = (_half_filter(images, dim, crop) for dim in (2, 3))
    half = _take(images, rows[places[:, 0]], cols[places[:, 1]]).double()
    half = _filtered(half @ across.weight[places[:, 1]].mT, across)
    half = _filtered(down.weight[places[:, 0]] @ half, down)
    return torch.stack([full, half.to(torch.uint8)], 1).transpose(2, 3)


class _Filter:
    def __init__(self, weight: Tensor, unit: Tensor) -> None:
        self.weight = weight  # [3, crop, P] float64, integers
        self.unit = unit  # [] float64, the power of two that stands for 1


def _filtered(total: Tensor, by: _Filter) -> Tensor:
    return ((total + by.unit / 2) / by.unit).floor().clamp(0, 255)


def _take(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """[N, 3, H, W], rows [5, P], cols [5, Q] -> [N, 3, 5, P, Q]."""
    return images.flatten(2)[:, :, rows.unsqueeze(2) * images.shape[3] + cols.unsqueeze(1)]


def _crop_positions(images: Tensor, dim: int, crop: int, half: bool = False) -> Tensor:
    """Where the first, last and central crop take their pixels: [3, crop] int64, mirrored where the side is shorter."""
    n = torch.full((), images.shape[dim], device=images.device)  # a tensor, so that an export keeps it variable
    n = (n + 1) // 2 if half else n
    first, over = -((crop - n).clamp(min=0) // 2), (n - crop).clamp(min=0)
    position = torch.stack([first, first + over, first + over // 2]).unsqueeze(1)
    position = position + torch.arange(crop, device=images.device)
    period = (2 * n - 2).clamp(min=1)
    position = position.remainder(period)
    return torch.minimum(position, period - position)


def _half_filter(images: Tensor, dim: int, crop: int) -> tuple[Tensor, _Filter]:
    """Halving along a dimension, for the three places: pixels that enter [3, P] int64, and the filter of them."""
    size, device = images.shape[dim], images.device
    n = torch.full((), size, device=device)
    m = torch.arange((size + 1) // 2, device=device, dtype=torch.float64)  # pixels of the half image
    scale = n.double() / ((n + 1) // 2).double()
    center = scale * (m + 0.5)
    first = (center - 2 * scale + 0.5).clamp(min=0).long()
    last = torch.minimum((center + 2 * scale + 0.5).long(), n)
    tap = first.unsqueeze(1) + torch.arange(_TAPS, device=device)  # [m, _TAPS]
    weight = _bicubic((tap - center.unsqueeze(1) + 0.5) * (1 / scale)) * (tap < last.unsqueeze(1))
    weight = weight / weight.sum(1, keepdim=True)
    # as many bits as keep the largest weight of the image in 16
    powers = torch.tensor([2.0**k for k in range(1, 23)], dtype=torch.float64, device=device)
    fits = (weight.max() * powers + 0.5).floor() < 2 ** (_BITS - 1)
    unit = torch.where(fits, powers, 1.0).max()
    weight = (weight * unit + torch.where(weight < 0, -0.5, 0.5)).trunc()

    chosen = _crop_positions(images, dim, crop, half=True)  # [3, crop]
    tap, weight = tap[chosen], weight[chosen]
    start = tap.flatten(1).amin(1, keepdim=True)  # [3, 1]
    span = 2 * crop + _TAPS
    dense = torch.zeros(3, crop, span, dtype=torch.float64, device=device)
    dense = dense.scatter_add(2, (tap - start.unsqueeze(2)).clamp(max=span - 1), weight)
    return torch.minimum(start + torch.arange(span, device=device), n - 1), _Filter(dense, unit)


def _bicubic(x: Tensor) -> Tensor:
    """Keys's kernel with a = -1/2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((x - 5) * x + 8) * x - 4
    return torch.where(x < 1, near, torch.where(x < 2, -0.5 * far, 0.0))
