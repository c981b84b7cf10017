"""The table of the 26 distortions, and ``distort``, which applies one of them.

The table is the only place that states a distortion's name, group, levels, op code and limits. The definitions are those
of KADID-10k (Lin, Hosu, Saupe 2019) as used by ARNIQA (arXiv 2310.14918) and SHAMISA (arXiv 2603.13669).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distortion:
    """One row of the table."""

    name: str
    group: str
    levels: tuple[float, float, float, float, float]  # raw parameter at the five levels, mild to severe
    integer: bool  # the published engine rounds the parameter to an integer
    random: bool  # the result depends on a key
    opcode: int  # position in the table, the number that plans and kernels use
    discrete: bool  # the parameter is an integer by nature (a count, a quality), so kernels round it
    low: float  # smallest parameter that a kernel accepts
    high: float  # largest one
    min_size: int  # smallest height and width in pixels


def _table() -> dict[str, Distortion]:
    # name, group, levels, flags (i: published as an integer, d: integer by nature, r: random), low, high, minimum size
    rows = [
        ("gaussian_blur", "blur", (0.1, 0.5, 1, 2, 5), "", 0, 16, 1),
        ("lens_blur", "blur", (1, 2, 4, 6, 8), "i", 0, 16, 1),
        ("motion_blur", "blur", (1, 2, 4, 6, 10), "ir", 1, 32, 1),
        ("color_diffusion", "color", (1, 3, 6, 8, 12), "i", 0, 16, 1),
        ("color_shift", "color", (1, 3, 6, 8, 12), "ir", 0, 64, 1),
        ("color_saturation_hsv", "color", (0.4, 0.2, 0.1, 0, -0.4), "", -4, 4, 1),
        ("color_saturation_lab", "color", (1, 2, 3, 6, 9), "i", 0, 16, 1),
        ("jpeg2000", "compression", (16, 32, 45, 120, 170), "i", 1, 1000, 1),
        ("jpeg", "compression", (43, 36, 24, 7, 4), "id", 1, 100, 1),
        ("white_noise", "noise", (0.001, 0.002, 0.003, 0.005, 0.01), "r", 0, 1, 1),
        ("color_noise", "noise", (0.0001, 0.0005, 0.001, 0.002, 0.003), "r", 0, 1, 1),
        ("impulse_noise", "noise", (0.001, 0.005, 0.01, 0.02, 0.03), "r", 0, 1, 1),
        ("multiplicative_noise", "noise", (0.001, 0.005, 0.01, 0.02, 0.05), "r", 0, 1, 1),
        ("brighten", "brightness", (0.1, 0.2, 0.4, 0.7, 1.1), "", 0, 2, 1),
        ("darken", "brightness", (0.05, 0.1, 0.2, 0.4, 0.8), "", 0, 2, 1),
        ("mean_shift_down", "brightness", (0, -0.08, -0.115, -0.15, -0.185), "", -1, 1, 1),
        ("mean_shift_up", "brightness", (0, 0.08, 0.115, 0.15, 0.185), "", -1, 1, 1),
        ("jitter", "spatial", (0.05, 0.1, 0.2, 0.5, 1), "r", 0, 64, 1),
        ("non_eccentricity_patch", "spatial", (20, 40, 60, 80, 100), "idr", 0, 1000, 48),
        ("pixelate", "spatial", (0.01, 0.05, 0.1, 0.2, 0.5), "", 0, 0.9, 1),
        ("quantization", "spatial", (20, 16, 13, 10, 7), "id", 2, 256, 1),
        ("color_block", "spatial", (2, 4, 6, 8, 10), "idr", 0, 1000, 32),
        ("high_sharpen", "contrast", (1, 2, 3, 6, 12), "i", 0, 64, 1),
        ("linear_contrast_down", "contrast", (0, -0.15, -0.3, -0.4, -0.6), "", -1, 1, 1),
        ("linear_contrast_up", "contrast", (0, 0.15, 0.3, 0.4, 0.6), "", -1, 1, 1),
        ("nonlinear_contrast", "contrast", (0.4, 0.3, 0.2, 0.1, 0.05), "", 0, 1, 1),
    ]
    return {
        name: Distortion(
            name,
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
        for code, (name, group, levels, flags, low, high, size) in enumerate(rows)
    }


DISTORTIONS: dict[str, Distortion] = _table()
NAMES: tuple[str, ...] = tuple(DISTORTIONS)
GROUPS: dict[str, tuple[str, ...]] = {}  # group -> names, both in table order
for _row in DISTORTIONS.values():
    GROUPS[_row.group] = (*GROUPS.get(_row.group, ()), _row.name)


def value_at(severity: Tensor, opcode: Tensor) -> Tensor:
    """Raw parameter at a position in the level table: severity [...] in [0, 4], opcode [...] in 0..25 -> value [...].

    Linear between neighbouring levels; not rounded. Computed in float64.
    """
    levels = torch.tensor([row.levels for row in DISTORTIONS.values()], dtype=torch.float64, device=severity.device)
    severity = severity.to(torch.float64).clamp(0, 4)
    below = severity.floor().clamp(max=3).long()
    low, high = levels[opcode, below], levels[opcode, below + 1]
    return low + (high - low) * (severity - below)


def severity_at(value: Tensor, opcode: Tensor) -> Tensor:
    """The inverse of ``value_at``: value [...] inside the span of the levels -> severity [...] in [0, 4], float64."""
    levels = torch.tensor([row.levels for row in DISTORTIONS.values()], dtype=torch.float64, device=value.device)
    levels = levels[opcode]  # [..., 5]
    value = value.to(torch.float64)
    rising = (levels[..., -1] >= levels[..., 0]).unsqueeze(-1)
    passed = torch.where(rising, levels <= value.unsqueeze(-1), levels >= value.unsqueeze(-1))
    below = (passed.sum(-1) - 1).clamp(0, 3)
    low = levels.gather(-1, below.unsqueeze(-1)).squeeze(-1)
    high = levels.gather(-1, below.unsqueeze(-1) + 1).squeeze(-1)
    return (below + (value - low) / (high - low)).clamp(0, 4)


def distort(
    images: Tensor,
    name: str,
    *,
    severity: float | Tensor | None = None,
    value: float | Tensor | None = None,
    seed: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Apply one distortion to a batch of images.

    Args:
        images: ``[N, 3, H, W]`` or ``[3, H, W]``, RGB, uint8 in 0..255 or floating in 0..1 (clamped; NaN counts as 0), any
            strides, CPU or CUDA. Never modified.
        name: a key of ``shamisa.DISTORTIONS``.
        severity: position in the level table, 0 (mildest) to 4, a number or ``[N]``; linear between levels, the parameter
            rounded where the row says integer. Exactly one of ``severity`` and ``value``.
        value: the raw parameter, a number or ``[N]``, within the row's ``low`` and ``high``.
        seed: random distortions are a pure function of (seed, position in the batch, image).
        backend: ``"auto"`` the compiled kernel for the device if there is one, else the reference; ``"native"`` the compiled
            kernel or a RuntimeError; ``"reference"`` pure PyTorch.

    Returns:
        The distorted images in the shape, dtype and on the device of ``images``; uint8 is rounded to nearest.

    Raises:
        TypeError, ValueError: a bad argument, named, with what was expected and what came.
        RuntimeError: ``backend="native"`` without a compiled kernel.
    """
    from . import ops
    from .reference.philox import DOMAIN_IMAGE, derive_key

    if name not in DISTORTIONS:
        raise ValueError(f"name must be one of shamisa.DISTORTIONS {list(NAMES)}, got {name!r}")
    row = DISTORTIONS[name]
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dim() not in (3, 4) or images.shape[-3] != 3 or images.numel() == 0:
        raise ValueError(f"images must be [N, 3, H, W] or [3, H, W] with N, H, W >= 1, got {list(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating, got {images.dtype}")
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be a 64-bit integer, got {seed!r}")
    batch = images.detach() if images.dim() == 4 else images.detach().unsqueeze(0)
    n = batch.shape[0]
    if (severity is None) == (value is None):
        raise ValueError(
            "exactly one of severity and value must be given, got " + ("none" if value is None else "both")
        )
    if severity is not None:
        s = _per_image("severity", severity, n, 0.0, 4.0)
        v = value_at(s, torch.full((n,), row.opcode))
        v = v.round() if row.integer else v
    else:
        v = _per_image("value", value, n, row.low, row.high)
    position = torch.arange(n)
    key = derive_key(torch.full((n,), seed, dtype=torch.int64), position, domain=DOMAIN_IMAGE)
    device = batch.device
    out = ops.run_distort(
        batch,
        position.to(device),
        torch.full((n, 1), row.opcode, dtype=torch.int64, device=device),
        v.to(device, torch.float32).reshape(n, 1),
        key.to(device).reshape(n, 1),
        dtype=batch.dtype,
        backend=backend,
    )
    return out if images.dim() == 4 else out[0]


def _per_image(name: str, given: float | Tensor, n: int, low: float, high: float) -> Tensor:
    """A number or [N] -> float64 [N] on the CPU, checked to lie in low..high."""
    if not isinstance(given, (int, float, Tensor)):
        raise TypeError(f"{name} must be a number or a tensor [N], got {type(given).__name__}")
    t = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
    if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != n):
        raise ValueError(f"{name} must be a number or [N] = [{n}], got {list(t.shape)}")
    t = t.expand(n)
    # `not all inside` also catches NaN
    if not bool(((t >= low) & (t <= high)).all()):
        raise ValueError(
            f"{name} must lie in [{low:g}, {high:g}], got {t.tolist() if n < 9 else f'{t.min()}..{t.max()}'}"
        )
    return t
