"""The table of the distortions.

The table is the only place that states a distortion's name, kind, group, levels, op code and limits; the C++ catalogue is
made from it when the kernels are built. The definitions are those of KADID-10k (Lin, Hosu, Saupe 2019) as used by ARNIQA
(arXiv 2310.14918) and SHAMISA (arXiv 2603.13669).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distortion:
    """One row of the table.

    Attributes:
        name: what ``shamisa.distort`` calls it, the key of ``DISTORTIONS``.
        kind: pixel (a pixel depends on itself, the parameter and its own random number alone) or image.
        group: blur, color, compression, noise, brightness, spatial or contrast; a chain has at most one of each.
        levels: the raw parameter at the five levels, mild to severe.
        integer: the published engine rounds the parameter to an integer.
        random: the result depends on a key.
        opcode: position in the table, the number that plans and kernels use.
        discrete: the parameter is an integer by nature (a count, a quality), so kernels round it.
        low, high: smallest and largest parameter that a kernel accepts.
        min_size: smallest height and width, pixels.
    """

    name: str
    kind: str
    group: str
    levels: tuple[float, float, float, float, float]
    integer: bool
    random: bool
    opcode: int
    discrete: bool
    low: float
    high: float
    min_size: int

    def value_at(self, severity: float) -> float:
        """``value_at`` of one number: raw parameter at a position in 0..4 of the levels, not rounded; ValueError elsewhere."""
        if not 0 <= severity <= 4:  # NaN fails too
            raise ValueError(f"severity must lie in [0, 4], got {severity}")
        below = min(int(severity), 3)
        return self.levels[below] + (self.levels[below + 1] - self.levels[below]) * (severity - below)


# A literal, which csrc/distort/catalogue.py reads. New rows come last: plans hold op codes.
# name, kind, group, levels, flags (i: published as an integer, d: integer by nature, r: random), low, high, minimum size
ROWS = (
    ("gaussian_blur", "image", "blur", (0.1, 0.5, 1, 2, 5), "", 0, 16, 1),
    ("lens_blur", "image", "blur", (1, 2, 4, 6, 8), "i", 0, 16, 1),
    ("motion_blur", "image", "blur", (1, 2, 4, 6, 10), "ir", 1, 32, 1),
    ("color_diffusion", "image", "color", (1, 3, 6, 8, 12), "i", 0, 16, 1),
    ("color_shift", "image", "color", (1, 3, 6, 8, 12), "ir", 0, 64, 1),
    ("color_saturation_hsv", "pixel", "color", (0.4, 0.2, 0.1, 0, -0.4), "", -4, 4, 1),
    ("color_saturation_lab", "pixel", "color", (1, 2, 3, 6, 9), "i", 0, 16, 1),
    ("jpeg2000", "image", "compression", (16, 32, 45, 120, 170), "i", 1, 1000, 1),
    ("jpeg", "image", "compression", (43, 36, 24, 7, 4), "id", 1, 100, 1),
    ("white_noise", "pixel", "noise", (0.001, 0.002, 0.003, 0.005, 0.01), "r", 0, 1, 1),
    ("color_noise", "pixel", "noise", (0.0001, 0.0005, 0.001, 0.002, 0.003), "r", 0, 1, 1),
    ("impulse_noise", "pixel", "noise", (0.001, 0.005, 0.01, 0.02, 0.03), "r", 0, 1, 1),
    ("multiplicative_noise", "pixel", "noise", (0.001, 0.005, 0.01, 0.02, 0.05), "r", 0, 1, 1),
    ("brighten", "pixel", "brightness", (0.1, 0.2, 0.4, 0.7, 1.1), "", 0, 2, 1),
    ("darken", "pixel", "brightness", (0.05, 0.1, 0.2, 0.4, 0.8), "", 0, 2, 1),
    ("mean_shift_down", "pixel", "brightness", (0, -0.08, -0.115, -0.15, -0.185), "", -1, 1, 1),
    ("mean_shift_up", "pixel", "brightness", (0, 0.08, 0.115, 0.15, 0.185), "", -1, 1, 1),
    ("jitter", "image", "spatial", (0.05, 0.1, 0.2, 0.5, 1), "r", 0, 64, 1),
    ("non_eccentricity_patch", "image", "spatial", (20, 40, 60, 80, 100), "idr", 0, 1000, 48),
    ("pixelate", "image", "spatial", (0.01, 0.05, 0.1, 0.2, 0.5), "", 0, 0.9, 1),
    ("quantization", "image", "spatial", (20, 16, 13, 10, 7), "id", 2, 256, 1),
    ("color_block", "image", "spatial", (2, 4, 6, 8, 10), "idr", 0, 1000, 32),
    ("high_sharpen", "image", "contrast", (1, 2, 3, 6, 12), "i", 0, 64, 1),
    ("linear_contrast_down", "pixel", "contrast", (0, -0.15, -0.3, -0.4, -0.6), "", -1, 1, 1),
    ("linear_contrast_up", "pixel", "contrast", (0, 0.15, 0.3, 0.4, 0.6), "", -1, 1, 1),
    ("nonlinear_contrast", "pixel", "contrast", (0.4, 0.3, 0.2, 0.1, 0.05), "", 0, 1, 1),
)


def _table() -> dict[str, Distortion]:
    return {
        name: Distortion(
            name,
            kind,
            group,
            tuple(float(v) for v in levels),
            "i" in flags,
            "r" in flags,
            code,
            "d" in flags,
            float(low),
            float(high),
            size,
        )
        for code, (name, kind, group, levels, flags, low, high, size) in enumerate(ROWS)
    }


DISTORTIONS: dict[str, Distortion] = _table()
NAMES: tuple[str, ...] = tuple(DISTORTIONS)
GROUPS: dict[str, tuple[str, ...]] = {}  # group -> names, both in table order
for _row in DISTORTIONS.values():
    GROUPS[_row.group] = (*GROUPS.get(_row.group, ()), _row.name)


_LEVELS = torch.tensor([row.levels for row in DISTORTIONS.values()], dtype=torch.float64, device="cpu")  # [rows, 5]


def value_at(severity: Tensor, opcode: Tensor) -> Tensor:
    """Raw parameter at a position in the level table: severity [...] in [0, 4], opcode [...] -> value [...].

    Linear between neighbouring levels; not rounded. Computed in float64.
    """
    levels = _LEVELS.to(severity.device)
    severity = severity.to(torch.float64).clamp(0, 4)
    below = severity.floor().clamp(max=3).long()
    low, high = levels[opcode, below], levels[opcode, below + 1]
    return low + (high - low) * (severity - below)


def severity_at(value: Tensor, opcode: Tensor) -> Tensor:
    """The inverse of ``value_at``: value [...] inside the span of the levels -> severity [...] in [0, 4], float64."""
    levels = _LEVELS.to(value.device)[opcode]  # [..., 5]
    value = value.to(torch.float64)
    rising = (levels[..., -1] >= levels[..., 0]).unsqueeze(-1)
    passed = torch.where(rising, levels <= value.unsqueeze(-1), levels >= value.unsqueeze(-1))
    below = (passed.sum(-1) - 1).clamp(0, 3)
    low = levels.gather(-1, below.unsqueeze(-1)).squeeze(-1)
    high = levels.gather(-1, below.unsqueeze(-1) + 1).squeeze(-1)
    return (below + (value - low) / (high - low)).clamp(0, 4)
