"""Distortions against other people's libraries, where they are installed. A disagreement stands here with the difference of
definition that makes it, and what is left when that is taken away.

Distortions with no counterpart in any of them: color_shift, jpeg2000 (Pillow: test_codecs.py), color_noise, jitter in two
axes of whole pixels, non_eccentricity_patch, color_block, quantization with a stretch (NumPy: test_boundaries.py).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import shamisa

SIDE = 96


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """[3, 3, 96, 96] float32: multiples of 1/255, random colours, and greys."""
    skimage = pytest.importorskip("skimage.data")
    astronaut = torch.from_numpy(skimage.astronaut()[20 : 20 + SIDE, 160 : 160 + SIDE].transpose(2, 0, 1).copy())
    noise = torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(4))
    grey = torch.arange(SIDE * SIDE).view(1, SIDE, SIDE).expand(3, -1, -1) % 256
    return torch.stack([astronaut.long(), noise, grey]).float() / 255


def to_hwc(x: Tensor) -> np.ndarray:
    """[3, H, W] in 0..1 -> uint8 [H, W, 3]."""
    return (x * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def to_chw(x: np.ndarray) -> Tensor:
    """[H, W, 3] -> [3, H, W] float32, as large as given."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))).float()


def distort(x: Tensor, name: str, value: float) -> Tensor:
    return shamisa.distort(x, name, value=value)


# ---- kornia ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [0.5, 1, 2, 5])
def test_gaussian_blur_is_kornias(photographs, sigma):
    """Radius ceil(2 sigma), borders replicated."""
    kornia = pytest.importorskip("kornia")
    size = 2 * int(np.ceil(2 * sigma)) + 1
    wanted = kornia.filters.gaussian_blur2d(photographs, (size, size), (sigma, sigma), border_type="replicate")
    assert_close(distort(photographs, "gaussian_blur", sigma), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.2, 0.4, 1.0])
def test_saturation_in_hsv_is_kornias(photographs, factor):
    """Factors in 0..1; kornia clips the saturation of others, which has no counterpart in m + v (x - m)."""
    kornia = pytest.importorskip("kornia")
    wanted = kornia.enhance.adjust_saturation(photographs, factor)
    assert_close(distort(photographs, "color_saturation_hsv", factor), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shift", [-0.185, -0.08, 0.0, 0.115, 0.185])
def test_mean_shift_is_kornias_brightness(photographs, shift):
    kornia = pytest.importorskip("kornia")
    wanted = kornia.enhance.adjust_brightness(photographs, shift)
    name = "mean_shift_up" if shift >= 0 else "mean_shift_down"
    assert_close(distort(photographs, name, shift), wanted, atol=1e-6, rtol=0)


def kornia_lab(x: Tensor, change) -> Tensor:
    """Through kornia's Lab in float64, a and b or L changed on the way."""
    kornia = pytest.importorskip("kornia")
    return kornia.color.lab_to_rgb(change(kornia.color.rgb_to_lab(x.double()))).clamp(0, 1)


def assert_levels(got: Tensor, wanted: Tensor, share: float) -> None:
    """At most one grey level apart, on at most this share of the samples: the 8-bit step of ours falls beside theirs."""
    apart = (got.double() - (wanted * 255 + 1 / 512).floor().clamp(0, 255) / 255).mul(255).abs().round()
    assert apart.max() <= 1
    assert (apart > 0).double().mean() <= share


@pytest.mark.parametrize("value", [1, 2, 3, 6, 9])
def test_saturation_in_lab_is_kornias(photographs, value):
    """Kornia and ours differ in the sixth digit of the matrix of sRGB."""
    scale = torch.tensor([1.0, value, value], dtype=torch.float64).view(3, 1, 1)
    wanted = kornia_lab(photographs, lambda lab: lab * scale)
    assert_levels(distort(photographs, "color_saturation_lab", value), wanted, 0.02)


@pytest.mark.parametrize("value", [1, 3, 6])
def test_color_diffusion_is_kornias_blur_of_its_lab(photographs, value):
    kornia = pytest.importorskip("kornia")
    sigma = 1.5 * value + 2
    size = 2 * int(np.ceil(2 * sigma)) + 1

    def blur(lab: Tensor) -> Tensor:
        ab = kornia.filters.gaussian_blur2d(lab[:, 1:], (size, size), (sigma, sigma), border_type="replicate")
        return torch.cat([lab[:, :1], value * ab], 1)

    assert_levels(distort(photographs, "color_diffusion", value), kornia_lab(photographs, blur), 0.05)


@pytest.mark.parametrize("value", [1, 3, 12])
def test_high_sharpen_is_kornias_unsharp_mask_of_lightness(photographs, value):
    kornia = pytest.importorskip("kornia")

    def sharpen(lab: Tensor) -> Tensor:
        light = lab[:, :1]
        blurred = kornia.filters.gaussian_blur2d(light, (13, 13), (3.0, 3.0), border_type="replicate")
        return torch.cat([light + value * (light - blurred), lab[:, 1:]], 1)

    got = distort(photographs, "high_sharpen", value)
    assert_close(got.double(), kornia_lab(photographs, sharpen), atol=2e-3, rtol=0)


def test_impulse_noise_hits_as_often_as_kornias():
    """Kornia hits a pixel in all channels at once, ours every sample: the share of samples is the same, that of pixels is not."""
    kornia = pytest.importorskip("kornia")
    x = torch.full((4, 3, 256, 256), 0.5)
    hits = distort(x, "impulse_noise", 0.03) != 0.5
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = kornia.augmentation.RandomSaltAndPepperNoise(0.03, 0.5, p=1.0)(x) != 0.5
    assert_close(hits.float().mean(), theirs.float().mean(), atol=0.003, rtol=0)
    assert bool((theirs.all(1) == theirs.any(1)).all())
    assert_close(hits.any(1).float().mean(), torch.tensor(1 - 0.97**3), atol=0.003, rtol=0)


def test_posterize_has_other_edges_than_quantization(photographs):
    """Kornia keeps the high bits, so that its edges are k 2^b and a sample on one goes up; 16 buckets of ours have the edges
    15, 31, ..., one lower, and a sample on one stays below. Of whole levels the buckets are therefore the same."""
    kornia = pytest.importorskip("kornia")
    x = photographs[1:2]  # reaches from 0 to 255, so that the stretch is none
    theirs = (kornia.enhance.posterize(x, 4) * 255).round() / 16
    ours = distort(x, "quantization", 16) * 15
    assert_close(ours, theirs.floor(), atol=1e-5, rtol=0)


# ---- scikit-image and SciPy ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "mode", "value"), [("white_noise", "gaussian", 0.005), ("multiplicative_noise", "speckle", 0.02)]
)
def test_noise_has_the_moments_of_scikit_images(name, mode, value):
    util = pytest.importorskip("skimage.util")
    x = torch.full((2, 3, 256, 256), 0.5)
    ours = (distort(x, name, value) - x).double().flatten().numpy()
    theirs = (util.random_noise(x.numpy(), mode=mode, var=value, rng=1) - x.numpy()).ravel()
    for power, atol in ((1, 5e-4), (2, 2e-2 * value)):
        np.testing.assert_allclose((ours**power).mean(), (theirs**power).mean(), atol=atol, rtol=0)
    stats = pytest.importorskip("scipy.stats")
    assert stats.ks_2samp(ours[::7], theirs[::7]).pvalue > 1e-3


def test_salt_is_as_frequent_as_pepper():
    util = pytest.importorskip("skimage.util")
    x = torch.full((2, 3, 256, 256), 0.5)
    ours = distort(x, "impulse_noise", 0.02)
    theirs = torch.from_numpy(util.random_noise(x.numpy(), mode="s&p", amount=0.02, rng=1))
    for level in (0, 1):
        assert_close((ours == level).double().mean(), (theirs == level).double().mean(), atol=1.5e-3, rtol=0)


def test_linear_contrast_is_scipys_not_a_knot_spline(photographs):
    interpolate = pytest.importorskip("scipy.interpolate")
    for value in (-0.6, -0.15, 0.0, 0.3, 0.6):
        knots = ([0, 0.3, 0.5, 0.7, 1], [0, 0.25 - value / 4, 0.5, 0.75 + value / 4, 1])
        curve = interpolate.CubicSpline(*knots, bc_type="not-a-knot")
        wanted = torch.from_numpy(curve(photographs.double().numpy())).clamp(0, 1).float()
        name = "linear_contrast_up" if value >= 0 else "linear_contrast_down"
        assert_close(distort(photographs, name, value), wanted, atol=1e-6, rtol=0)


# ---- imagecorruptions ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (2, 18), (3, 15), (4, 10), (5, 7)])
def test_jpeg_is_that_of_imagecorruptions(photographs, severity, quality):
    """Bit for bit, by Pillow's libjpeg-turbo."""
    corrupt = pytest.importorskip("imagecorruptions").corrupt
    for x in photographs:
        wanted = to_chw(corrupt(to_hwc(x), corruption_name="jpeg_compression", severity=severity)) / 255
        assert_close(distort(x, "jpeg", quality), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.4), (3, 0.2), (5, 0.05)])
def test_nonlinear_contrast_is_that_of_imagecorruptions_about_another_level(photographs, severity, factor):
    """Both scale the distance to a level, by 2 v of ours and by their factor: to 1/2 here, to the mean of each channel there."""
    corrupt = pytest.importorskip("imagecorruptions").corrupt
    for x in photographs:
        wanted = to_chw(corrupt(to_hwc(x), corruption_name="contrast", severity=severity)) / 255
        ours = distort(x, "nonlinear_contrast", factor / 2) + (1 - factor) * (x.mean((1, 2), keepdim=True) - 0.5)
        assert_close(ours, wanted, atol=1 / 255 + 1e-5, rtol=0)  # theirs is cut to whole levels


def test_pixelate_reads_single_pixels_where_imagecorruptions_averages(photographs):
    """Their way down is a mean over boxes, ours nearest neighbour; the way back is the same: blocks of one colour, of which
    each of ours is a pixel of the photograph."""
    corrupt = pytest.importorskip("imagecorruptions").corrupt
    x = photographs[1]
    value = (0.95 - 0.5) ** (1 / 0.6)  # half the size
    ours, theirs = (
        distort(x, "pixelate", value),
        to_chw(corrupt(to_hwc(x), corruption_name="pixelate", severity=2)) / 255,
    )
    for image in (ours, theirs):
        assert bool((image[:, ::2, ::2] == image[:, 1::2, 1::2]).all())
    assert_close(ours[:, ::2, ::2], x[:, ::2, ::2], atol=0, rtol=0)
    assert_close(theirs[:, ::2, ::2], F.avg_pool2d(x, 2), atol=1 / 255 + 1e-6, rtol=0)


# ---- albumentations --------------------------------------------------------------------------------------------------
def albumentations(x: Tensor, make) -> Tensor:
    """A transform of albumentations on [3, H, W] in 0..1, by way of 8 bits; seeds are of no account, p = 1."""
    A = pytest.importorskip("albumentations")
    return to_chw(make(A)(image=to_hwc(x))["image"]) / 255


@pytest.mark.parametrize("quality", [7, 24, 43, 90])
def test_jpeg_is_that_of_albumentations(photographs, quality):
    """Bit for bit, by OpenCV's libjpeg-turbo, once red and blue are exchanged: they hand RGB to an encoder of BGR, so that
    their blue gets the weight of red in luma (up to 53 levels apart at quality 7)."""
    for x in photographs:
        wanted = albumentations(x, lambda A: A.ImageCompression("jpeg", (quality, quality), p=1))
        assert_close(distort(x.flip(0), "jpeg", quality).flip(0), wanted, atol=1e-6, rtol=0)


def test_gaussian_blur_is_that_of_albumentations_off_the_border(photographs):
    """They reflect the border, in 8 bits."""
    for x in photographs:
        wanted = albumentations(x, lambda A: A.GaussianBlur(blur_limit=(5, 5), sigma_limit=(1, 1), p=1))
        inner = (slice(None), slice(2, -2), slice(2, -2))
        assert_close(distort(x, "gaussian_blur", 1.0)[inner], wanted[inner], atol=2 / 255, rtol=0)


def test_pixelate_is_albumentations_downscale(photographs):
    """Nearest neighbour both ways; theirs rounds the size where ours cuts it, so sizes that are whole."""
    cv2 = pytest.importorskip("cv2")
    nearest = {"downscale": cv2.INTER_NEAREST, "upscale": cv2.INTER_NEAREST}
    for scale in (0.25, 0.5, 0.75):
        value = (0.95 - scale) ** (1 / 0.6) - 1e-4  # a little more than the size
        for x in photographs:
            wanted = albumentations(
                x, lambda A, s=scale: A.Downscale(scale_range=(s, s), interpolation_pair=nearest, p=1)
            )
            assert_close(distort(x, "pixelate", value), wanted, atol=1e-6, rtol=0)


def test_posterize_of_albumentations_is_kornias(photographs):
    """The same bits; quantization differs from it as from kornia's."""
    kornia = pytest.importorskip("kornia")
    x = photographs[1]
    wanted = albumentations(x, lambda A: A.Posterize(num_bits=(4, 4), p=1))
    assert_close(kornia.enhance.posterize(x[None], 4)[0], wanted, atol=1e-6, rtol=0)
