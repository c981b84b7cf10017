"""Every distortion's reference against an independent formula: scipy, scikit-image, numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import skimage.color
import skimage.data
import torch
from torch import Tensor
from torch.testing import assert_close

from shamisa.distortions import DISTORTIONS
from shamisa.reference import distort as reference
from shamisa.reference import filters, spatial
from shamisa.reference.philox import index, normal_pair, uniform, words


def apply(name: str, x: Tensor, value: float | list[float], key: int = 12345) -> Tensor:
    """The reference of one distortion, the same value for all images unless a list is given; keys key, key + 1, ..."""
    values = torch.tensor(value if isinstance(value, list) else [float(value)] * len(x), dtype=torch.float32)
    return reference.apply(DISTORTIONS[name], x, values, key + torch.arange(len(x)))


def hwc(x: Tensor) -> np.ndarray:
    """[3, H, W] -> [H, W, 3] float64."""
    return x.permute(1, 2, 0).double().numpy()


def chw(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))).clamp(0, 1).float()


def assert_levels_close(got: Tensor, wanted: Tensor, share: float) -> None:
    """Both in multiples of 1/255: never more than one grey level apart, and that on at most this share of samples."""
    levels = (got.double() - wanted.double()).mul(255).round().abs()
    assert levels.max() <= 1
    assert (levels > 0).double().mean() <= share


# ---- filters ---------------------------------------------------------------------------------------------------------
def scipy_gaussian(x: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(x, sigma, mode="nearest", radius=radius, axes=(0, 1))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1, 1.3, 2, 5, 16])
def test_gaussian_blur_matches_scipy(small, sigma):
    wanted = chw(scipy_gaussian(hwc(small[0]), float(np.float32(sigma)), math.ceil(2 * sigma)))
    assert_close(apply("gaussian_blur", small[:1], sigma)[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["gaussian_blur", "lens_blur", "jitter", "impulse_noise", "white_noise"])
def test_zero_is_the_identity(small, name):
    assert_close(apply(name, small, 0.0), small, atol=0, rtol=0)


@pytest.mark.parametrize("radius", [0.3, 0.5, 1, 2, 3.7, 8])
def test_lens_taps_are_covered_areas(radius):
    taps = torch.tensor(filters.lens_taps(radius), dtype=torch.float64)
    r, fine = len(taps) // 2, 200
    grid = (torch.arange((2 * r + 3) * fine, dtype=torch.float64) + 0.5) / fine - r - 1.5
    inside = (grid.square()[:, None] + grid.square() <= radius**2).double()
    area = inside.view(2 * r + 3, fine, 2 * r + 3, fine).mean((1, 3))  # one ring of pixels more than the taps
    assert_close(area.sum(), area[1:-1, 1:-1].sum())
    assert_close(taps, area[1:-1, 1:-1] / area.sum(), atol=2e-4, rtol=0)
    assert_close(taps.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(taps, taps.flip(0).T)


@pytest.mark.parametrize(("name", "value"), [("lens_blur", 2.5), ("lens_blur", 8), ("motion_blur", 6)])
def test_dense_filters_match_scipy(small, name, value):
    turn = float(uniform(words(torch.tensor([12345]), 0)[0]))
    taps = np.array(filters.lens_taps(value) if name == "lens_blur" else filters.motion_taps(value, turn))
    wanted = chw(scipy.ndimage.correlate(hwc(small[0]), taps[:, :, None], mode="nearest"))
    assert_close(apply(name, small[:1], value)[0], wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("turn", [0.0, 0.1, 0.25, 0.6])
@pytest.mark.parametrize("length", [1, 2, 3, 7.5, 10])
def test_motion_taps_fall_with_the_distance_to_the_segment(length, turn):
    taps = torch.tensor(filters.motion_taps(length, turn), dtype=torch.float64)
    r = len(taps) // 2
    along = torch.linspace(-(length - 1) / 2, (length - 1) / 2, 20001, dtype=torch.float64)
    points = torch.stack([along * math.sin(math.pi * turn), along * math.cos(math.pi * turn)], 1)
    k = torch.arange(-r - 1, r + 2, dtype=torch.float64)
    pixels = torch.stack(torch.meshgrid(k, k, indexing="ij"), -1).view(-1, 2)
    wanted = (1 - torch.cdist(pixels, points).amin(1)).clamp(min=0).view(2 * r + 3, -1)
    assert_close(taps, (wanted / wanted.sum())[1:-1, 1:-1], atol=1e-4, rtol=0)
    assert_close(taps.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_motion_blur_of_length_one_is_the_identity(small):
    assert_close(apply("motion_blur", small, 1), small, atol=0, rtol=0)


# ---- Lab -------------------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
@pytest.mark.parametrize("value", [0, 1, 2.5, 6, 12])
def test_color_diffusion_matches_skimage(small, value):
    lab = skimage.color.rgb2lab(hwc(small[0]))
    sigma = 1.5 * value + 2
    lab[..., 1:] = value * scipy_gaussian(lab[..., 1:], sigma, math.ceil(2 * sigma))
    wanted = torch.trunc(chw(skimage.color.lab2rgb(lab)) * 255) / 255
    assert_levels_close(apply("color_diffusion", small[:1], value)[0], wanted, share=0.01)


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
@pytest.mark.parametrize("value", [2, 3.3, 9])
def test_color_saturation_lab_matches_skimage(small, value):
    lab = skimage.color.rgb2lab(hwc(small[0])) * np.array([1, np.float32(value), np.float32(value)])
    wanted = torch.trunc(chw(skimage.color.lab2rgb(lab)) * 255) / 255
    assert_levels_close(apply("color_saturation_lab", small[:1], value)[0], wanted, share=0.01)


def test_color_saturation_lab_of_one_keeps_every_8bit_colour():
    """255 y is an integer up to rounding there, which a plain trunc would turn into noise."""
    levels = torch.tensor([0, 1, 2, 3, 9, 10, 11, 12, 63, 64, 100, 127, 128, 200, 254, 255]) / 255
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 64, 64)
    assert_close(apply("color_saturation_lab", x, 1), x, atol=0, rtol=0)


@pytest.mark.parametrize("value", [0.2, 0.7, 1.1])
def test_brighten_matches_skimage(small, value):
    bend = np.polynomial.Polynomial.fit([0, 0.5, 1], [0, 0.5 + float(np.float32(value)) / 2, 1], 2)
    x = hwc(small[0])
    lab = skimage.color.rgb2lab(x)
    lab[..., 0] = 100 * bend(lab[..., 0] / 100).clip(0, 1)
    wanted = chw((2 * bend(x).clip(0, 1) + skimage.color.lab2rgb(lab)) / 3)
    assert_close(apply("brighten", small[:1], value)[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0, 1, 12])
@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_high_sharpen_matches_skimage(small, value):
    lab = skimage.color.rgb2lab(hwc(small[0]))
    lab[..., 0] += value * (lab[..., 0] - scipy_gaussian(lab[..., 0], 3, 6))
    assert_close(apply("high_sharpen", small[:1], value)[0], chw(skimage.color.lab2rgb(lab)), atol=1e-5, rtol=0)


# ---- pointwise -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [1, 0.4, 0])
def test_color_saturation_hsv_scales_the_saturation(small, value):
    hsv = skimage.color.rgb2hsv(hwc(small[0])) * np.array([1, np.float32(value), 1])
    assert_close(apply("color_saturation_hsv", small[:1], value)[0], chw(skimage.color.hsv2rgb(hsv)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("value", [-0.6, -0.15, 0, 0.3, 0.6])
@pytest.mark.parametrize("name", ["linear_contrast_down", "linear_contrast_up"])
def test_linear_contrast_is_the_not_a_knot_spline(small, name, value):
    v = float(np.float32(value))
    spline = scipy.interpolate.CubicSpline(
        [0, 0.3, 0.5, 0.7, 1], [0, 0.25 - v / 4, 0.5, 0.75 + v / 4, 1], bc_type="not-a-knot"
    )
    assert_close(apply(name, small[:1], value)[0], chw(spline(hwc(small[0]))), atol=5e-7, rtol=0)


POINTWISE = {
    "darken": lambda x, v: x - 2 * v * x * (1 - x),
    "mean_shift_down": lambda x, v: x + v,
    "mean_shift_up": lambda x, v: x + v,
    "nonlinear_contrast": lambda x, v: 2 * v * x + 0.5 - v,
}


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_formulas(small, name, level):
    value = float(np.float32(DISTORTIONS[name].levels[level]))
    wanted = chw(POINTWISE[name](hwc(small[0]), value))
    assert_close(apply(name, small[:1], value)[0], wanted, atol=3e-7, rtol=0)


@pytest.mark.parametrize("value", [2, 7, 13, 20, 256])
def test_quantization_matches_numpy(small, value):
    edges = [int(255 * k / value) for k in range(1, value)]
    bucket = np.digitize((small[0] * 255).numpy(), edges, right=True).astype(np.float64)  # edge < sample
    wanted = torch.from_numpy((bucket - bucket.min()) / (bucket.max() - bucket.min())).float()
    assert_close(apply("quantization", small[:1], value)[0], wanted, atol=1e-7, rtol=0)


def test_quantization_of_a_flat_image_is_its_bucket():
    x = torch.full((1, 3, 4, 5), 100 / 255)
    assert_close(apply("quantization", x, 11), torch.full_like(x, 0.4))  # edges 23, 46, 69, 92 | 115: bucket 4 of 0..10


# ---- noise -----------------------------------------------------------------------------------------------------------
def noise_of(name: str, value: float) -> Tensor:
    """[3, 256 * 256] of what a noise adds to mid grey, so weak that nothing is clamped."""
    x = torch.full((1, 3, 256, 256), 0.5)
    return (apply(name, x, value, key=-(2**62)) - x)[0].flatten(1).double()


@pytest.mark.parametrize(("name", "deviation"), [("white_noise", 0.03), ("multiplicative_noise", 0.015)])
def test_noise_is_standard_normal_and_independent(name, deviation):
    n = noise_of(name, 0.0009) / deviation
    assert_close(n.mean(1), torch.zeros(3).double(), atol=0.015, rtol=0)
    assert_close(n.square().mean(1), torch.ones(3).double(), atol=0.02, rtol=0)
    assert_close(n.pow(4).mean(1), torch.full((3,), 3.0).double(), atol=0.15, rtol=0)
    assert_close(torch.corrcoef(n), torch.eye(3).double(), atol=0.015, rtol=0)
    neighbour = (n[:, 1:] * n[:, :-1]).mean(1)
    assert_close(neighbour, torch.zeros(3).double(), atol=0.015, rtol=0)


def test_color_noise_is_white_in_ycbcr():
    r, g, b = noise_of("color_noise", 0.0009) / 0.03
    # undo the published inverse: R - Y = 1.403 Cr, B - Y = 1.773 Cb, G - Y = -.714 Cr - .344 Cb
    cr_part, cb_part = 0.714 / 1.403, 0.344 / 1.773
    y = (g + cr_part * r + cb_part * b) / (1 + cr_part + cb_part)
    n = torch.stack([y, (b - y) / 1.773, (r - y) / 1.403])
    assert_close(torch.cov(n), torch.eye(3).double(), atol=0.02, rtol=0)


def test_impulse_noise_hits_with_its_probability():
    x = torch.full((1, 3, 256, 256), 0.5)
    out = apply("impulse_noise", x, 0.1)[0].flatten(1)
    share = torch.stack([(out == v).double().mean(1) for v in (0.0, 1.0, 0.5)])
    assert_close(share, torch.tensor([[0.05], [0.05], [0.9]]).double().expand(3, 3), atol=0.005, rtol=0)
    hit = (out != 0.5).double()
    assert_close(torch.corrcoef(hit), torch.eye(3).double(), atol=0.02, rtol=0)
    assert_close(apply("impulse_noise", x, 1.0).unique(), torch.tensor([0.0, 1.0]))


def test_noise_addresses(small):
    """Element = pixel: words (0, 1) and (2, 3) make the normals of R, G and B; word c hits channel c, bits of word 3 fill it."""
    x, v = small[:1], 0.05
    w = [t.view(x.shape[2:]) for t in words(torch.tensor(12345), torch.arange(x[0, 0].numel()))]
    n = torch.stack([*normal_pair(w[0], w[1]), normal_pair(w[2], w[3])[0]])
    assert_close(apply("white_noise", x, v)[0], (x[0] + math.sqrt(v) * n).clamp(0, 1), atol=1e-6, rtol=0)
    wanted = torch.stack([torch.where(uniform(w[c]) < v, ((w[3] >> c) & 1).float(), x[0, c]) for c in range(3)])
    assert_close(apply("impulse_noise", x, v)[0], wanted, atol=0, rtol=0)


# ---- spatial ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [0.2, 1, 8])
def test_jitter_matches_scipy(small, value):
    key, (H, W) = torch.tensor([12345]), small.shape[2:]
    x = small[0].double().numpy()
    half = (H * W + 1) // 2
    grid = np.stack(np.mgrid[:H, :W]).reshape(2, -1).astype(np.float64)
    for turn in range(5):
        w = words(key, torch.arange(half), turn)
        first, second = normal_pair(w[0], w[1], torch.float64), normal_pair(w[2], w[3], torch.float64)
        move = np.stack([torch.cat([p, q])[: H * W].numpy() for p, q in zip(first, second, strict=True)])
        at = grid + float(np.float32(value)) * move
        x = np.stack([scipy.ndimage.map_coordinates(p, at, order=1, mode="nearest").reshape(H, W) for p in x])
    assert_close(apply("jitter", small[:1], value)[0], torch.from_numpy(x).float(), atol=1e-4, rtol=0)


def test_non_eccentricity_patch_copies_in_order(small):
    w = [t.tolist() for t in words(torch.tensor(12345), torch.arange(30))]
    wanted, (H, W) = small[0].numpy().copy(), small.shape[2:]
    for a, b, c, d in zip(*w, strict=True):
        i, j = 16 + (a * (H - 47) >> 32), 16 + (b * (W - 47) >> 32)
        to_i, to_j = i + round(16 * ((c >> 8) / 2**24 - 0.5)), j + round(16 * ((d >> 8) / 2**24 - 0.5))
        wanted[:, to_i : to_i + 16, to_j : to_j + 16] = wanted[:, i : i + 16, j : j + 16].copy()
    got = apply("non_eccentricity_patch", small[:1], 30)[0]
    assert_close(got, torch.from_numpy(wanted), atol=0, rtol=0)
    assert (got != small[0]).double().mean() > 0.2


@pytest.mark.parametrize("value", [0, 0.01, 0.2, 0.5, 0.9])
def test_pixelate_matches_interpolate(small, value):
    z = 0.95 - float(np.float32(value)) ** 0.6
    H, W = small.shape[2:]
    little = torch.nn.functional.interpolate(small, (max(1, int(H * z)), max(1, int(W * z))), mode="nearest")
    wanted = torch.nn.functional.interpolate(little, (H, W), mode="nearest")
    assert_close(apply("pixelate", small, value), wanted, atol=0, rtol=0)


def test_color_block_paints_in_order(small):
    wanted, (H, W) = small[0].clone(), small.shape[2:]
    for i in range(4):
        place, paint = (words(torch.tensor(12345), i, draw) for draw in (0, 1))
        y, x = int(index(place[0], H - 31)), int(index(place[1], W - 31))
        for c in range(3):
            wanted[c, y : y + 32, x : x + 32] = uniform(paint[c])
    assert_close(apply("color_block", small[:1], 4)[0], wanted, atol=0, rtol=0)


@pytest.mark.parametrize("value", [1, 3, 12])
def test_color_shift_moves_green_where_there_are_edges(photo, value):
    x = photo.float() / 255
    y = x[0].double().numpy()
    light = 0.299 * y[0] + 0.587 * y[1] + 0.114 * y[2]
    padded = np.pad(light, 1, mode="edge")
    gradient = np.hypot(padded[2:, 1:-1] - padded[:-2, 1:-1], padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    e = scipy_gaussian(gradient, 4, 8)
    e = (e - e.min()) / (e.max() - e.min())
    e = e.clip(*np.percentile(e, [1, 99], method="inverted_cdf"))
    assert_close(spatial.edge_mask(x[0]), torch.from_numpy(e).float(), atol=3e-4, rtol=0)  # a bin is 1/4096
    angle = 2 * math.pi * float(uniform(words(torch.tensor([12345]), 0)[0])[0])
    rows, columns = np.mgrid[:128, :128]
    rows, columns = rows - round(value * math.sin(angle)), columns - round(value * math.cos(angle))
    moved = y[1][rows.clip(0, 127), columns.clip(0, 127)]
    wanted = torch.from_numpy(np.stack([y[0], e * moved + (1 - e) * y[1], y[2]])).float()
    got = apply("color_shift", x, value)
    assert_close(got[0], wanted, atol=3e-4, rtol=0)
    assert_close(got[:, ::2], x[:, ::2], atol=0, rtol=0)


def test_color_shift_leaves_a_flat_image():
    x = torch.rand(1, 3, 1, 1).expand(1, 3, 20, 30)
    assert_close(apply("color_shift", x, 8), x, atol=0, rtol=0)


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_percentile_is_within_a_bin(percent):
    e = torch.rand(7000, generator=torch.Generator().manual_seed(0)) ** 3
    wanted = np.percentile(e.numpy(), percent, method="inverted_cdf")
    assert_close(spatial.percentile(e, percent), float(wanted), atol=0.501 / 4096, rtol=0)
