"""What a user would pick instead: kornia, torchvision v2, DALI, Pillow for the codecs, scikit-learn, the published code.

All optional: ``Missing`` says what is not there. Every peer takes and gives float images [N, 3, H, W] in 0..1, so that the
conversions a codec needs are part of its time. Parameters are those of level 3 of the table of distortions. Peers marked
"kin" do the same kind of thing by another definition: their time tells, their error against ours is a difference of taste.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Images = Callable[[Tensor], Tensor]


class Missing(Exception):
    """A peer that is not installed, or has no such operation; the message says why."""


def need(module: str):
    """Import a module or raise Missing."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything
        raise Missing(f"{module} cannot be imported: {type(error).__name__}: {error}") from None


def to_uint8(x: Tensor) -> Tensor:
    return (x * 255 + 0.5).clamp(0, 255).to(torch.uint8)


# ---- codecs ----------------------------------------------------------------------------------------------------------
def _pillow(**options) -> Images:
    Image = need("PIL.Image")

    def run(x: Tensor) -> Tensor:
        out = []
        for pixels in to_uint8(x).permute(0, 2, 3, 1).cpu().numpy():
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, **options)
            out.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
        return torch.stack(out).to(x.device).float() / 255

    return run


# ---- torchvision, kornia ---------------------------------------------------------------------------------------------
def _torchvision() -> dict[str, tuple[Images, bool]]:
    F = need("torchvision.transforms.v2.functional")

    def jpeg(x: Tensor) -> Tensor:
        return torch.stack([F.jpeg(image, 24) for image in to_uint8(x).cpu()]).to(x.device).float() / 255

    def elastic(x: Tensor) -> Tensor:
        move = torch.randn(1, *x.shape[2:], 2, device=x.device) * (0.4 / x.shape[2])
        return F.elastic(x, move)

    return {  # distortion -> (function, whether by the same definition)
        "gaussian_blur": (lambda x: F.gaussian_blur(x, [5, 5], [1.0, 1.0]), True),
        "jpeg": (jpeg, True),
        "white_noise": (lambda x: F.gaussian_noise(x, 0.0, 0.003**0.5), True),
        "color_saturation_hsv": (lambda x: F.adjust_saturation(x, 0.1), False),
        "high_sharpen": (lambda x: F.adjust_sharpness(x, 3.0), False),
        "linear_contrast_up": (lambda x: F.adjust_contrast(x, 1.3), False),
        "linear_contrast_down": (lambda x: F.adjust_contrast(x, 0.7), False),
        "brighten": (lambda x: F.adjust_gamma(x, 0.6), False),
        "darken": (lambda x: F.adjust_gamma(x, 1.5), False),
        "quantization": (lambda x: F.posterize(to_uint8(x), 4).float() / 255, False),
        "jitter": (elastic, False),
    }


def _kornia() -> dict[str, tuple[Images, bool]]:
    K = need("kornia")
    quality = torch.tensor([24.0])

    def sharpen(x: Tensor) -> Tensor:
        lab = K.color.rgb_to_lab(x)
        light = lab[:, :1]
        light = light + 3 * (light - K.filters.gaussian_blur2d(light, (13, 13), (3.0, 3.0)))
        return K.color.lab_to_rgb(torch.cat([light, lab[:, 1:]], 1))

    def diffusion(x: Tensor) -> Tensor:
        lab = K.color.rgb_to_lab(x)
        ab = 6 * K.filters.gaussian_blur2d(lab[:, 1:], (45, 45), (11.0, 11.0))
        return K.color.lab_to_rgb(torch.cat([lab[:, :1], ab], 1))

    def saturation(x: Tensor) -> Tensor:
        return K.color.lab_to_rgb(K.color.rgb_to_lab(x) * torch.tensor([1.0, 3, 3], device=x.device).view(3, 1, 1))

    def jitter(x: Tensor) -> Tensor:
        for _ in range(5):
            grid = K.geometry.create_meshgrid(*x.shape[2:], normalized_coordinates=False, device=x.device)
            y = (grid + 0.2 * torch.randn(len(x), *x.shape[2:], 2, device=x.device)).unbind(-1)
            x = K.geometry.remap(x, y[0], y[1], padding_mode="border", align_corners=True)
        return x

    return {
        "gaussian_blur": (lambda x: K.filters.gaussian_blur2d(x, (5, 5), (1.0, 1.0)), True),
        "motion_blur": (lambda x: K.filters.motion_blur(x, 9, 30.0, 0.0), False),
        "color_diffusion": (diffusion, True),
        "color_saturation_lab": (saturation, True),
        "color_saturation_hsv": (lambda x: K.enhance.adjust_saturation(x, 0.1), True),
        "jpeg": (lambda x: K.enhance.jpeg_codec_differentiable(x, quality.expand(len(x)).to(x)), False),
        "white_noise": (lambda x: K.augmentation.RandomGaussianNoise(0.0, 0.003**0.5, p=1.0)(x), True),
        "impulse_noise": (lambda x: K.augmentation.RandomSaltAndPepperNoise(0.01, 0.5, p=1.0)(x), True),
        "mean_shift_up": (lambda x: K.enhance.adjust_brightness(x, 0.115), True),
        "mean_shift_down": (lambda x: K.enhance.adjust_brightness(x, -0.115), True),
        "jitter": (jitter, True),
        "high_sharpen": (sharpen, True),
        "quantization": (lambda x: K.enhance.posterize(x, 4), False),
        "linear_contrast_up": (lambda x: K.enhance.adjust_contrast(x, 1.3), False),
        "linear_contrast_down": (lambda x: K.enhance.adjust_contrast(x, 0.7), False),
    }


def _pillows() -> dict[str, tuple[Images, bool]]:
    return {
        "jpeg": (_pillow(format="JPEG", quality=24), True),
        "jpeg2000": (
            _pillow(format="JPEG2000", quality_mode="rates", quality_layers=[45], num_resolutions=8),
            True,
        ),
    }


# ---- DALI ------------------------------------------------------------------------------------------------------------
def _dali() -> dict[str, tuple[Images, bool]]:
    fn, pipeline_def = need("nvidia.dali.fn"), need("nvidia.dali").pipeline_def

    def through(make: Callable, eight_bit: bool = False) -> Images:
        """Images through a CPU pipeline of one thread, built once per batch size."""
        pipelines: dict[int, object] = {}

        @pipeline_def(num_threads=1, device_id=None, prefetch_queue_depth=1)
        def pipeline():
            return make(fn.external_source(name="images", layout="HWC"))

        def run(x: Tensor) -> Tensor:
            if x.device.type != "cpu":
                raise Missing("DALI rows are for the CPU")
            if len(x) not in pipelines:
                pipelines[len(x)] = pipeline(batch_size=len(x))
                pipelines[len(x)].build()
            x = to_uint8(x) if eight_bit else x
            pipelines[len(x)].feed_input("images", x.permute(0, 2, 3, 1).contiguous().numpy(), layout="HWC")
            out = torch.from_numpy(pipelines[len(x)].run()[0].as_array()).permute(0, 3, 1, 2)
            return out.float() / 255 if eight_bit else out

        return run

    return {
        "gaussian_blur": (
            through(lambda x: fn.gaussian_blur(x, sigma=1.0, window_size=5)),
            True,
        ),  # but for its borders
        "jpeg": (through(lambda x: fn.jpeg_compression_distortion(x, quality=24), True), True),
        "white_noise": (through(lambda x: fn.noise.gaussian(x, stddev=0.003**0.5)), True),
        "impulse_noise": (
            through(lambda x: fn.noise.salt_and_pepper(x, prob=0.01, salt_val=1.0, pepper_val=0.0, per_channel=True)),
            True,
        ),
        "mean_shift_up": (through(lambda x: fn.brightness_contrast(x, brightness_shift=0.115)), True),
        "mean_shift_down": (through(lambda x: fn.brightness_contrast(x, brightness_shift=-0.115)), True),
        "color_saturation_hsv": (through(lambda x: fn.saturation(x, saturation=0.1)), False),
        "linear_contrast_up": (through(lambda x: fn.brightness_contrast(x, contrast=1.3, contrast_center=0.5)), False),
        "linear_contrast_down": (
            through(lambda x: fn.brightness_contrast(x, contrast=0.7, contrast_center=0.5)),
            False,
        ),
    }


LIBRARIES = {"Pillow": _pillows, "torchvision": _torchvision, "kornia": _kornia, "DALI": _dali}
HAVE = {  # so that rows can be named without importing anything
    "Pillow": ("jpeg", "jpeg2000"),
    "torchvision": (
        *("gaussian_blur", "jpeg", "white_noise", "color_saturation_hsv", "high_sharpen", "linear_contrast_up"),
        *("linear_contrast_down", "brighten", "darken", "quantization", "jitter"),
    ),
    "kornia": (
        *("gaussian_blur", "motion_blur", "color_diffusion", "color_saturation_lab", "color_saturation_hsv", "jpeg"),
        *("white_noise", "impulse_noise", "mean_shift_up", "mean_shift_down", "jitter", "high_sharpen"),
        *("quantization", "linear_contrast_up", "linear_contrast_down"),
    ),
    "DALI": (
        *("gaussian_blur", "jpeg", "white_noise", "impulse_noise", "mean_shift_up", "mean_shift_down"),
        *("color_saturation_hsv", "linear_contrast_up", "linear_contrast_down"),
    ),
}


def peer(library: str, distortion: str) -> tuple[Images, bool]:
    """(function, whether it follows the same definition); raises Missing."""
    found = LIBRARIES[library]()
    if set(found) != set(HAVE[library]):
        raise RuntimeError(f"HAVE[{library!r}] must name {sorted(found)}, got {sorted(HAVE[library])}")
    return found[distortion]


# ---- the published code ----------------------------------------------------------------------------------------------
REF = "SHAMISA_REF"  # names a checkout of the published code, which is imported and never copied
MODULES = ("utils.distortions", "utils.utils_distortions", "utils.utils_data")
OTHER_NAMES = {  # ours -> what such a function may be called there, beside our own name
    "color_saturation_hsv": ("color_saturation1", "color_saturation_1"),
    "color_saturation_lab": ("color_saturation2", "color_saturation_2"),
    "color_noise": ("white_noise_cc", "white_noise_ycbcr", "white_noise_color_component"),
    "mean_shift_down": ("mean_shift",),
    "mean_shift_up": ("mean_shift",),
    "linear_contrast_down": ("linear_contrast_change", "linear_contrast"),
    "linear_contrast_up": ("linear_contrast_change", "linear_contrast"),
    "nonlinear_contrast": ("non_linear_contrast_change", "nonlinear_contrast_change", "non_linear_contrast"),
}


def published(distortion: str) -> Callable[[Tensor, float], Tensor]:
    """One image [3, H, W] in 0..1 and a raw parameter -> image, by the published code; raises Missing."""
    root = os.environ.get(REF)
    if not root:
        raise Missing(f"{REF} names no checkout of the published code")
    if not Path(root).is_dir():
        raise Missing(f"{REF} must be a folder, got {root!r}")
    if root not in sys.path:
        sys.path.append(root)
    reasons = []
    for module in MODULES:
        try:
            functions = importlib.import_module(module)
        except Exception as error:  # it brings dependencies of its own
            reasons.append(f"{module}: {type(error).__name__}: {error}")
            continue
        for name in (distortion, *OTHER_NAMES.get(distortion, ())):
            function = getattr(functions, name, None)
            if callable(function):
                return lambda image, value, f=function: f(image.clone(), value)  # some change their input
        reasons.append(f"{module} has no {distortion}")
    raise Missing("; ".join(reasons))
