"""What holds for every distortion: the frame around it, its compiled kernels, the chain, and the front ``shamisa.distort``.

The definitions themselves are tested in test_distortions.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor
from torch.testing import assert_close

from shamisa import ops
from shamisa.distortions import DISTORTIONS, GROUPS, NAMES, severity_at, value_at
from shamisa.engine import distort
from shamisa.reference import distort as reference

ROWS = len(NAMES)
PUBLISHED = (  # in the order of the op codes, which saved plans hold
    *("gaussian_blur", "lens_blur", "motion_blur", "color_diffusion", "color_shift", "color_saturation_hsv"),
    *(
        "color_saturation_lab",
        "jpeg2000",
        "jpeg",
        "white_noise",
        "color_noise",
        "impulse_noise",
        "multiplicative_noise",
    ),
    *("brighten", "darken", "mean_shift_down", "mean_shift_up", "jitter", "non_eccentricity_patch", "pixelate"),
    *(
        "quantization",
        "color_block",
        "high_sharpen",
        "linear_contrast_down",
        "linear_contrast_up",
        "nonlinear_contrast",
    ),
)
RANDOM = tuple(n for n, row in DISTORTIONS.items() if row.random)
ODD_SIZES = ((1, 1), (1, 50), (37, 41))
BACKENDS = ("reference", "native") if ops.has_kernel("distort", "cpu") else ("reference",)


# Largest difference of compiled kernels from the reference; 0 means bit for bit. Measured, with room: see reference/distort.py
TOLERANCE = {
    "lens_blur": 1e-6,
    "motion_blur": 1e-6,
    "white_noise": 1e-6,
    "color_noise": 2e-6,
    "multiplicative_noise": 1e-6,
    "brighten": 5e-6,
    "jitter": 5e-5,
    "high_sharpen": 5e-4,
}
ONE_LEVEL = {"color_diffusion": 0.01, "color_saturation_lab": 0.01}  # 8-bit: one grey level on at most this share


def run(
    name: str, source: Tensor, value: float | list[float], *, key: int = 5, dtype=torch.float32, **options
) -> Tensor:
    """The chain with one stage over all images of source, on its device; the keys are key, key + 1, ..."""
    n, device = len(source), source.device
    values = torch.tensor(value if isinstance(value, list) else [value] * n, dtype=torch.float32)
    stage = torch.full((n, 1), DISTORTIONS[name].opcode), values.view(n, 1), key + torch.arange(n).view(n, 1)
    arguments = (t.to(device) for t in (torch.arange(n), *stage))
    return ops.run_distort(source, *arguments, dtype=dtype, **{"backend": "reference", **options})


# ---- what holds for all ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_damage_grows_with_the_level(photo, name):
    """Mean squared error rises from level to level, over four realisations of random rows."""
    x = photo.expand(4, -1, -1, -1)
    errors = []
    for value in DISTORTIONS[name].levels:
        got = run(name, x if DISTORTIONS[name].random else photo, value)
        errors.append(float((got - photo / 255).square().mean()))
    if name == "linear_contrast_down":  # as published: value 0 raises the contrast
        errors = errors[1:]
    assert errors == sorted(errors)
    assert errors[-1] > 1.5 * errors[0]
    assert errors[-1] > 1e-3


def source_of(name: str, size: tuple[int, int]) -> Tensor:
    """[2, 3, H, W] float32 noise of the size, or of the least size that the distortion takes."""
    least = DISTORTIONS[name].min_size
    shape = (2, 3, max(size[0], least), max(size[1], least))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_frame(backend, name, size):
    """Range, shape, determinism, input untouched, batch independence and strides, at odd sizes."""
    source = source_of(name, size)
    before = source.clone()
    value = DISTORTIONS[name].levels[3]

    def again(x: Tensor, key: int = 5) -> Tensor:
        return run(name, x, value, key=key, backend=backend)

    out = again(source)
    assert out.shape == source.shape
    assert out.dtype == torch.float32
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert_close(source, before, atol=0, rtol=0)
    wide = torch.zeros(*source.shape[:3], 2 * source.shape[3])[..., ::2].copy_(source)
    transposed = source.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (source, wide, transposed, source.to(memory_format=torch.channels_last)):
        assert_close(again(same), out, atol=0, rtol=0)
    assert_close(torch.cat([again(source[:1]), again(source[1:], key=6)]), out, atol=0, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_differ_within_a_batch(small, backend):
    """Every image gets its own value."""
    x = small[:1].expand(3, -1, -1, -1)
    for name, row in DISTORTIONS.items():
        values = [row.levels[0], row.levels[4], row.levels[2]]
        got = run(name, x, values, backend=backend)
        alone = [run(name, x[i : i + 1], v, key=5 + i, backend=backend) for i, v in enumerate(values)]
        assert_close(got, torch.cat(alone), atol=0, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("backend", BACKENDS)
def test_realisation_follows_the_key(small, backend, name):
    value = DISTORTIONS[name].levels[4]
    one, other = (run(name, small[:1], value, key=k, backend=backend) for k in (1, 1 + (1 << 40)))  # upper word differs
    assert (one != other).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_out_of_range_are_clamped(backend, name):
    source = source_of(name, (20, 20))
    value = DISTORTIONS[name].levels[2]
    wild, tame = source.clone(), source.clone()
    for i, (given, meant) in enumerate(((math.nan, 0.0), (math.inf, 1.0), (-math.inf, 0.0), (3.0, 1.0), (-0.5, 0.0))):
        wild[:, :, i, 3], tame[:, :, i, 3] = given, meant
    assert_close(run(name, wild, value, backend=backend), run(name, tame, value, backend=backend), atol=0, rtol=0)


@pytest.mark.parametrize("name", [n for n, row in DISTORTIONS.items() if row.high < 1000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_clamped_to_the_limits(backend, name):
    row, source = DISTORTIONS[name], source_of(name, (20, 20))
    for outside, limit in ((row.low - 5, row.low), (math.nan, row.low), (row.high + 5, row.high)):
        got, wanted = (run(name, source, v, backend=backend) for v in (outside, limit))
        assert_close(got, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("name", [n for n, row in DISTORTIONS.items() if row.discrete])
@pytest.mark.parametrize("backend", BACKENDS)
def test_discrete_values_are_rounded_half_to_even(backend, name):
    x = source_of(name, (33, 33))
    four, below, above, six = (run(name, x, v, backend=backend) for v in (4, 4.5, 5.5, 6))
    assert_close(below, four, atol=0, rtol=0)
    assert_close(above, six, atol=0, rtol=0)
    assert (four != six).any()


# ---- compiled kernels ------------------------------------------------------------------------------------------------
COMPILED = [
    device
    for device, present in (("cpu", True), ("cuda", torch.cuda.is_available()))
    if present and ops.has_kernel("distort", device)
]


def assert_agrees(name: str, got: Tensor, wanted: Tensor) -> None:
    """got, by a compiled kernel, is within the tolerance of the distortion."""
    if name in ONE_LEVEL:
        levels = (got - wanted).mul(255).round().abs()
        assert_close(got, wanted, atol=1.001 / 255, rtol=0)
        assert (levels > 0).sum() <= max(1, ONE_LEVEL[name] * levels.numel())
    else:
        assert_close(got, wanted, atol=TOLERANCE.get(name, 0), rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", COMPILED)
def test_compiled_equals_reference(photo, device, name):
    """Levels, limits and values between, on noise and on a photograph; tile edges, one pixel, one row, one column."""
    row = DISTORTIONS[name]
    most = min(row.high, 200.0)  # a thousand patches only take longer
    values = [*row.levels, row.low, most, (row.levels[0] + row.levels[1]) / 2]
    for size in (*ODD_SIZES, (50, 1), (5, 7), (33, 64), (48, 48)):
        noise = source_of(name, size)[:1]
        H, W = noise.shape[2:]
        for x in (noise, photo[:, :, 30 : 30 + H, 20 : 20 + W].float() / 255):
            batch = x.expand(len(values), -1, -1, -1)
            got = run(name, batch.to(device), values, key=2**61, backend="native").cpu()
            assert_agrees(name, got, run(name, batch, values, key=2**61))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", COMPILED)
def test_compiled_equals_reference_at_224(device, name):
    x = torch.from_numpy(skimage.data.astronaut()[150:374, 100:324].transpose(2, 0, 1).copy())[None]
    value = DISTORTIONS[name].levels[3]
    assert_agrees(name, run(name, x.to(device), value, backend="native").cpu(), run(name, x, value))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kind(small, backend, name):
    """Without its last rows an image keeps the other pixels, and their random numbers, exactly where the kind is pixel."""
    row = DISTORTIONS[name]
    x = 0.1 + 0.8 * small[:1].repeat(1, 1, 2, 1)
    x[:, :, -1, ::2], x[:, :, -1, 1::2] = 0, 1  # the range of the image lies in them
    whole, part = (run(name, y, row.levels[3], backend=backend) for y in (x, x[:, :, :-7]))
    assert torch.equal(whole[:, :, :-7], part) == (row.kind == "pixel")


def test_table():
    assert NAMES[: len(PUBLISHED)] == PUBLISHED
    assert list(GROUPS) == ["blur", "color", "compression", "noise", "brightness", "spatial", "contrast"]
    assert set(reference.FUNCTIONS) == set(NAMES)
    for code, row in enumerate(DISTORTIONS.values()):
        assert row.opcode == code and row.kind in ("pixel", "image")
        assert row.low <= min(row.levels)
        assert max(row.levels) <= row.high
        assert not row.integer or all(v == int(v) for v in row.levels)


# ---- the chain -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
def test_uint8_is_rounded_to_nearest(photo, backend):
    exact = run("gaussian_blur", photo, 1.3, backend=backend)
    got = run("gaussian_blur", photo, 1.3, dtype=torch.uint8, backend=backend)
    assert_close(got, (exact * 255 + 0.5).floor().to(torch.uint8))
    none = ops.run_distort(photo, *stages([[]]), dtype=torch.uint8, backend=backend)
    assert_close(none, photo)


def stages(codes: list[list[int]], index: list[int] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """index, opcode, value, key of chains given by their op codes, every value a middle level."""
    opcode = torch.tensor(codes, dtype=torch.int64).view(len(codes), -1)
    levels = torch.tensor([row.levels[2] for row in DISTORTIONS.values()])
    value = levels[opcode.clamp(min=0)] if opcode.numel() else opcode.float()
    key = torch.arange(opcode.numel()).view(opcode.shape) + 99
    return torch.tensor(range(len(codes)) if index is None else index), opcode, value, key


@pytest.mark.parametrize("backend", BACKENDS)
def test_chain_is_its_stages_one_after_another(photo, backend):
    names = ["color_diffusion", "jitter", "pixelate", "white_noise"]  # among them one that leaves its result elsewhere
    codes = [DISTORTIONS[n].opcode for n in names]
    sources = torch.cat([photo, photo.flip(3)])[:, :, :50, :60]
    chains = [[codes[0], -1, codes[1], codes[2]], [-1] * 4, [codes[3], codes[0], -1, -1]]
    index, opcode, value, key = stages(chains, [1, 0, 1])
    got = ops.run_distort(sources, index, opcode, value, key, backend=backend)
    for n in range(3):
        wanted = sources[index[n]][None].float() / 255
        for d in range(4):
            if opcode[n, d] >= 0:
                wanted = run(NAMES[opcode[n, d]], wanted, float(value[n, d]), key=int(key[n, d]), backend=backend)
        assert_close(got[n : n + 1], wanted, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_is_normalised_and_cast(small, backend, channels_last, dtype):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    row = DISTORTIONS["darken"].opcode
    options = {"mean": mean, "std": std, "dtype": dtype, "channels_last": channels_last, "backend": backend}
    got = ops.run_distort(small, *stages([[row]]), **options)
    plain = ops.run_distort(small, *stages([[row]]), backend=backend)
    wanted = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert_close(got, wanted.to(dtype), atol=0, rtol=0)
    assert got.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches(small, backend):
    none = torch.zeros(0, dtype=torch.int64)
    stage = none.view(0, 2), none.view(0, 2).float(), none.view(0, 2)
    assert ops.run_distort(small[:0], none, *stage, backend=backend).shape == (0, 3, 50, 61)
    with pytest.raises(ValueError, match=r"N, H, W >= 1, got \[0, 3, 50, 61\]"):
        distort(small[:0], "lens_blur", severity=2, backend=backend)


def test_compiles_and_passes_opcheck(small):
    arguments = (small, *stages([[0, 14], [2, -1]]), [0.5] * 3, [0.25] * 3, torch.float32, True)
    torch.library.opcheck(torch.ops.shamisa.distort.default, arguments)
    compiled = torch.compile(lambda *a: torch.ops.shamisa.distort(*a) * 2, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*arguments), torch.ops.shamisa.distort(*arguments) * 2, atol=0, rtol=0)


GOOD = {
    "source": torch.zeros(2, 3, 40, 40),
    "index": torch.zeros(4, dtype=torch.int64),
    "opcode": torch.zeros(4, 2, dtype=torch.int64),
    "value": torch.zeros(4, 2),
    "key": torch.zeros(4, 2, dtype=torch.int64),
    "mean": None,
    "std": None,
    "dtype": torch.float32,
}
BAD = [
    ({"source": torch.zeros(2, 4, 40, 40)}, ValueError, r"source must be \[S, 3, H, W\].*got \[2, 4, 40, 40\]"),
    ({"source": torch.zeros(3, 40, 40)}, ValueError, r"source must be \[S, 3, H, W\].*got \[3, 40, 40\]"),
    ({"source": torch.zeros(2, 3, 0, 40)}, ValueError, r"H, W >= 1, got \[2, 3, 0, 40\]"),
    (
        {"source": torch.zeros(2, 3, 40, 40, dtype=torch.int32)},
        TypeError,
        "source must be uint8, float16, bfloat16, float32 or float64, got torch.int32",
    ),
    ({"index": torch.zeros(4, 1, dtype=torch.int64)}, ValueError, r"index must be \[N\], got \[4, 1\]"),
    ({"index": torch.zeros(4)}, TypeError, "index must be torch.int64, got torch.float32"),
    ({"index": torch.full((4,), 2)}, ValueError, r"index must lie in 0..1, got 2..2"),
    ({"index": torch.full((4,), -1)}, ValueError, r"index must lie in 0..1, got -1..-1"),
    ({"opcode": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, r"opcode must be \[N, D\] = \[4, D\], got \[3, 2\]"),
    ({"opcode": torch.full((4, 2), ROWS)}, ValueError, f"opcode must lie in -1..{ROWS - 1}, got {ROWS}..{ROWS}"),
    ({"value": torch.zeros(4, 3)}, ValueError, r"value must be \[N, D\] = \[4, 2\], got \[4, 3\]"),
    ({"value": torch.zeros(4, 2).double()}, TypeError, "value must be torch.float32, got torch.float64"),
    ({"key": torch.zeros(4, dtype=torch.int64)}, ValueError, r"key must be \[N, D\] = \[4, 2\], got \[4\]"),
    (
        {"key": torch.zeros(4, 2, dtype=torch.int64, device="meta")},
        ValueError,
        "key must be on the device of source, cpu, got meta",
    ),
    ({"mean": [0.5] * 3}, ValueError, "mean and std must be given together"),
    ({"mean": [0.5] * 2, "std": [0.5] * 3}, ValueError, r"mean must be 3 finite numbers, got \[0.5, 0.5\]"),
    ({"mean": [0.5] * 3, "std": [0.5, 0.0, 1.0]}, ValueError, "std must be positive"),
    ({"dtype": torch.int64}, TypeError, "dtype must be floating, or uint8"),
    ({"mean": [0.5] * 3, "std": [0.5] * 3, "dtype": torch.uint8}, TypeError, "uint8 without mean and std"),
    (
        {"opcode": torch.full((4, 2), 18)},
        ValueError,
        "images for non_eccentricity_patch must be at least 48 x 48 pixels, got 40 x 40",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda c: "-".join(c) if isinstance(c, dict) else "")
def test_bad_chains(change, error, message):
    reference.check_chain(**GOOD)
    with pytest.raises(error, match=message):
        reference.check_chain(**{**GOOD, **change})
    with pytest.raises(error, match=message):
        reference.chain(**{**GOOD, **change}, channels_last=False)


# ---- shamisa.distort -------------------------------------------------------------------------------------------------
def test_value_at_and_severity_at_are_inverse():
    code = torch.arange(ROWS).repeat_interleave(41)
    severity = torch.linspace(0, 4, 41, dtype=torch.float64).repeat(ROWS)
    value = value_at(severity, code)
    assert_close(severity_at(value, code), severity, atol=1e-12, rtol=0)
    levels = torch.tensor([row.levels for row in DISTORTIONS.values()], dtype=torch.float64)
    assert_close(value.view(ROWS, 41)[:, ::10], levels, atol=0, rtol=0)
    assert_close(value_at(torch.tensor(1.5), torch.tensor(0)).item(), 0.75)


@pytest.mark.parametrize("name", NAMES)
def test_front_keeps_shape_dtype_and_input(name):
    row = DISTORTIONS[name]
    source = source_of(name, (16, 23))
    for images in ((source * 255).to(torch.uint8), source, source.half(), source.double()):
        before = images.clone()
        out = distort(images, name, severity=2, seed=3, backend="reference")
        assert (out.shape, out.dtype, out.device) == (images.shape, images.dtype, images.device)
        assert_close(images, before, atol=0, rtol=0)
    by_value = distort(images, name, value=row.levels[2], seed=3, backend="reference")
    assert_close(by_value, out, atol=0, rtol=0)
    assert_close(distort(images[0], name, severity=2, seed=3, backend="reference"), out[0], atol=0, rtol=0)
    several = distort(images, name, severity=torch.tensor([2.0, 4.0]), seed=3, backend="reference")
    assert_close(several[0], out[0], atol=0, rtol=0)


def test_front_rounds_where_the_row_says_integer(small):
    half = distort(small, "lens_blur", severity=0.9, backend="reference")  # 1.9, rounded to 2
    assert_close(half, distort(small, "lens_blur", value=2, backend="reference"), atol=0, rtol=0)
    real = distort(small, "lens_blur", value=1.9, backend="reference")
    assert (real != half).any()


def test_front_seeds(small):
    one, same, other = (distort(small, "white_noise", severity=2, seed=s, backend="reference") for s in (1, 1, 2))
    assert_close(one, same, atol=0, rtol=0)
    assert (one != other).any()
    noise = one - small
    assert (noise[0] != noise[1]).any()


FRONT_ERRORS = [
    ({"name": "blur"}, ValueError, "name must be one of shamisa.DISTORTIONS"),
    ({"images": np.zeros((3, 8, 8))}, TypeError, "images must be a torch.Tensor, got ndarray"),
    (
        {"images": torch.zeros(1, 8, 8)},
        ValueError,
        r"images must be \[N, 3, H, W\] or \[3, H, W\] with N, H, W >= 1, got \[1, 8, 8\]",
    ),
    (
        {"images": torch.zeros(3, 8, 8, dtype=torch.int64)},
        TypeError,
        "images must be uint8, float16, bfloat16, float32 or float64, got torch.int64",
    ),
    (
        {"images": torch.zeros(3, 8, 8).to(torch.float8_e4m3fn)},
        TypeError,
        "images must be uint8, .* got torch.float8_e4",
    ),
    ({"images": torch.zeros(1, 3, 8, 8).to_sparse()}, TypeError, "images must be a dense tensor, got torch.sparse_coo"),
    ({"name": ["jpeg"]}, ValueError, "name must be one of shamisa.DISTORTIONS"),
    ({"severity": "1"}, TypeError, r"severity must be a number or \[N\] numbers, got '1'"),
    ({"seed": 1.5}, ValueError, "seed must be a 64-bit integer, got 1.5"),
    ({"severity": None}, ValueError, "exactly one of severity and value must be given, got none"),
    ({"value": 1.0}, ValueError, "exactly one of severity and value must be given, got both"),
    ({"severity": 4.5}, ValueError, r"severity must lie in \[0, 4\], got 4.5"),
    ({"severity": [1, 4.5]}, ValueError, r"severity must lie in \[0, 4\], got \[1.0, 4.5\]"),
    ({"severity": math.nan}, ValueError, r"severity must lie in \[0, 4\]"),
    ({"severity": torch.zeros(3)}, ValueError, r"severity must be a number or \[N\] = \[2\], got \[3\]"),
    ({"severity": None, "value": 17.0}, ValueError, r"value must lie in \[0, 16\]"),
    ({"name": "color_block"}, ValueError, "images for color_block must be at least 32 x 32 pixels, got 8 x 9"),
    ({"backend": "cuda"}, ValueError, "backend must be one of auto, native, reference, got 'cuda'"),
]


@pytest.mark.parametrize(("change", "error", "message"), FRONT_ERRORS)
def test_front_errors(change, error, message):
    arguments = {"images": torch.zeros(2, 3, 8, 9), "name": "gaussian_blur", "severity": 1.0, **change}
    with pytest.raises(error, match=message):
        distort(arguments.pop("images"), arguments.pop("name"), **arguments)


@pytest.mark.parametrize("severity", [(2, 2), [2.0, 2.0], np.array([2.0, 2.0]), np.float32(2), torch.tensor([2, 2])])
def test_front_takes_numbers_of_any_kind(small, severity):
    want = distort(small, "jitter", severity=2.0, seed=3)
    assert_close(distort(small, "jitter", severity=severity, seed=np.int64(3)), want, atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_default_device_does_not_matter(backend):
    images = torch.rand(1, 3, 48, 48)
    for name in DISTORTIONS:
        want = distort(images, name, severity=2.0, backend=backend)
        with torch.device("meta"):
            got = distort(images, name, severity=2.0, backend=backend)
        assert_close(got, want, atol=0, rtol=0)
