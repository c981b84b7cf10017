"""EfficientNet-Lite0 in plain torch, so that its weights need no further package.

Tan and Le 2019, EfficientNet (arXiv 1905.11946); the Lite variant of the TensorFlow release has ReLU6 instead of swish, no
squeeze-and-excitation, and a stem and head of fixed width. Padding is TensorFlow's "SAME": where a stride leaves an odd
number of pixels to add, the odd one goes to the right and below. Names of layers and weights are those of timm's
``tf_efficientnet_lite0``, and so are the features, bit for bit.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

MEAN = STD = (0.5, 0.5, 0.5)  # of the images in 0..1 that the published weights expect
BLOCKS = (  # of each stage: blocks, side of the kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280  # channels
_EPS = 1e-3  # of batch normalisation


class SameConv(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels; input [N, C, H, W] of any size."""

    def forward(self, x: Tensor) -> Tensor:
        pads = [_pad(x.shape[d], self.kernel_size[d - 2], self.stride[d - 2]) for d in (3, 2)]
        return self._conv_forward(F.pad(x, [*pads[0], *pads[1]]), self.weight, self.bias)


def _pad(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _conv(channels: int, out: int, side: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        made = SameConv(channels, out, side, stride, groups=groups, bias=False)
    else:
        made = nn.Conv2d(channels, out, side, padding=side // 2, groups=groups, bias=False)
    # of a depthwise filter one output channel, not all, depends on an input
    nn.init.normal_(made.weight, std=(2 / (side * side * out / groups)) ** 0.5)
    return made


class Normalize(nn.BatchNorm2d):
    """Batch normalisation, then ReLU6 where ``active``."""

    def __init__(self, channels: int, active: bool = True) -> None:
        super().__init__(channels, eps=_EPS)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu6(x, inplace=True) if self.active else x


class Separable(nn.Module):
    """The block without expansion: a depthwise convolution, then one of 1 x 1 pixel; [N, C, H, W] -> [N, out, H', W']."""

    def __init__(self, channels: int, out: int, side: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = _conv(channels, channels, side, stride, groups=channels), Normalize(channels)
        self.conv_pw, self.bn2 = _conv(channels, out), Normalize(out, active=False)
        self.skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return y + x if self.skip else y


class InvertedResidual(nn.Module):
    """Expansion by 1 x 1, a depthwise convolution, and back to few channels; [N, C, H, W] -> [N, out, H', W']."""

    def __init__(self, channels: int, out: int, side: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.conv_pw, self.bn1 = _conv(channels, inner), Normalize(inner)
        self.conv_dw, self.bn2 = _conv(inner, inner, side, stride, groups=inner), Normalize(inner)
        self.conv_pwl, self.bn3 = _conv(inner, out), Normalize(out, active=False)
        self.skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv_pw(x))
        y = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(y))))
        return y + x if self.skip else y


class EfficientNetLite0(nn.Module):
    """[N, 3, H, W], images normalised by ``MEAN`` and ``STD`` -> [N, 1280]; 3.37 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = _conv(3, STEM, 3, stride=2), Normalize(STEM)
        self.blocks, channels = nn.Sequential(), STEM
        for count, side, stride, expansion, out in BLOCKS:
            stage = nn.Sequential()
            for i in range(count):
                step = 1 if i else stride
                stage.append(
                    Separable(channels, out, side, step)
                    if expansion == 1
                    else InvertedResidual(channels, out, side, step, expansion)
                )
                channels = out
            self.blocks.append(stage)
        self.conv_head, self.bn2 = _conv(channels, HEAD), Normalize(HEAD)
        self.feature_dim = HEAD

    def forward_head(self, x: Tensor) -> Tensor:
        """[N, 1280, H, W] -> [N, 1280], the mean over the image."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn1(self.conv_stem(x)))
        return self.forward_head(self.bn2(self.conv_head(x)))
