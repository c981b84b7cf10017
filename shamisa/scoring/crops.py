"""The ten crops of images, five places at two scales: quickly, and as tensor arithmetic that can be exported.

The places are the four corners and the centre, of the photograph and of the photograph at half size; a side shorter than the
crop is continued by mirroring about its edge pixels, the photograph in the centre. The half size is the one that training
sees: ``resize_bicubic``, the bits of Pillow. Before all this a photograph is shrunk to a viewing size: five crops see most
of a small photograph and a few hundredths of a large one, and blur that its pixels show vanishes on a screen.

``views`` is for photographs in memory, on any device. An exchange format has no such operator: for it ``ten_crops`` writes
Pillow's integers (22-bit weights, a rounding to 8 bits after each of the two passes) as matrix products in float64, which
holds them exactly, and makes only the pixels that the crops need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops  # noqa: F401  (defines resize_bicubic)

CROPS, SCALES = 5, 2
VIEW = 1024  # the usual viewing size: pixels of the longer side
FULL = "full"  # no viewing size: a photograph as it is
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))  # (row, column) of the crops: 0 first, 1 last, 2 central
_TAPS = 9  # 2 * ceil(2 * scale) + 1 of a bicubic filter; halving has 1 <= scale <= 2
_UNIT = 2.0**22  # stands for a weight of 1


# ---- viewing size ----------------------------------------------------------------------------------------------------
def check_view(view: int | str) -> int | None:
    """A viewing size, "full" or a number of pixels (a text of digits too) -> None or the pixels; ValueError for another."""
    if view == FULL:
        return None
    number = int(view) if isinstance(view, str) and view.isdecimal() else view
    if isinstance(number, bool) or not isinstance(number, int) or not 16 <= number <= 1 << 16:
        raise ValueError(f"view must be {FULL} or a number of pixels in 16..65536, got {view!r}")
    return number


def viewed_size(height: int, width: int, view: int | None) -> tuple[int, int]:
    """The size at which a photograph is seen: its longer side at most ``view`` pixels, never enlarged."""
    longer = max(height, width)
    if view is None or longer <= view:
        return height, width
    return tuple(max(1, (2 * n * view + longer) // (2 * longer)) for n in (height, width))


def fit_view(photo: Tensor, view: int | None) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, h, w] of ``viewed_size``, by Pillow's antialiased bicubic filter."""
    height, width = photo.shape[1:]
    size = viewed_size(height, width, view)
    if size == (height, width):
        return photo
    return torch.ops.shamisa.resize_bicubic(photo, 0, height, 0, width, *size)


# ---- photographs -----------------------------------------------------------------------------------------------------
def half_size(photo: Tensor) -> Tensor:
    """uint8 [3, H, W] -> [3, ceil(H / 2), ceil(W / 2)], by Pillow's antialiased bicubic filter."""
    height, width = photo.shape[1:]
    return torch.ops.shamisa.resize_bicubic(photo, 0, height, 0, width, (height + 1) // 2, (width + 1) // 2)


def five_crops(photo: Tensor, crop: int) -> Tensor:
    """uint8 [3, H, W] -> [5, 3, crop, crop]: top left, top right, bottom left, bottom right, centre."""
    photo = _mirror(_mirror(photo, 1, crop), 2, crop)
    places = [(0, n - crop, (n - crop) // 2) for n in photo.shape[1:]]
    corners = [(places[0][row], places[1][column]) for row, column in PLACES]
    return torch.stack([photo[:, t : t + crop, left : left + crop] for t, left in corners])


def _mirror(photo: Tensor, dim: int, size: int) -> Tensor:
    """Continue a dimension to at least ``size`` by mirroring about the first and last pixel, as often as it takes."""
    n = photo.shape[dim]
    if n >= size:
        return photo
    position = torch.arange(size, device=photo.device) - (size - n) // 2
    period = max(1, 2 * (n - 1))
    position = position.remainder(period)
    return photo.index_select(dim, torch.minimum(position, period - position) if n > 1 else position)


def views(photo: Tensor, crop: int, view: int | None = None) -> Tensor:
    """uint8 [3, H, W] -> [2, 5, 3, crop, crop]: the five crops of the full and of half size; on the photo's device.

    view: the viewing size that is full size here, pixels of the longer side; None: that of the photograph.
    """
    if photo.dim() != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8 or 0 in photo.shape:
        raise ValueError(f"photo must be uint8 [3, H, W], got {photo.dtype} {list(photo.shape)}")
    photo = fit_view(photo, view)
    return torch.stack([five_crops(photo, crop), five_crops(half_size(photo), crop)])


# ---- the same as tensor arithmetic -----------------------------------------------------------------------------------
def ten_crops(images: Tensor, crop: int) -> Tensor:
    """Images uint8 [N, 3, H, W] -> their crops uint8 [N, 2, 5, 3, crop, crop]: of full and of half size, five places.

    Equal to ``views`` of each image, bit for bit. On the device of ``images``; 25 MB of working memory for an
    image at crop = 224.
    """
    places = torch.tensor(PLACES, device=images.device)
    rows, cols = (_crop_positions(images, dim, crop) for dim in (2, 3))
    full = _take(images, rows[places[:, 0]], cols[places[:, 1]])
    (rows, down), (cols, across) = (_half_filter(images, dim, crop) for dim in (2, 3))
    half = _take(images, rows[places[:, 0]], cols[places[:, 1]]).double()
    # transposed before it is chosen: onnxruntime 1.23 fuses a transpose beside a product into an op it has not for doubles
    half = _rounded(half @ across.mT[places[:, 1]])
    half = _rounded(down[places[:, 0]] @ half)
    return torch.stack([full, half.to(torch.uint8)], 1).transpose(2, 3)


def shrink(images: Tensor, view: int | None) -> Tensor:
    """As ``fit_view`` of a batch uint8 [N, 3, H, W], in operators that programs have: of images above the viewing size, some
    pixels differ by a level or two (float32 instead of Pillow's integers)."""
    if view is None:
        return images
    height, width = images.shape[2:]
    longer = torch.sym_max(height, width)
    target = torch.sym_min(longer, view)
    size = [torch.sym_max((2 * n * target + longer) // (2 * longer), 1) for n in (height, width)]
    seen = torch.nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return seen.round().clamp(0, 255).to(torch.uint8)


def _rounded(total: Tensor) -> Tensor:
    return ((total + _UNIT / 2) / _UNIT).floor().clamp(0, 255)


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


def _half_filter(images: Tensor, dim: int, crop: int) -> tuple[Tensor, Tensor]:
    """Halving along a dimension, for the three places: pixels that enter [3, P] int64, and their weights [3, crop, P]
    float64, integers."""
    size, device = images.shape[dim], images.device
    n = torch.full((), size, device=device)
    m = torch.arange((size + 1) // 2, device=device, dtype=torch.float64)  # pixels of the half image
    scale = n.double() / ((n + 1) // 2).double()
    center = scale * (m + 0.5)
    first = (center - 2 * scale + 0.5).clamp(min=0).long()
    last = torch.minimum((center + 2 * scale + 0.5).long(), n)
    tap = first.unsqueeze(1) + torch.arange(_TAPS, device=device)  # [m, _TAPS]
    weight = _bicubic((tap - center.unsqueeze(1) + 0.5) * (1 / scale)) * (tap < last.unsqueeze(1))
    total = weight[:, 0]
    for i in range(1, _TAPS):  # one after the other, as Pillow adds: every bit counts
        total = total + weight[:, i]
    weight = weight / total.unsqueeze(1) * _UNIT
    weight = (weight + torch.where(weight < 0, -0.5, 0.5)).trunc()

    chosen = _crop_positions(images, dim, crop, half=True)  # [3, crop]
    tap, weight = tap[chosen], weight[chosen]
    start = tap.flatten(1).amin(1, keepdim=True)  # [3, 1]
    span = 2 * crop + _TAPS
    dense = torch.zeros(3, crop, span, dtype=torch.float64, device=device)
    dense = dense.scatter_add(2, (tap - start.unsqueeze(2)).clamp(max=span - 1), weight)
    return torch.minimum(start + torch.arange(span, device=device), n - 1), dense


def _bicubic(x: Tensor) -> Tensor:
    """Keys's kernel with a = -1/2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((x - 5) * x + 8) * x - 4
    return torch.where(x < 1, near, torch.where(x < 2, -0.5 * far, 0.0))
