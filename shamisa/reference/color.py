"""Colour spaces of the distortions: CIE L*a*b* under D65 from sRGB, luma, YCbCr, and the two roundings to 8 bits.

Lab is computed in float64, so that the reference has no rounding of its own to speak of; kernels use float32 polynomials.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB -> XYZ (IEC 61966-2-1 primaries, the usual six digits), and the white of D65.
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
# Inverse of XYZ, computed in float64.
RGB = tuple(tuple(row) for row in torch.linalg.inv(torch.tensor(XYZ, dtype=torch.float64)).tolist())

SNAP = 1 / 512  # of a grey level, see `round_8bit`


def _mix(matrix: tuple[tuple[float, ...], ...], planes: list[Tensor]) -> list[Tensor]:
    """3 x 3 matrix times three planes, without a matmul whose order of summation depends on the batch."""
    return [m[0] * planes[0] + m[1] * planes[1] + m[2] * planes[2] for m in matrix]


def rgb_to_lab(x: Tensor) -> list[Tensor]:
    """RGB [n, 3, H, W] in [0, 1] -> L in [0, 100], a, b, each [n, H, W] float64."""
    x = x.double()
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    relative = [t / w for t, w in zip(_mix(XYZ, list(linear.unbind(1))), WHITE, strict=True)]
    fx, fy, fz = (torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 16 / 116) for t in relative)
    return [116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]


def lab_to_rgb(L: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """L, a, b [n, H, W] -> RGB [n, 3, H, W] in [0, 1], float64; colours outside sRGB are clamped.

    The blue response is clamped at 0 before it is expanded, as scikit-image and kornia do: yellows far outside the gamut
    would otherwise get a negative amount of blue light, which the matrix turns into red.
    """
    fy = (L + 16) / 116
    response = (fy + a / 500, fy, (fy - b / 200).clamp(min=0))
    xyz = [torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787) * w for f, w in zip(response, WHITE, strict=True)]
    linear = torch.stack(_mix(RGB, xyz), 1)
    encoded = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, encoded, 12.92 * linear).clamp(0, 1)


def luma(x: Tensor) -> Tensor:
    """RGB [n, 3, H, W] -> .299 R + .587 G + .114 B, [n, H, W], in the dtype of x."""
    r, g, b = x.unbind(1)
    return 0.299 * r + 0.587 * g + 0.114 * b


def rgb_to_ycbcr(x: Tensor) -> list[Tensor]:
    """RGB [n, 3, H, W] -> Y in [0, 1] and Cb, Cr around 0, each [n, H, W]."""
    y = luma(x)
    return [y, 0.564 * (x[:, 2] - y), 0.713 * (x[:, 0] - y)]


def ycbcr_to_rgb(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """The published inverse of ``rgb_to_ycbcr`` (three decimals), not clamped."""
    return torch.stack([y + 1.403 * cr, y - 0.714 * cr - 0.344 * cb, y + 1.773 * cb], 1)


def to_bytes(x: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8 trunc(255 x), what the codecs get; exact for x = k / 255 in float32."""
    return (x * 255).to(torch.uint8)


def divide(x: Tensor, divisor: float) -> Tensor:
    """x / divisor with one rounding. (CUDA tensors divided by a Python number are multiplied by its reciprocal.)"""
    return x / torch.full((), divisor, dtype=x.dtype, device=x.device)


def round_8bit(x: Tensor) -> Tensor:
    """Float64 in [0, 1] after a trip through Lab -> float32 trunc(255 x + 1/512) / 255.

    Where the operation is the identity (saturation 1, grey pixels) 255 x is an integer up to rounding errors, and a plain
    trunc would toss a coin between two grey levels; 1/512 of a level is far above those errors and far below anything else.
    """
    return divide((x * 255 + SNAP).floor().clamp(max=255).float(), 255)
