"""Encoder and regressor as one module, images to scores: what ``export``, ``metric``, ``hub`` and ``pyiqa_plugin`` share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..engine import IMAGENET_MEAN, IMAGENET_STD
from ..networks.encoders import normalization
from ..ops import has_kernel
from .crops import check_view, fit_view, shrink, ten_crops, views
from .features import by_crop, photographs_per_call
from .ridge import Regressor

SLACK = 1e-3  # of floating images beyond 0..1, a quarter of a level: rounding, of float16 or a normalisation and its inverse


def to_levels(images: Tensor, *, normalized: bool = False) -> Tensor:
    """RGB images [..., 3, H, W] -> uint8 on their device: uint8 as they are, floating 0..1 rounded to the 256 levels.

    Floating values may lie beyond 0..1 by ``SLACK`` and are clipped.

    Args:
        normalized: floating images are (x - mean) / std of ImageNet instead.

    Raises:
        ValueError: a dtype that is neither, uint8 images said to be normalised, or values farther out (NaN too).
    """
    if images.dtype == torch.uint8:
        if normalized:
            raise ValueError("normalised images must be floating, got torch.uint8")
        return images
    if not images.dtype.is_floating_point:
        raise ValueError(f"images must be uint8 or floating, got {images.dtype}")
    images = images.detach().float()
    if normalized:
        mean, std = (torch.tensor(t, device=images.device).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
        images = images * std + mean
    low, high = images.aminmax()
    if not bool((low >= -SLACK) & (high <= 1 + SLACK)):
        when = "normalised images must lie in 0..1 before the normalisation"
        raise ValueError(f"{when if normalized else 'floating images must lie in 0..1'}, got {low:g}..{high:g}")
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


class QualityNet(nn.Module):
    """Images -> quality in 0..1, higher is better, by the protocol of ``shamisa score`` (five crops, full and half size).

    Floating images are first rounded to the 256 levels of files, so that a score does not depend on where the pixels came
    from; hence scores have no gradient with respect to images.

    Args:
        encoder: images [N, 3, crop, crop] normalised by its mean and std -> h [N, F]; in eval mode from here on.
        regressor: fitted on features of this encoder.
        batch: images at a time; each is ten crops. None: see ``features.photographs_per_call``.
        autocast: the encoder runs in the lower precision that ``torch.autocast`` chooses for its device.
    """

    coef: Tensor  # [2F] float64
    intercept: Tensor  # [] float64
    mean: Tensor  # [3, 1, 1] float32
    std: Tensor  # [3, 1, 1] float32

    def __init__(
        self, encoder: nn.Module, regressor: Regressor, *, batch: int | None = None, autocast: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # what is exported or published names no path of this machine
        self.about = {k: v for k, v in regressor.about.items() if k != "checkpoint"}
        photographs_per_call(batch, torch.device("cpu"))  # its error
        self.crop, self.batch, self.autocast = regressor.about["crop"], batch, autocast
        self.view = check_view(regressor.view)
        self.register_buffer("coef", regressor.coef.clone())
        self.register_buffer("intercept", regressor.intercept.clone())
        for name, numbers in normalization(encoder).items():
            self.register_buffer(name, torch.tensor(numbers).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> QualityNet:
        """Stays in eval mode, also as part of a model that trains: the regressor knows no other features."""
        return super().train(False)

    def regressor(self) -> Regressor:
        """The regressor, on the CPU."""
        return Regressor(self.coef.cpu().clone(), self.intercept.cpu().clone(), dict(self.about))

    def levels(self, images: Tensor, normalized: bool = False) -> Tensor:
        """Images [N, 3, H, W] -> uint8, on the module's device, by ``to_levels``; ValueError for another shape too."""
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images must be [N, 3, H, W], none of them 0, got {got}")
        return to_levels(images.to(self.mean.device), normalized=normalized)

    def predict(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Crops uint8 [N, 2, 5, 3, crop, crop] -> score [N] in 0..1 and raw [N], on the regressor's scale; float32."""
        # as ``engine.normalize``, an op that no exchange format has
        x = (crops.flatten(0, 2).float() / 255 - self.mean) / self.std
        if torch.compiler.is_compiling():  # an exported program holds no such context
            h = self.encoder(x)
        else:  # False shuts out an autocast around the call
            with torch.autocast(x.device.type, enabled=self.autocast):
                h = self.encoder(x)
        regressor = Regressor(self.coef, self.intercept, self.about)
        raw = regressor.apply(by_crop(h.float()))  # rounded as the features that it was fitted on
        return regressor.quality(raw).float(), raw.float()

    def crops(self, images: Tensor) -> Tensor:
        """Images uint8 [N, 3, H, W] -> crops uint8 [N, 2, 5, 3, crop, crop]."""
        if torch.compiler.is_compiling():
            return ten_crops(shrink(images, self.view), self.crop)
        if images.is_cpu or (images.is_cuda and has_kernel("resize_bicubic", "cuda")):
            return torch.stack([views(i, self.crop, self.view) for i in images])  # the same pixels, sooner
        images = torch.stack([fit_view(i, self.view) for i in images])
        return ten_crops(images, self.crop)  # without the kernel they would go through the CPU

    def forward(self, images: Tensor, normalized: bool = False) -> Tensor:
        """Images [N, 3, H, W], uint8 or floating 0..1 (or normalised), any device -> scores [N] float32; no gradient."""
        images = self.levels(images, normalized)
        with torch.no_grad():
            parts = images.split(photographs_per_call(self.batch, images.device))
            return torch.cat([self.predict(self.crops(part))[0] for part in parts])
