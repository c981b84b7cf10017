"""Distortions that move pixels: jitter, patches, blocks, pixelation, colour shift.

Functions as in ``point.py``. Counters (element, draw) of random numbers are stated in each docstring.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import color
from .filters import each_image, gaussian, shifted
from .philox import index, normal_pair, uniform, words

PATCH, BLOCK = 16, 32  # side of a patch and of a block, pixels
JITTER_PASSES = 5
BINS = 4096  # of the histogram that gives percentiles


def jitter(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Five times: sample at (row + v n1, column + v n2), bilinear, coordinates clamped to the image.

    Element i < ceil(H W / 2), draw = pass: words (0, 1) displace pixel i, words (2, 3) pixel i + ceil(H W / 2).
    """
    n, _, H, W = x.shape
    half = (H * W + 1) // 2
    row = torch.arange(H, device=x.device).view(1, H, 1).float()
    column = torch.arange(W, device=x.device).view(1, 1, W).float()
    v = value.view(n, 1, 1)
    for turn in range(JITTER_PASSES):
        w = words(key.view(n, 1), torch.arange(half, device=x.device), turn)
        pairs = zip(normal_pair(w[0], w[1], torch.float64), normal_pair(w[2], w[3], torch.float64), strict=True)
        dy, dx = (torch.cat(p, 1)[:, : H * W].float().view(n, H, W) for p in pairs)
        y = (row + v * dy).clamp(0, H - 1)
        x_ = (column + v * dx).clamp(0, W - 1)
        top, left = y.floor(), x_.floor()
        fy, fx = (y - top).unsqueeze(1), (x_ - left).unsqueeze(1)
        i0, j0 = top.long(), left.long()
        i1, j1 = (i0 + 1).clamp(max=H - 1), (j0 + 1).clamp(max=W - 1)
        flat = x.flatten(2)

        def at(i: Tensor, j: Tensor, flat: Tensor = flat) -> Tensor:
            return flat.gather(2, (i * W + j).view(n, 1, H * W).expand(n, 3, H * W)).view(n, 3, H, W)

        upper, lower = (at(i, j0) + (at(i, j1) - at(i, j0)) * fx for i in (i0, i1))
        x = upper + (lower - upper) * fy
    return x


def non_eccentricity_patch(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """v times, in order: copy a 16 x 16 patch to a place up to 8 pixels away in each axis; read whole, then written.

    Patch i is element i: its row and column from words 0 and 1 (at least 16 pixels from every border), the displacement
    round(16 (u - .5)), half to even, from words 2 and 3.
    """
    out = x.clone()
    H, W = x.shape[2:]
    for image, v, k in zip(out, value.tolist(), key, strict=True):
        w = words(k, torch.arange(int(v), device=x.device))
        source = PATCH + index(w[0], H - 3 * PATCH + 1), PATCH + index(w[1], W - 3 * PATCH + 1)
        move = (torch.round(PATCH * (uniform(u) - 0.5)).long() for u in w[2:])
        target = [s + m for s, m in zip(source, move, strict=True)]
        for i, j, to_i, to_j in torch.stack([*source, *target], 1).tolist():
            patch = image[:, i : i + PATCH, j : j + PATCH].clone()
            image[:, to_i : to_i + PATCH, to_j : to_j + PATCH] = patch
    return out


def pixelate(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Nearest neighbour down to (int(H z), int(W z)), at least 1, with z = .95 - v^.6, and back up.

    Nearest: output i reads input min(in - 1, floor(i * (in / out))), in float32.
    """

    def source(n: int, z: float) -> Tensor:
        small = max(1, int(n * z))
        return _nearest(n, small)[_nearest(small, n)].to(x.device)

    def one(image: Tensor, v: float) -> Tensor:
        z = 0.95 - v**0.6
        return image.index_select(1, source(x.shape[2], z)).index_select(2, source(x.shape[3], z))

    return each_image(one, x, value)


def _nearest(size_in: int, size_out: int) -> Tensor:
    """Input position of every output position, [size_out] int64."""
    scale = torch.tensor(size_in, dtype=torch.float32) / torch.tensor(size_out, dtype=torch.float32)
    return (torch.arange(size_out).float() * scale).floor().long().clamp(max=size_in - 1)


def color_block(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """v squares of 32 x 32 in a uniform random colour, in order.

    Block i is element i: row and column from words 0 and 1 of draw 0, red, green, blue from words 0..2 of draw 1.
    """
    out = x.clone()
    H, W = x.shape[2:]
    for image, v, k in zip(out, value.tolist(), key, strict=True):
        i = torch.arange(int(v), device=x.device)
        place, paint = words(k, i, 0), words(k, i, 1)
        corner = torch.stack([index(place[0], H - BLOCK + 1), index(place[1], W - BLOCK + 1)], 1).tolist()
        for (top, left), rgb in zip(corner, torch.stack([uniform(c) for c in paint[:3]], 1), strict=True):
            image[:, top : top + BLOCK, left : left + BLOCK] = rgb.view(3, 1, 1)
    return out


# ---- colour shift ----------------------------------------------------------------------------------------------------
def color_shift(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """G <- e moved + (1 - e) G: the green channel moved by v in a random direction, blended by the mask ``edge_mask``.

    The direction is 2 pi u from the x axis towards growing rows (element 0, word 0); the content moves by whole pixels
    (round(v sin), round(v cos)), half to even, borders replicated.
    """
    turn = uniform(words(key, 0)[0])

    def one(image: Tensor, v: float, u: float) -> Tensor:
        dy, dx = round(v * math.sin(2 * math.pi * u)), round(v * math.cos(2 * math.pi * u))
        green = image[1]
        e = edge_mask(image)
        return torch.stack([image[0], e * shifted(green, -dy, -dx) + (1 - e) * green, image[2]])

    return each_image(one, x, value, turn)


def edge_mask(image: Tensor) -> Tensor:
    """RGB [3, H, W] -> mask [H, W] in [0, 1]: where the image has edges.

    Gradient magnitude of luma (central differences / 2), Gaussian of radius 8 and sigma 4, min-max normalised, clipped to its
    own 1st and 99th percentile. A mask without range (a flat image) is 0.
    """
    y = color.luma(image.unsqueeze(0))[0]
    dy = (shifted(y, 1, 0) - shifted(y, -1, 0)) * 0.5
    dx = (shifted(y, 0, 1) - shifted(y, 0, -1)) * 0.5
    # float64, because torch's float32 square root is not always the nearest float
    e = gaussian((dy * dy + dx * dx).double().sqrt().float(), 4.0, 8)
    low, high = e.min(), e.max()
    if low == high:
        return torch.zeros_like(e)
    e = (e - low) / (high - low)
    return e.clamp(percentile(e, 1), percentile(e, 99))


def percentile(e: Tensor, percent: int) -> float:
    """Percentile of numbers in [0, 1] by a histogram: the centre of the first bin at which 100 count >= percent n.

    Bin min(4095, int(4096 e)); integer counts, hence the same on every backend.
    """
    count = torch.bincount((e.flatten() * BINS).long().clamp(max=BINS - 1), minlength=BINS).cumsum(0)
    first = int((100 * count < percent * e.numel()).sum())
    return (first + 0.5) / BINS
