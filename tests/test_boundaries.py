"""Every comparison inside a distortion, with samples exactly on the boundary: which side counts, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import shamisa
from shamisa.distortions import DISTORTIONS, severity_at, value_at
from shamisa.ops import has_kernel, run_distort
from shamisa.reference import color, spatial
from shamisa.reference.philox import index, uniform, words

BACKENDS = ["reference", *(["native"] if has_kernel("distort", "cpu") else [])]
backends = pytest.mark.parametrize("backend", BACKENDS)
BYTES = torch.arange(256, dtype=torch.uint8)


def run(x: Tensor, name: str, value: float, backend: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """One distortion of x [n, 3, H, W] by the op, float32 unless a dtype is given."""
    n = len(x)
    opcode, key = torch.full((n, 1), DISTORTIONS[name].opcode), torch.arange(n).view(n, 1)
    return run_distort(x, torch.arange(n), opcode, torch.full((n, 1), float(value)), key, dtype=dtype, backend=backend)


def around(points: list[float]) -> Tensor:
    """[1, 3, 1, n] float32: each point and its neighbours among the float32 numbers, inside 0..1."""
    at = np.array(points, np.float32)
    both = np.concatenate([at, np.nextafter(at, np.float32(2)), np.nextafter(at, np.float32(-1))])
    return torch.from_numpy(both.clip(0, 1)).expand(1, 3, 1, -1).contiguous()


# ---- quantization ----------------------------------------------------------------------------------------------------
def imquantize(y: np.ndarray, v: int) -> np.ndarray:
    """The definition of MATLAB's imquantize, edge by edge: a sample is above an edge only where it is greater."""
    return sum((y > 255 * k // v).astype(np.float64) for k in range(1, v))


@backends
@pytest.mark.parametrize("value", [2, 3, 7, 10, 13, 16, 20, 85, 255, 256])
def test_quantization_of_samples_on_its_edges(backend, value):
    """All 256 levels as uint8 and float32: 13 or more of them lie on an edge; and their neighbours in float32."""
    bucket = imquantize(np.arange(256), value)
    wanted = torch.from_numpy(bucket / bucket.max()).float().expand(1, 3, 1, -1)
    levels = BYTES.expand(1, 3, 1, -1)
    for x in (levels, levels.float() / 255, levels.double() / 255):
        assert_close(run(x, "quantization", value, backend), wanted, atol=1e-7, rtol=0)
    near = around((np.arange(256, dtype=np.float32) / np.float32(255)).tolist())
    bucket = imquantize((near * 255).numpy(), value)
    wanted = torch.from_numpy((bucket - bucket.min()) / (bucket.max() - bucket.min())).float()
    assert_close(run(near, "quantization", value, backend), wanted, atol=1e-7, rtol=0)


@backends
def test_quantization_of_a_photograph_whose_minimum_is_an_edge(backend):
    """Edges of v = 7 are 36, 72, 109, ...: 36 is bucket 0, so the stretch starts there and 37 is one step up."""
    x = torch.tensor([36, 37, 72, 73, 255], dtype=torch.uint8).expand(1, 3, 1, -1)
    wanted = torch.tensor([0, 1, 1, 2, 6]) / 6
    assert_close(run(x, "quantization", 7.0, backend)[0, 0, 0], wanted, atol=1e-7, rtol=0)


# ---- thresholds in colour spaces -------------------------------------------------------------------------------------
# both sides of each threshold are one curve to this much, so that the side is worth no more than rounding
THRESHOLDS = {
    "decode sRGB above .04045": (0.04045, lambda x: x / 12.92, lambda x: ((x + 0.055) / 1.055) ** 2.4, 5e-8),
    "encode sRGB above .0031308": (0.0031308, lambda x: 12.92 * x, lambda x: 1.055 * x ** (1 / 2.4) - 0.055, 1e-7),
    "cube root above .008856": (0.008856, lambda x: 7.787 * x + 16 / 116, lambda x: x ** (1 / 3), 2e-6),
    "cube above .2068966": (0.2068966, lambda x: (x - 16 / 116) / 7.787, lambda x: x**3, 2e-6),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_curves_meet_at_their_threshold(name):
    at, low, high, gap = THRESHOLDS[name]
    assert abs(low(at) - high(at)) <= gap


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_colour_thresholds_have_the_side_of_scikit_image(step):
    """Greys whose sRGB, linear light and Lab response sit on a threshold, and one float64 number to each side."""
    skimage_color = pytest.importorskip("skimage.color")
    at = [0.04045, 0.008856 * 12.92, 1.055 * 0.008856 ** (1 / 2.4) - 0.055, 0.0031308 * 12.92]
    x = torch.tensor(at, dtype=torch.float64)
    x = x if step == 0 else torch.from_numpy(np.nextafter(x.numpy(), 2.0 * step))
    grey = x.expand(1, 3, 1, -1)
    lab = torch.stack(color.rgb_to_lab(grey), -1)[0, 0]
    assert_close(lab, torch.from_numpy(skimage_color.rgb2lab(grey[0].permute(1, 2, 0).numpy()))[0], atol=2e-3, rtol=0)
    back = color.lab_to_rgb(*(t.view(1, 1, -1) for t in lab.unbind(-1)))
    wanted = torch.from_numpy(skimage_color.lab2rgb(lab.view(1, -1, 3).numpy()))[0].T
    assert_close(back[0, :, 0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["color_saturation_lab", "color_diffusion", "brighten", "high_sharpen"])
@pytest.mark.skipif("native" not in BACKENDS, reason="compares the compiled kernels")
def test_kernels_cross_colour_thresholds_with_the_reference(name):
    x = around([0.04045, 0.0031308 * 12.92, 0.008856 * 12.92, 1.055 * 0.008856 ** (1 / 2.4) - 0.055, 0.0, 1.0])
    value = DISTORTIONS[name].levels[0]
    assert_close(run(x, name, value, "native"), run(x, name, value, "reference"), atol=5e-5, rtol=0)


@backends
def test_saturation_one_keeps_every_grey_level(backend):
    """255 y is an integer here, where a plain trunc would toss a coin."""
    x = BYTES.expand(1, 3, 1, -1)
    assert torch.equal(run(x, "color_saturation_lab", 1.0, backend, torch.uint8), x)


@backends
def test_codecs_see_every_grey_level(backend):
    """trunc(255 x) at x = k / 255 is k, and one float32 below it k - 1: quality 100 keeps flat blocks."""
    flat = BYTES.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    assert torch.equal(run(flat.float() / 255, "jpeg", 100.0, backend, torch.uint8), flat)
    below = torch.from_numpy(np.nextafter((flat[1:].float() / 255).numpy(), np.float32(0)))
    assert torch.equal(run(below, "jpeg", 100.0, backend, torch.uint8), flat[:-1])


# ---- places ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 3, 7, 31, 32, 97, 128, 224, 255, 500, 1023])
def test_pixelate_reads_where_torch_interpolates(size):
    """Nearest neighbour at every level: where i * in / out is an integer too, in float32 as torch does it."""
    for value in DISTORTIONS["pixelate"].levels:
        small = max(1, int(size * (0.95 - value**0.6)))  # the level itself, not its float32
        assert small == max(1, int(size * (0.95 - float(np.float32(value)) ** 0.6)))
        line = torch.arange(size, dtype=torch.float32).view(1, 1, size)  # its dtype is that of the indices
        wanted = F.interpolate(F.interpolate(line, size=small, mode="nearest"), size=size, mode="nearest")
        got = spatial._nearest(size, small)[spatial._nearest(small, size)]
        assert torch.equal(got, wanted[0, 0].long())


@backends
@pytest.mark.parametrize("size", [2, 3, 5, 8, 16, 33])
def test_pixelate_of_any_size_repeats_pixels_of_its_grid(backend, size):
    line = torch.linspace(0, 1, size).expand(1, 3, size, -1).contiguous()
    wanted = F.interpolate(
        F.interpolate(line, size=(max(1, int(size * (0.95 - 0.5**0.6))),) * 2, mode="nearest"), size=(size, size)
    )
    assert torch.equal(run(line, "pixelate", 0.5, backend), wanted)


@pytest.mark.parametrize("n", [1, 2, 3, 193, 1 << 20])
def test_index_covers_both_ends(n):
    assert index(torch.tensor([0, 2**32 - 1]), n).tolist() == [0, n - 1]


@backends
def test_blocks_reach_both_borders_and_fit_the_smallest_image(backend):
    x = torch.zeros(400, 3, 33, 33)
    out = run(x, "color_block", 1.0, backend).amax(1) > 0
    rows, columns = out.any(2).float().argmax(1), out.any(1).float().argmax(1)
    assert set(rows.tolist()) == set(columns.tolist()) == {0, 1}
    assert bool((run(x[:1, :, :32, :32], "color_block", 1.0, backend).std((2, 3)) == 0).all())
    with pytest.raises(ValueError, match="at least 32 x 32"):
        run(x[:1, :, :31], "color_block", 1.0, backend)


@backends
def test_patches_come_from_16_to_the_last_that_fits(backend):
    """At 48 x 48 there is one source, rows 16..31; it lands up to 8 pixels away and nothing else changes."""
    x = torch.arange(48 * 48, dtype=torch.float32).view(1, 1, 48, 48).expand(64, 3, -1, -1) / (48 * 48)
    out = run(x.contiguous(), "non_eccentricity_patch", 1.0, backend)
    moved = (out != x).any(1)
    assert (
        not moved[:, :8].any() and not moved[:, 40:].any() and not moved[:, :, :8].any() and not moved[:, :, 40:].any()
    )
    tops = {int(m.any(1).float().argmax()) for m in moved if m.any()}
    assert tops <= set(range(8, 25)) and len(tops) > 8


@backends
def test_patches_come_from_both_ends_of_the_range(backend):
    """At 49 x 49 rows and columns 16 and 17, which the pixels of a ramp tell."""
    x = torch.arange(49 * 49, dtype=torch.float32).view(1, 1, 49, 49).expand(200, 3, -1, -1) / (49 * 49)
    out = run(x.contiguous(), "non_eccentricity_patch", 1.0, backend)
    found = set()
    for before, after in zip(x[:, 0], out[:, 0], strict=True):
        moved = before != after
        if moved.any():
            first = after[moved.any(1).float().argmax(), moved.any(0).float().argmax()]
            found.add(divmod(round(float(first) * 49 * 49), 49))
    assert found == {(16, 16), (16, 17), (17, 16), (17, 17)}


@backends
def test_probabilities_zero_and_one(backend):
    """u < v: never at v = 0, always at v = 1."""
    x = torch.full((1, 3, 64, 64), 0.5)
    assert torch.equal(run(x, "impulse_noise", 0.0, backend), x)
    assert not bool((run(x, "impulse_noise", 1.0, backend) == 0.5).any())


@backends
def test_a_uniform_that_equals_the_probability_is_no_hit(backend):
    """So that a sample is hit with probability v exactly: of the 2^24 uniforms v 2^24 are below v."""
    x = torch.full((1, 3, 8, 8), 0.5)
    drawn = uniform(words(torch.zeros(1, 1, 1, dtype=torch.int64), torch.arange(64).view(1, 8, 8))[0])[0]
    for v in drawn.flatten()[:6].tolist():
        hit = run(x, "impulse_noise", v, backend)[0, 0] != 0.5  # key 0
        assert torch.equal(hit, drawn < v) and not bool(hit[drawn == v].any())


def test_percentile_is_the_first_bin_that_reaches_its_share():
    """100 samples: the 1st percentile is reached by the first sample, exactly; the 99th by the 99th, not the 100th."""
    e = (torch.arange(100).float() * 40 + 0.5) / spatial.BINS
    assert spatial.percentile(e, 1) == 0.5 / spatial.BINS
    assert spatial.percentile(e, 99) == (98 * 40 + 0.5) / spatial.BINS


def test_histogram_bins_are_closed_below_as_numpys():
    """Samples on the edge of a bin, k / 4096, belong to bin k, and 1 to the last one."""
    edges = torch.arange(spatial.BINS + 1).float() / spatial.BINS
    mine = torch.bincount((edges * spatial.BINS).long().clamp(max=spatial.BINS - 1), minlength=spatial.BINS)
    wanted, _ = np.histogram(edges.numpy(), bins=spatial.BINS, range=(0, 1))
    assert mine.tolist() == wanted.tolist()


@pytest.mark.skipif("native" not in BACKENDS, reason="compares the compiled kernels")
@pytest.mark.parametrize("pixels", [10, 100, 101, 200])
def test_color_shift_at_ties_of_its_percentiles(pixels):
    """Few pixels, with equal edges among them: rank ties and shares of exactly 1 and 99 %, bit for bit."""
    line = torch.tensor([0.0, 1.0, 0.5, 0.5]).repeat(-(-pixels // 4))[:pixels].expand(16, 3, 1, -1).contiguous()
    assert torch.equal(run(line, "color_shift", 12.0, "native"), run(line, "color_shift", 12.0, "reference"))


@backends
@pytest.mark.parametrize("name", ["gaussian_blur", "jitter", "impulse_noise", "white_noise", "darken", "mean_shift_up"])
def test_ends_of_the_range_are_kept(backend, name):
    """0, 1 and what is beyond them by a rounding error: clamped, then left alone by the identity."""
    x = torch.tensor([-1e-7, 0.0, 1.0, 1.0000001, float("nan"), -0.0]).expand(1, 3, 1, -1).contiguous()
    assert torch.equal(run(x, name, 0.0, backend)[0, 0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]))


@backends
def test_results_half_way_between_two_levels_round_up(backend):
    """uint8 output is floor(255 x + .5): ties that float32 can hold."""
    x = torch.tensor([0.5, 0.1, 0.3, 0.7, 0.9]).expand(1, 3, 1, -1).contiguous()
    assert run(x, "mean_shift_up", 0.0, backend, torch.uint8)[0, 0, 0].tolist() == [128, 26, 77, 179, 230]


# ---- severities ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DISTORTIONS)
def test_severity_of_a_level_is_its_number(name):
    row = DISTORTIONS[name]
    code, levels = torch.full((5,), row.opcode), torch.tensor(row.levels, dtype=torch.float64)
    assert torch.equal(value_at(torch.arange(5), code), levels)
    assert_close(severity_at(levels, code), torch.arange(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_half_values_round_to_even_as_python_does():
    """Severity 2.5 of jpeg lies at 15.5, of quantization at 11.5, of high_sharpen at 4.5."""
    for name, wanted in (("jpeg", 16), ("quantization", 12), ("high_sharpen", 4)):
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        by_severity = shamisa.distort(x, name, severity=2.5)
        assert torch.equal(by_severity, shamisa.distort(x, name, value=wanted))
        assert torch.equal(by_severity, shamisa.distort(x, name, severity=[2.5]))
