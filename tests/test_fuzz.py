"""The compiled chain on generated arguments: any shape, layout, dtype, plan and seed, against the reference, against itself
stage by stage, and with arguments that make no sense."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_distort import ONE_LEVEL, TOLERANCE, assert_agrees
from torch import Tensor
from torch.testing import assert_close

from shamisa import ops
from shamisa.distortions import DISTORTIONS, NAMES

if not ops.has_kernel("distort", "cpu"):
    pytest.skip("the CPU kernels are not there", allow_module_level=True)

EXACT = tuple(n for n in NAMES if n not in TOLERANCE and n not in ONE_LEVEL)
POINTWISE = tuple(
    n
    for n in NAMES
    if n.endswith("noise") or "contrast" in n or "shift_" in n or "saturation" in n or n in ("brighten", "darken")
)
STRANGE = [math.nan, math.inf, -math.inf, -0.5, 1.5, -0.0, 1e-42, 3e38, 1.0]
DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = ("contiguous", "channels_last", "transposed", "stepped", "rows", "one_row", "grey", "one_source")
sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))
keys = st.integers(-(2**63), 2**63 - 1)
# the usual range, both limits and beyond them, and no numbers
values = st.one_of(st.floats(0, 1), st.floats(-5, 130, width=32), st.sampled_from([*STRANGE, -3e38, 1e9]))


def fuzz(examples: int):
    """Settings under which every run tries the same arguments."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=slow)


def source_of(size: tuple[int, int], dtype: torch.dtype, layout: str, seed: int, count: int = 2) -> Tensor:
    """[count, 3, H, W] with steps, flat parts and noise; floating samples may be anything."""
    (H, W), g = size, torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, H // 9 + 1, W // 9 + 1, generator=g)
    x = coarse.repeat_interleave(9, 2).repeat_interleave(9, 3)[:, :, :H, :W]
    x = torch.where(torch.rand(count, 1, H, W, generator=g) < 0.5, x, torch.rand(count, 3, H, W, generator=g))
    if dtype == torch.uint8:
        x = (255 * x + 0.5).to(torch.uint8)
    else:
        strange = torch.tensor(STRANGE)[torch.randint(0, len(STRANGE), x.shape, generator=g)]
        x = torch.where(torch.rand(x.shape, generator=g) < 0.05, strange, x).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "stepped":
        wide = torch.zeros(count, 3, 2 * H + 3, 3 * W + 1, dtype=dtype)
        wide[:, :, 2 : 2 + 2 * H : 2, 1 : 1 + 3 * W : 3] = x
        return wide[:, :, 2 : 2 + 2 * H : 2, 1 : 1 + 3 * W : 3]
    if layout == "rows":  # a crop: unit step along the rows, a gap between them
        wide = torch.zeros(count, 3, H + 2, W + 5, dtype=dtype)
        wide[:, :, 1 : 1 + H, 4 : 4 + W] = x
        return wide[:, :, 1 : 1 + H, 4 : 4 + W]
    if layout == "one_row":
        return x[:, :, :1].expand(-1, -1, H, -1)
    if layout == "grey":
        return x[:, :1].expand(-1, 3, -1, -1)
    if layout == "one_source":
        return x[:1].expand(count, -1, -1, -1)
    return x


def run(source: Tensor, index: list[int], chains: list[list[tuple[str, float, int]]], **options) -> Tensor:
    """Every chain is a list of (name, value, key), padded with -1 at its front."""
    D = max((len(c) for c in chains), default=0)
    padded = [[("", 0.0, 0)] * (D - len(c)) + c for c in chains]
    opcode = torch.tensor([[NAMES.index(n) if n else -1 for n, _, _ in c] for c in padded], dtype=torch.int64)
    value = torch.tensor([[v for _, v, _ in c] for c in padded], dtype=torch.float64).float()
    key = torch.tensor([[k for _, _, k in c] for c in padded], dtype=torch.int64)
    shape = len(chains), D
    stages = (t.view(shape) for t in (opcode, value, key))
    return ops.run_distort(source, torch.tensor(index), *stages, **{"backend": "native", **options})


def fitting(name: str, size: tuple[int, int]) -> bool:
    return min(size) >= DISTORTIONS[name].min_size


@pytest.mark.parametrize("name", NAMES)
@fuzz(8)
@given(size=sizes, value=values, key=keys, seed=st.integers(0, 999), layout=st.sampled_from(LAYOUTS))
def test_one_distortion(name, size, value, key, seed, layout):
    least = DISTORTIONS[name].min_size
    size = max(size[0], least), max(size[1], least)
    source = source_of(size, DTYPES[seed % len(DTYPES)], layout, seed)
    chains = [[(name, value, key)]] * 2
    assert_agrees(name, run(source, [0, 1], chains), run(source, [0, 1], chains, backend="reference"))


@st.composite
def chains_of(draw, names: tuple[str, ...], most: int):
    """size, index into 2 sources, chains"""
    size = draw(sizes)
    stage = st.tuples(st.sampled_from([n for n in names if fitting(n, size)]), values, keys)
    chains = draw(st.lists(st.lists(stage, max_size=most), min_size=1, max_size=4))
    return size, draw(st.lists(st.integers(0, 1), min_size=len(chains), max_size=len(chains))), chains


@fuzz(60)
@given(
    plan=chains_of(tuple(n for n in EXACT if n != "jpeg2000"), 6),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    channels_last=st.booleans(),
)
def test_exact_chains(plan, seed, layout, dtypes, channels_last):
    size, index, chains = plan
    source = source_of(size, dtypes[0], layout, seed)
    options = {"dtype": dtypes[1], "channels_last": channels_last}
    if dtypes[1] != torch.uint8 and seed % 2:
        options |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    got, wanted = run(source, index, chains, **options), run(source, index, chains, backend="reference", **options)
    assert got.stride() == wanted.stride()
    assert_close(got, wanted, atol=0, rtol=0)


@fuzz(40)
@given(plan=chains_of(NAMES, 5), seed=st.integers(0, 999), layout=st.sampled_from(LAYOUTS))
def test_a_chain_is_its_stages(plan, seed, layout):
    """Runs of pointwise stages, and what stands between them, leave the bits of every stage alone."""
    size, index, chains = plan
    source = source_of(size, torch.float32, layout, seed)
    got = run(source, index, chains)
    for n, chain in enumerate(chains):
        x = run(source, [index[n]], [[]])
        for stage in chain:
            x = run(x, [0], [[stage]])
        assert_close(got[n : n + 1], x, atol=0, rtol=0)


@pytest.mark.parametrize("depth", [63, 64, 65, 128, 200])
def test_long_runs(depth):
    """longest_run of csrc/distort/pointwise.h is 64."""
    chain = [(POINTWISE[i * 5 % len(POINTWISE)], 0.02 + 0.001 * (i % 7), 31 * i) for i in range(depth)]
    source = source_of((9, 70), torch.uint8, "contiguous", depth)
    for names in (chain, [*chain[:3], ("quantization", 9.0, 0), *chain[3:]]):
        x = run(source, [1], [[]])
        for stage in names:
            x = run(x, [0], [[stage]])
        assert_close(run(source, [1], [names]), x, atol=0, rtol=0)


# ---- sense and nonsense ------------------------------------------------------------------------------------------------
LARGE = ("mean_shift_up", "quantization", "pixelate", "gaussian_blur", "color_shift")
SIZES = [
    (2048, 2048, ("mean_shift_up", "pixelate", "gaussian_blur")),
    (1, 32768, (*LARGE, "jpeg", "impulse_noise")),
    (32768, 1, (*LARGE, "jpeg", "impulse_noise")),
    (3, 1500, (*LARGE, "jpeg", "jpeg2000")),
    (1500, 2, (*LARGE, "jpeg", "jpeg2000")),
]


@pytest.mark.parametrize(("height", "width", "names"), SIZES)
def test_large_sizes(height, width, names):
    source = source_of((height, width), torch.uint8, "contiguous", 3, count=1)
    chains = [[(name, DISTORTIONS[name].levels[2], 7)] for name in names]
    index = [0] * len(names)
    assert_close(run(source, index, chains), run(source, index, chains, backend="reference"), atol=0, rtol=0)


@pytest.mark.parametrize("size", [(1, 32769), (32769, 1), (16384, 8192), (2**20, 2**20)])
def test_too_large(size):
    source = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, *size)
    with pytest.raises((RuntimeError, ValueError), match=r"sides of at most 2\^15 and at most 2\^26 pixels"):
        run(source, [0], [[("darken", 0.1, 0)]])


numbers = st.integers(-(2**63), 2**63 - 1)
arrays = st.tuples(st.integers(0, 3), st.integers(0, 3))  # shapes


@fuzz(120)
@given(
    size=sizes,
    shapes=st.tuples(st.integers(0, 3), arrays, arrays, arrays),
    same=st.booleans(),
    opcode=st.lists(st.one_of(st.integers(-3, 30), numbers), min_size=1, max_size=9),
    index=st.lists(st.one_of(st.integers(-1, 3), numbers), min_size=1, max_size=3),
    value=st.lists(values, min_size=1, max_size=9),
    key=keys,
)
@example((5, 5), (1, (1, 1), (1, 1), (1, 1)), True, [2**32], [0], [0.0], 0)  # 0 if cut to 32 bits
@example((5, 5), (1, (1, 1), (1, 1), (1, 1)), True, [0], [2**32], [0.0], 0)
def test_nonsense(size, shapes, same, opcode, index, value, key):
    """The bare op raises, or computes what the reference does; it neither crashes nor reads what is not there."""
    n, *stages = shapes
    if same:
        stages = [(n, stages[0][1])] * 3

    def filled(values: list, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        wide = torch.float64 if dtype.is_floating_point else dtype
        return torch.tensor((values * (count + 1))[:count], dtype=wide).to(dtype).view(shape)

    arguments = (
        source_of(size, torch.float32, "contiguous", n),
        filled(index, (n,), torch.int64),
        filled(opcode, stages[0], torch.int64),
        filled(value, stages[1], torch.float32),
        filled([key], stages[2], torch.int64),
    )
    sensible = all(s == (n, stages[0][1]) for s in stages) and all(0 <= i < 2 for i in arguments[1].tolist())
    codes = {c for c in arguments[2].flatten().tolist() if c != -1}
    sensible &= all(0 <= c < len(NAMES) and fitting(NAMES[c], size) for c in codes)
    if sensible:
        got = torch.ops.shamisa.distort(*arguments, None, None, torch.float32, False)
        assert got.numel() == 0 or (0 <= float(got.min()) and float(got.max()) <= 1)
        if codes <= {NAMES.index(n) for n in EXACT if n != "jpeg2000"}:
            assert_close(got, ops.run_distort(*arguments, backend="reference"), atol=0, rtol=0)
    else:
        with pytest.raises((RuntimeError, ValueError), match="must"):
            torch.ops.shamisa.distort(*arguments, None, None, torch.float32, False)
