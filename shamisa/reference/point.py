"""Distortions that look at one pixel at a time (quantization also at the range of the image): saturation, brightness,
contrast, noise.

Every function is ``f(x [n, 3, H, W] float32 in [0, 1], value [n] float32, key [n] int64) -> [n, 3, H, W] float32``, not yet
clamped; see ``distort.py`` for the table. Numbers that follow from ``value`` alone are computed in float64 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import color
from .philox import normal_pair, uniform, words


def per_image(value: Tensor) -> Tensor:
    """[n] float64 -> [n, 1, 1, 1] float32."""
    return value.float().view(-1, 1, 1, 1)


def color_saturation_hsv(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """m + v (x - m), m the largest channel: the saturation of HSV times v, hue and value kept."""
    largest = x.amax(1, keepdim=True)
    return largest + per_image(value) * (x - largest)


def color_saturation_lab(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """a and b of Lab times v; 8-bit."""
    L, a, b = color.rgb_to_lab(x)
    v = value.double().view(-1, 1, 1)
    return color.round_8bit(color.lab_to_rgb(L, v * a, v * b))


# ---- brightness ------------------------------------------------------------------------------------------------------
def _parabola(x: Tensor, bend: Tensor) -> Tensor:
    """x + bend x (1 - x), clamped: through (0, 0), (.5, .5 + bend / 4), (1, 1)."""
    return (x + bend * (x * (1 - x))).clamp(0, 1)


def brighten(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """(2 q(x) + RGB(100 q(L / 100), a, b)) / 3 with the parabola q through (0, 0), (.5, .5 + v / 2), (1, 1), clamped."""
    bend = 2 * value.double().view(-1, 1, 1, 1)
    L, a, b = color.rgb_to_lab(x)
    lit = color.lab_to_rgb(100 * _parabola(L / 100, bend[:, 0]), a, b)
    return ((2 * _parabola(x.double(), bend) + lit) / 3).float()


def darken(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """The parabola through (0, 0), (.5, .5 - v / 2), (1, 1), clamped."""
    return _parabola(x, per_image(-2 * value.double()))


def mean_shift_down(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """x + v."""
    return x + per_image(value)


mean_shift_up = mean_shift_down


# ---- contrast --------------------------------------------------------------------------------------------------------
def linear_contrast_down(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """The not-a-knot cubic through (0, 0), (.3, .25 - v / 4), (.5, .5), (.7, .75 + v / 4), (1, 1).

    These points are symmetric about (.5, .5), so the spline is one odd cubic: with t = x - .5 it is .5 + a t + c t^3.
    """
    k = (0.05 + value.double() / 4) / 0.042
    a, c = per_image(1 + k / 4), per_image(-k)
    t = x - 0.5
    return t * (a + c * (t * t)) + 0.5


linear_contrast_up = linear_contrast_down


def nonlinear_contrast(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """2 v x + .5 - v."""
    v = value.double()
    return per_image(2 * v) * x + per_image(0.5 - v)


def quantization(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Number of edges floor(255 k / v), k = 1..v-1, strictly below 255 x, min-max normalised over the image.

    A sample on an edge belongs to the bucket below it, as in MATLAB's imquantize and the published engine.
    An image with all samples in one bucket has no range to normalise: it becomes bucket / (v - 1).
    """
    out = []
    for image, v in zip(x, value.tolist(), strict=True):
        v = int(v)
        edges = torch.tensor([255 * k // v for k in range(1, v)], dtype=torch.float32, device=x.device)
        bucket = torch.bucketize((image * 255).contiguous(), edges).float()
        low, high = bucket.min(), bucket.max()
        flat = low == high
        # tensors, so that CUDA divides as well (see color.divide)
        out.append((bucket - torch.where(flat, 0, low)) / torch.where(flat, v - 1, high - low))
    return torch.stack(out) if out else x


# ---- noise -----------------------------------------------------------------------------------------------------------
def _pixel_words(x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """The four words of every pixel, each [n, H, W]: element = pixel y W + x, draw 0."""
    pixel = torch.arange(x.shape[2] * x.shape[3], device=x.device).view(1, *x.shape[2:])
    return words(key.view(-1, 1, 1), pixel)


def _noise(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """sqrt(v) n, [n, 3, H, W]: normals n of the channels from words (0, 1) twice and (2, 3)."""
    w = _pixel_words(x, key)
    first, second = normal_pair(w[0], w[1], torch.float64)
    third, _ = normal_pair(w[2], w[3], torch.float64)
    return per_image(value.double().sqrt()) * torch.stack([first, second, third], 1).float()


def white_noise(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """x + sqrt(v) n, n standard normal for every sample."""
    return x + _noise(x, value, key)


def color_noise(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """White noise of variance v in Y, Cb and Cr."""
    noise = _noise(x, value, key).unbind(1)
    return color.ycbcr_to_rgb(*(plane + n for plane, n in zip(color.rgb_to_ycbcr(x), noise, strict=True)))


def multiplicative_noise(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """x (1 + sqrt(v) n)."""
    return x * (1 + _noise(x, value, key))


def impulse_noise(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Every sample is replaced with probability v, by 0 or 1 with equal chance."""
    w = _pixel_words(x, key)
    hit = torch.stack([uniform(w[c]) for c in range(3)], 1) < per_image(value)
    salt = torch.stack([(w[3] >> c) & 1 for c in range(3)], 1)
    return torch.where(hit, salt.float(), x)
