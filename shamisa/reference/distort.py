"""Chains of distortions in PyTorch: the reference, and specification, of the op ``distort``.

The definitions are in ``point.py``, ``filters.py``, ``spatial.py`` and ``codecs.py``, one function of its name each:
``f(x [n, 3, H, W] float32 in [0, 1], value [n], key [n] int64) -> [n, 3, H, W]``. Around them stands the same frame for all:

- entry: uint8 -> x / 255; floating -> clamped to [0, 1], NaN -> 0; float32 from there on; floating images in another range
  are refused (``ranges.py`` says when);
- ``value`` clamped to the row's ``low`` and ``high`` (NaN -> low), rounded half to even where the row is ``discrete``;
- every result clamped to [0, 1]; an image depends on nothing but itself, its value and its key, never on the batch;
- exit: (x - mean) / std if given, then the output dtype; uint8 is floor(255 x + .5).

How exactly the compiled kernels agree with this reference. Measured on the CPU on noise and photographs from 1 x 1 to
224 x 224 at the levels and at both limits; in brackets what the tests allow:

=========================================================== =====================================================
gaussian_blur, color_shift, color_saturation_hsv, jpeg2000, bit for bit
jpeg, impulse_noise, darken, mean_shift_down, mean_shift_up,
non_eccentricity_patch, pixelate, quantization, color_block,
linear_contrast_down, linear_contrast_up, nonlinear_contrast
lens_blur, motion_blur                                      3e-7 [1e-6]
white_noise, multiplicative_noise                           2e-7 [1e-6]
color_noise                                                 5e-7 [2e-6]
brighten                                                    2e-6 [5e-6]
jitter                                                      1e-5 [5e-5]
high_sharpen                                                3e-5 at the levels, 2e-4 at v = 64 [5e-4]
color_diffusion, color_saturation_lab                       one grey level on 0.05 % of the samples [1 %]
=========================================================== =====================================================

The kernels for the x86-64 levels v2, v3 and v4 agree with each other bit for bit. A rounding decision inside (the shift of
color_shift, the sizes of pixelate) is taken in float64 and could differ only where a transcendental number comes within 1e-14
of a tie. On the CPU the result for an image does not depend on its batch, bit for bit; Lab and Box-Muller are computed in
float64, whose last bit may depend on the position in the batch, and then rounded to float32 or 8 bits.

Two departures from the plain definitions: the 8-bit step after Lab is trunc(255 y + 1/512), see ``color.round_8bit``, and an
image without range is left alone by color_shift and mapped to bucket / (v - 1) by quantization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..distortions import DISTORTIONS, NAMES, Distortion
from . import codecs, color, filters, point, spatial
from .ranges import check_range


def _reference(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function of that name in one of the modules of the references."""
    for module in (point, filters, spatial, codecs):
        if hasattr(module, name):
            return getattr(module, name)
    raise NotImplementedError(f"{name} has a row in the table of distortions but no function in shamisa/reference")


FUNCTIONS = {name: _reference(name) for name in NAMES}


def apply(row: Distortion, x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """One distortion: x [n, 3, H, W] float32 in [0, 1] (not modified), value [n], key [n] int64 -> [n, 3, H, W] float32.

    Raises:
        ValueError: an image smaller than the distortion allows.
    """
    check_size(row, *x.shape[2:])
    value = torch.where(value.isnan(), row.low, value).clamp(row.low, row.high)
    out = FUNCTIONS[row.name](x, value.round() if row.discrete else value, key)
    return out.clamp(0, 1)


def chain(
    source: Tensor,
    index: Tensor,
    opcode: Tensor,
    value: Tensor,
    key: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Chains of distortions, image by image: out[n] is source[index[n]] after opcode[n, 0], opcode[n, 1], ...

    Args:
        source: [S, 3, H, W] uint8 or floating, any strides, never modified.
        index: [N] int64 in 0..S-1.
        opcode: [N, D] int64, rows of the distortion table, -1 for no distortion, anywhere.
        value: [N, D] float32, the raw parameters.
        key: [N, D] int64, one key per image and stage; distortions without randomness ignore theirs.
        mean, std: both None or 3 numbers each; the output is (x - mean) / std.
        dtype: of the output; uint8 (without mean and std) or floating.
        channels_last: memory format of the output.

    Returns:
        [N, 3, H, W] in ``dtype``.

    Raises:
        TypeError, ValueError: what ``check_chain`` says; floating images in 0..255 (``ranges.py``), on the CPU.
    """
    check_chain(source, index, opcode, value, key, mean, std, dtype)
    codes, chosen = opcode.cpu(), index.cpu()
    _check_content(codes, chosen, source)
    if source.device.type == "cpu":
        check_range(source)
    x = source.detach()[index].contiguous()
    x = color.divide(x.float(), 255) if x.dtype == torch.uint8 else x.float().nan_to_num(nan=0.0).clamp(0, 1)
    with torch.device("cpu"):  # for the tables that the distortions make, whatever the caller's default device
        for d in range(codes.shape[1]):
            for code in codes[:, d].unique().tolist():
                if code >= 0:
                    rows = (codes[:, d] == code).nonzero()[:, 0].to(x.device)
                    x[rows] = apply(DISTORTIONS[NAMES[code]], x[rows], value[rows, d], key[rows, d])
    if mean is not None:
        mean, std = (torch.tensor(t, dtype=torch.float32, device=x.device).view(3, 1, 1) for t in (mean, std))
        x = (x - mean) / std
    elif dtype == torch.uint8:
        x = (x * 255 + 0.5).floor()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=layout).copy_(x)


# ---- checks ----------------------------------------------------------------------------------------------------------
SOURCE_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_chain(
    source: Tensor,
    index: Tensor,
    opcode: Tensor,
    value: Tensor,
    key: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
) -> None:
    """Check the arguments of ``chain`` before any work; contents are read only of real tensors on the CPU.

    Raises:
        TypeError: a dtype other than the one expected.
        ValueError: a shape, device, mean, std, op code, index or image size that cannot be; named, expected and got.
    """
    if source.dim() != 4 or source.shape[1] != 3 or source.shape[2] < 1 or source.shape[3] < 1:
        raise ValueError(f"source must be [S, 3, H, W] with H, W >= 1, got {list(source.shape)}")
    if source.dtype not in SOURCE_TYPES:
        raise TypeError(f"source must be uint8, float16, bfloat16, float32 or float64, got {source.dtype}")
    if index.dim() != 1:
        raise ValueError(f"index must be [N], got {list(index.shape)}")
    n = index.shape[0]
    if opcode.dim() != 2 or opcode.shape[0] != n:
        raise ValueError(f"opcode must be [N, D] = [{n}, D], got {list(opcode.shape)}")
    for name, t, wanted in (
        ("index", index, torch.int64),
        ("opcode", opcode, torch.int64),
        ("value", value, torch.float32),
        ("key", key, torch.int64),
    ):
        if name in ("value", "key") and t.shape != opcode.shape:
            raise ValueError(f"{name} must be [N, D] = {list(opcode.shape)}, got {list(t.shape)}")
        if t.dtype != wanted:
            raise TypeError(f"{name} must be {wanted}, got {t.dtype}")
        if t.device != source.device:
            raise ValueError(f"{name} must be on the device of source, {source.device}, got {t.device}")
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together, got mean={mean}, std={std}")
    if mean is not None and std is not None:
        for name, t in (("mean", mean), ("std", std)):
            if len(t) != 3 or not all(math.isfinite(v) for v in t):
                raise ValueError(f"{name} must be 3 finite numbers, got {list(t)}")
        if not all(v > 0 for v in std):
            raise ValueError(f"std must be positive, got {list(std)}")
    if not (dtype.is_floating_point or (dtype == torch.uint8 and mean is None)):
        raise TypeError(f"dtype must be floating, or uint8 without mean and std, got {dtype}")
    # fake and functional tensors are subclasses, whose contents must not be read
    if not torch.compiler.is_compiling() and all(type(t) is Tensor and t.device.type == "cpu" for t in (index, opcode)):
        _check_content(opcode, index, source)


def _check_content(opcode: Tensor, index: Tensor, source: Tensor) -> None:
    """Op codes, indices and the sizes that the op codes need; opcode and index on the CPU."""
    for name, t, least, most in (("index", index, 0, source.shape[0] - 1), ("opcode", opcode, -1, len(NAMES) - 1)):
        if t.numel() == 0:
            continue
        low, high = (v.item() for v in t.aminmax())
        if not least <= low <= high <= most:
            raise ValueError(f"{name} must lie in {least}..{most}, got {low}..{high}")
    check_sizes(opcode, *source.shape[2:])


_LARGEST_MIN_SIZE = max(row.min_size for row in DISTORTIONS.values())


def check_sizes(opcode: Tensor, height: int, width: int) -> None:
    """Raise ValueError where an image is too small for one of the op codes (-1: none), which are on the CPU."""
    if min(height, width) < _LARGEST_MIN_SIZE:
        for code in opcode.unique().tolist():
            if code >= 0:
                check_size(DISTORTIONS[NAMES[code]], height, width)


def check_size(row: Distortion, height: int, width: int) -> None:
    """Raise ValueError where an image is too small for a distortion."""
    if min(height, width) < row.min_size:
        least = f"{row.min_size} x {row.min_size}"
        raise ValueError(f"images for {row.name} must be at least {least} pixels, got {height} x {width}")
