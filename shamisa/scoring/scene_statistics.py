"""A few statistics of natural scenes, colour and sharpness: the hand-made baseline of the probe, ``--checkpoint statistics``.

Luma is normalised by its local mean and deviation (MSCN coefficients). In clean photographs these follow nearly a Gaussian;
distortions change the shape of their distribution, and that of the products of neighbours. Shapes are those of a
generalised Gaussian and, for the products, of one with different sides, fitted by moments: Mittal, Moorthy and Bovik,
"No-reference image quality assessment in the spatial domain" (BRISQUE, 2012), after Lasmar, Stitou and Berthoumieu (2009).
Colourfulness is that of Hasler and Suesstrunk (2003). Only the definitions are theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ..engine import IMAGENET_MEAN, IMAGENET_STD

NAMES = (
    "mscn shape", "mscn deviation",
    *(f"{d} {q}" for d in ("horizontal", "vertical", "diagonal", "antidiagonal") for q in ("shape", "mean", "left", "right")),
    "luma mean", "luma deviation", "local deviation", "gradient", "laplacian", "gradient kurtosis",
    "saturation mean", "saturation deviation", "colourfulness",
)  # fmt: skip
_SHAPES = (0.2, 10.0, 4000)  # of the generalised Gaussian: least, greatest, steps of the table
_WINDOW = 7  # pixels, Gaussian, deviation 7/6
_LOG_FLOOR = 1e-3  # of 0..255: below the energy that one step of 8 bits leaves


class SceneStatistics(nn.Module):
    """Images [N, 3, H, W], normalised as for the encoders, both sides at least 8 -> h [N, 27], float32, see ``NAMES``.

    It has no weights; its constants are buffers, so that the hash of the encoder covers them.
    """

    name = "statistics"
    feature_dim = len(NAMES)

    def __init__(self) -> None:
        super().__init__()
        offset = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
        window = torch.exp(-0.5 * (offset / (_WINDOW / 6)) ** 2)
        shape = torch.linspace(*_SHAPES, dtype=torch.float64)
        self.register_buffer("version", torch.tensor(1))  # changes with any definition below
        self.register_buffer("window", (window / window.sum()).float())
        self.register_buffer("shape", shape.float())
        # E|x|^2 / E[x^2] of a generalised Gaussian rises with its shape
        self.register_buffer("ratio", torch.exp(2 * _lgamma(2, shape) - _lgamma(1, shape) - _lgamma(3, shape)).float())
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 8:
            raise ValueError(f"x must be [N, 3, H, W] with sides of at least 8, got {list(x.shape)}")
        rgb = (x.float() * self.std + self.mean) * 255
        luma = (rgb * rgb.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1, keepdim=True)  # [N, 1, H, W]
        local_mean = self._blur(luma)
        deviation = (self._blur(luma * luma) - local_mean**2).clamp(min=0).sqrt()
        mscn = ((luma - local_mean) / (deviation + 1))[:, 0]
        found = [*self._symmetric(mscn)]
        for product in _products(mscn):
            found += self._asymmetric(product)
        return torch.stack([*found, *_sharpness(luma[:, 0], deviation), *_colour(rgb)], 1)

    def _blur(self, image: Tensor) -> Tensor:
        side = _WINDOW // 2
        image = pad(image, (side,) * 4, mode="replicate")
        return conv2d(conv2d(image, self.window.view(1, 1, 1, -1)), self.window.view(1, 1, -1, 1))

    def _fit(self, ratio: Tensor) -> Tensor:
        """Shape of the generalised Gaussian with E|x|^2 / E[x^2] = ratio, [N], within the table."""
        i = torch.searchsorted(self.ratio, ratio.clamp(self.ratio[0], self.ratio[-1])).clamp(1, len(self.ratio) - 1)
        low, high = self.ratio[i - 1], self.ratio[i]
        part = ((ratio - low) / (high - low)).clamp(0, 1)
        return self.shape[i - 1] + part * (self.shape[i] - self.shape[i - 1])

    def _symmetric(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, ...] -> shape and deviation [N]."""
        x = x.flatten(1)
        square = (x * x).mean(1)
        # a flat image has no distribution: it counts as a Gaussian without width
        ratio = torch.where(square > 1e-8, x.abs().mean(1) ** 2 / square.clamp(min=1e-8), 2 / torch.pi)
        return self._fit(ratio), square.sqrt()

    def _asymmetric(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[N, ...] -> shape, mean, and the deviations to the left and right of zero, [N] each."""
        x = x.flatten(1)
        left, right = ((x * x * side).sum(1) / side.sum(1).clamp(min=1) for side in (x < 0, x > 0))
        left, right = left.sqrt(), right.sqrt()
        square = (x * x).mean(1)
        both = torch.maximum(left, right).clamp(min=1e-8)
        skew = torch.minimum(left, right) / both  # the formula is the same for a ratio and its inverse
        ratio = torch.where(square > 1e-12, x.abs().mean(1) ** 2 / square.clamp(min=1e-12), 2 / torch.pi)
        shape = self._fit(ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2)
        # scale of a side = its deviation x sqrt(G(1/a) / G(3/a)); the mean is their difference x G(2/a) / G(1/a)
        scale = torch.exp(_lgamma(2, shape) - 0.5 * (_lgamma(1, shape) + _lgamma(3, shape)))
        return shape, (right - left) * scale, left, right


def _lgamma(k: int, shape: Tensor) -> Tensor:
    """Logarithm of the gamma function at k / shape."""
    return torch.lgamma(k / shape)


def _products(x: Tensor) -> tuple[Tensor, ...]:
    """[N, H, W] -> products of neighbours: to the right, below, and on both diagonals."""
    return (
        x[:, :, :-1] * x[:, :, 1:],
        x[:, :-1] * x[:, 1:],
        x[:, :-1, :-1] * x[:, 1:, 1:],
        x[:, :-1, 1:] * x[:, 1:, :-1],
    )


def _sharpness(luma: Tensor, deviation: Tensor) -> tuple[Tensor, ...]:
    """Luma [N, H, W] and its local deviation -> mean and deviation in 0..1, and the logarithms of what is fine in it."""
    across, down = luma[:, :-1, 1:] - luma[:, :-1, :-1], luma[:, 1:, :-1] - luma[:, :-1, :-1]
    square = across**2 + down**2
    centre = luma[:, 1:-1, 1:-1]
    beside = luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] + luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1]
    logs = [_log(energy.flatten(1).mean(1)) for energy in (deviation, square, (beside - 4 * centre) ** 2)]
    kurtosis = _log((square**2).flatten(1).mean(1)) - 2 * logs[1]  # few strong edges, or weak ones everywhere
    pixels = luma.flatten(1) / 255
    return pixels.mean(1), pixels.std(1), *logs, kurtosis


def _log(energy: Tensor) -> Tensor:
    return torch.log10(energy + _LOG_FLOOR)


def _colour(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N, 3, H, W] in 0..255 -> mean and deviation of the saturation (HSV), colourfulness / 255; [N] each."""
    pixels = rgb.flatten(2)
    most, least = pixels.amax(1), pixels.amin(1)
    saturation = (most - least) / most.clamp(min=1)
    r, g, b = pixels.unbind(1)
    rg, yb = r - g, (r + g) / 2 - b
    spread = (rg.var(1) + yb.var(1)).sqrt()
    colourfulness = (spread + 0.3 * (rg.mean(1) ** 2 + yb.mean(1) ** 2).sqrt()) / 255
    return saturation.mean(1), saturation.std(1), colourfulness
