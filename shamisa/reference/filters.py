"""Distortions that filter: Gaussian, lens and motion blur, colour diffusion, sharpening. Borders are replicated.

Functions as in ``point.py``. Every image is filtered by itself, tap by tap: no batched convolution, whose order of summation
could depend on the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import color
from .philox import uniform, words


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """out[..., i, j] = x[..., i + dy, j + dx] with replicated borders."""
    for axis, d in ((-2, dy), (-1, dx)):
        if d:
            n = x.shape[axis]
            x = x.index_select(axis, (torch.arange(n, device=x.device) + d).clamp(0, n - 1))
    return x


# ---- Gaussian --------------------------------------------------------------------------------------------------------
def gaussian_taps(sigma: float, radius: int) -> list[float]:
    """Taps at distance 0..radius of the normalised Gaussian filter, float64."""
    taps = [1.0] + [math.exp(-k * k / (2 * sigma * sigma)) for k in range(1, radius + 1)]
    total = 2 * math.fsum(taps[1:]) + 1
    return [t / total for t in taps]


def gaussian(x: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Gaussian filter of [..., H, W]: down the columns, then along the rows; radius ceil(2 sigma); sigma 0 is the identity.

    Taps at equal distance are added before they are weighted, from the centre outwards.
    """
    radius = math.ceil(2 * sigma) if radius is None else radius
    if radius == 0:
        return x.clone()
    taps = gaussian_taps(sigma, radius)
    for dy, dx in ((1, 0), (0, 1)):
        total = taps[0] * x
        for k in range(1, radius + 1):
            total = total + taps[k] * (shifted(x, -k * dy, -k * dx) + shifted(x, k * dy, k * dx))
        x = total
    return x


def gaussian_blur(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Gaussian of sigma v."""
    return each_image(gaussian, x, value)


def each_image(f, x: Tensor, *parameters: Tensor) -> Tensor:
    """f(image [3, H, W], one number of every parameter), image by image."""
    if not len(x):
        return x.clone()
    return torch.stack([f(*one) for one in zip(x, *(p.tolist() for p in parameters), strict=True)])


# ---- other kernels ---------------------------------------------------------------------------------------------------
def correlate(x: Tensor, taps: list[list[float]]) -> Tensor:
    """[..., H, W] with the square taps [2r+1][2r+1], in float64; zero taps are left out."""
    r = len(taps) // 2
    x, total = x.double(), None
    for dy, row in enumerate(taps, -r):
        line = shifted(x, dy, 0)
        for dx, t in enumerate(row, -r):
            if t:
                term = t * shifted(line, 0, dx)
                total = term if total is None else total + term
    return total.float()


def _normalised(taps: list[list[float]]) -> list[list[float]]:
    total = math.fsum(t for row in taps for t in row)
    return [[t / total for t in row] for row in taps]


def _quarter_area(x: float, y: float, r: float) -> float:
    """Area of the disk of radius r inside [0, x] x [0, y], odd in x and in y."""
    sign = math.copysign(1, x) * math.copysign(1, y)
    x, y = min(abs(x), r), min(abs(y), r)
    if x * x + y * y <= r * r:
        return sign * x * y
    edge = math.sqrt(r * r - y * y)  # left of it the rectangle is inside the disk

    def under(t: float) -> float:  # integral of the circle's height from 0 to t
        return (t * math.sqrt(max(0.0, r * r - t * t)) + r * r * math.asin(min(1.0, t / r))) / 2

    return sign * (edge * y + under(x) - under(edge))


def lens_taps(radius: float) -> list[list[float]]:
    """Exact area of every pixel (a unit square) inside the disk, normalised; [2r+1][2r+1]."""
    if radius == 0:
        return [[1.0]]
    r = max(0, math.ceil(radius + 0.5) - 1)  # the outermost pixel whose near edge lies inside
    corner = [k - 0.5 for k in range(-r, r + 2)]
    area = [[_quarter_area(x, y, radius) for x in corner] for y in corner]
    size = range(2 * r + 1)
    # rounding leaves about 1e-16 of area on pixels outside
    inside = [[area[i + 1][j + 1] - area[i][j + 1] - area[i + 1][j] + area[i][j] for j in size] for i in size]
    return _normalised([[t if t > 1e-12 else 0.0 for t in row] for row in inside])


def lens_blur(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Disk of radius v."""
    return each_image(lambda image, v: correlate(image, lens_taps(v)), x, value)


def motion_taps(length: float, turn: float) -> list[list[float]]:
    """max(0, 1 - distance to the segment) of a centred segment, normalised; angle 180 turn degrees from the x axis."""
    half = (length - 1) / 2
    cos, sin = math.cos(math.pi * turn), math.sin(math.pi * turn)
    r = math.ceil(half)

    def distance(dy: int, dx: int) -> float:
        along = min(max(dx * cos + dy * sin, -half), half)  # position of the nearest point of the segment
        return math.hypot(dx - along * cos, dy - along * sin)

    size = range(-r, r + 1)
    return _normalised([[max(0.0, 1 - distance(dy, dx)) for dx in size] for dy in size])


def motion_blur(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Line of length v at angle 180 u degrees (from the x axis towards growing rows)."""
    turn = uniform(words(key, 0)[0])
    return each_image(lambda image, v, u: correlate(image, motion_taps(v, u)), x, value, turn)


# ---- Lab -------------------------------------------------------------------------------------------------------------
def color_diffusion(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """a, b of Lab <- v Gaussian(a, b; sigma = 1.5 v + 2); 8-bit."""
    L, a, b = color.rgb_to_lab(x)
    blurred = each_image(lambda ab, v: v * gaussian(ab, 1.5 * v + 2), torch.stack([a, b], 1), value)
    return color.round_8bit(color.lab_to_rgb(L, *blurred.unbind(1)))


def high_sharpen(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """L of Lab <- L + v (L - Gaussian(L; radius 6, sigma 3))."""
    L, a, b = color.rgb_to_lab(x)
    v = value.double().view(-1, 1, 1)
    return color.lab_to_rgb(L + v * (L - gaussian(L, 3.0, 6)), a, b).float()
