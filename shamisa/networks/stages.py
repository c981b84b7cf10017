"""Features of several stages of a network: mean and standard deviation of every stage's output, each scaled to norm 1.

Early stages carry quality that the last layer has lost; statistics over the image keep it, whatever the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .encoders import LAST, evaluating

STAGES = "stages"  # last and all stages
EPS = 1e-6  # added to a variance, so that the root of a constant map has a gradient; and the least norm of a group

Walk = Callable[[nn.Module, Tensor], tuple[Tensor, list[Tensor]]]


# ---- networks --------------------------------------------------------------------------------------------------------
# The layers one after the other, as the network's own forward: hooks would do for any network, but programs that are
# traced, copied or compiled lose them.
def _small(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    maps = []
    for stage in network.stages:
        x = stage(x)
        maps.append(x)
    return x.mean((2, 3)), maps


def _resnet(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    maps = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        maps.append(x)
    return network.fc(network.avgpool(x).flatten(1)), maps


def _efficientnet(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = network.bn1(network.conv_stem(x))
    maps = []
    for stage in network.blocks:
        x = stage(x)
        maps.append(x)
    return network.forward_head(network.bn2(network.conv_head(x))), maps


def _other_timm(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x, maps = network.forward_intermediates(x, output_fmt="NCHW")
    return network.forward_head(x), maps


def find_walk(network: nn.Module, name: str) -> Walk:
    """The function (network, x [N, 3, H, W]) -> h [N, F], outputs [N, C, H', W'] of the stages, in order.

    Stages are the blocks of ``shamisa/small``, ``layer1`` to ``layer4`` of torchvision's ResNets, the groups of
    ``network.blocks`` of EfficientNets, ours and timm's (7 in most), and for other networks of timm what their
    ``forward_intermediates`` gives.

    Raises ValueError for a network whose stages are not known.
    """
    kind = name.partition("/")[0]
    if kind == "shamisa":
        return _efficientnet if hasattr(network, "blocks") else _small
    if kind == "torchvision" and all(hasattr(network, f"layer{i}") for i in range(1, 5)):
        return _resnet
    if kind == "timm":
        from timm.models.efficientnet import EfficientNet

        if isinstance(network, EfficientNet):
            return _efficientnet
        if hasattr(network, "forward_intermediates"):
            return _other_timm
    raise ValueError(
        "features of stages need shamisa/small, a ResNet of torchvision or a network of timm with intermediate features, "
        f"got {name}: choose features {LAST}"
    )


@torch.no_grad()
def count_channels(network: nn.Module, walk: Walk, name: str) -> list[int]:
    """C of every stage, by a blank image; ValueError where the walk does not give what the network does."""
    size = (3, 64, 64)
    about = getattr(network, "pretrained_cfg", None) or {}
    if about.get("fixed_input_size"):
        size = about["input_size"]
    first = next(network.parameters())
    x = torch.zeros(1, *size, dtype=first.dtype, device=first.device)
    with evaluating(network):
        h, maps = walk(network, x)
        whole = network(x)
    if h.shape != whole.shape or not torch.allclose(h, whole, rtol=1e-4, atol=1e-5) or any(m.dim() != 4 for m in maps):
        raise ValueError(f"features of stages are not known for {name}: choose features {LAST}")
    return [m.shape[1] for m in maps]


# ---- the choice ------------------------------------------------------------------------------------------------------
def split_names(features: str) -> list[str]:
    """The words of a choice; ValueError where it is no list of different names."""
    names = [word.strip() for word in features.split(",")] if isinstance(features, str) else []
    if not names or not all(names) or len(set(names)) != len(names) or (STAGES in names and len(names) > 1):
        raise ValueError(f"features must be {LAST}, {STAGES}, or different ones of {LAST},stage1,..., got {features!r}")
    return names


def choose(features: str, count: int, name: str) -> tuple[str, ...]:
    """A choice for a network of ``count`` stages -> its groups, in order, out of last, stage1, stage2, ...

    Raises ValueError for an unknown name, naming those that are known.
    """
    known = (LAST, *(f"stage{i + 1}" for i in range(count)))
    names = split_names(features)
    if names == [STAGES]:
        return known
    if unknown := [n for n in names if n not in known]:
        raise ValueError(
            f"features of {name} must be {STAGES} or some of {', '.join(known)}, got {', '.join(map(repr, unknown))}"
        )
    return tuple(n for n in known if n in names)


def spell(groups: Sequence[str], count: int) -> str:
    """The one spelling of a choice."""
    return STAGES if len(groups) == count + 1 else ",".join(groups)


def width(groups: Sequence[str], last: int, channels: Sequence[int]) -> int:
    """F of a choice: ``last`` features of the last layer, two numbers for each channel of a stage."""
    return sum(last if g == LAST else 2 * channels[int(g.removeprefix("stage")) - 1] for g in groups)


# ---- features --------------------------------------------------------------------------------------------------------
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, C, H, W] -> mean and population standard deviation (the root of variance + EPS) over the image, [N, C] float32."""
    x = x.float()
    mean = x.mean((2, 3))
    variance = (x - mean[:, :, None, None]).square().mean((2, 3))
    return mean, (variance + EPS).sqrt()


def gather(groups: Sequence[str], h: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """h [N, F] of the last layer and maps of all stages -> the chosen groups side by side, each of norm 1, float32."""
    rows: list[Tensor] = []
    for group in groups:
        rows += [h.float()] if group == LAST else moments(maps[int(group.removeprefix("stage")) - 1])
    return torch.cat([nn.functional.normalize(r, dim=1, eps=EPS) for r in rows], 1)
