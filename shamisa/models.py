"""Encoders and the projector.

An encoder is named ``torchvision/resnet50``, ``timm/NAME`` or ``shamisa/small`` and maps normalised images to pooled
features h; the projector maps h to the embedding z. Neither normalises its output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import Config
from .engine import Plan
from .relations import RelationLoss, RelationOutput


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
    """A named network without its classifier: x [N, 3, H, W] normalised images, floating -> h [N, F] pooled features.

    Attributes: ``name``, ``feature_dim`` (F).

    Args:
        name: ``torchvision/resnet18|34|50`` (or another of torchvision's classifiers with an ``fc`` layer),
            ``shamisa/small``, or ``timm/NAME`` where timm is installed.
        init: "none" random weights (from torch's generator), "imagenet" the published ImageNet weights (downloaded by
            torchvision or timm), or a .safetensors or .pth file with the weights of this network.

    Raises:
        ValueError: an unknown name, or a file that does not fit; RuntimeError: a missing library or download.
    """

    def __init__(self, name: str, init: str = "none") -> None:
        super().__init__()
        self.name = name
        kind, _, model = name.partition("/")
        imagenet = init == "imagenet"
        if kind == "torchvision":
            self.network, self.feature_dim = _torchvision(model, imagenet)
        elif kind == "timm":
            self.network, self.feature_dim = _timm(model, imagenet)
        elif name == "shamisa/small":
            if imagenet:
                raise ValueError("init of shamisa/small must be none or a file: there are no ImageNet weights of it")
            self.network = SmallEncoder()
            self.feature_dim = self.network.feature_dim
        else:
            raise ValueError(f"encoder must be torchvision/NAME, timm/NAME or shamisa/small, got {name!r}")
        if init not in ("none", "imagenet"):
            load_weights(self, Path(init))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def _torchvision(model: str, imagenet: bool) -> tuple[nn.Module, int]:
    try:
        import torchvision
    except ImportError as error:
        raise RuntimeError(
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
        raise RuntimeError(_no_download(f"torchvision/{model}", error)) from None
    if not isinstance(getattr(network, "fc", None), nn.Linear):
        raise ValueError(
            f"encoder must be a network with a linear layer `fc`, such as resnet50, got 'torchvision/{model}'"
        )
    features, network.fc = network.fc.in_features, nn.Identity()
    return network, features


def _timm(model: str, imagenet: bool) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise RuntimeError(f"encoder timm/{model} needs timm: pip install timm ({error})") from None
    if not timm.is_model(model):
        raise ValueError(f"encoder must name a network of timm {timm.__version__}, got 'timm/{model}'")
    try:
        network = timm.create_model(model, pretrained=imagenet, num_classes=0)
    except Exception as error:  # the hub client raises many kinds
        if not imagenet:
            raise
        raise RuntimeError(_no_download(f"timm/{model}", error)) from None
    return network, network.num_features


def _no_download(name: str, error: Exception) -> str:
    return (
        f"the ImageNet weights of {name} cannot be downloaded ({error}): start from random weights with --init none, "
        "or from a file with --init FILE (.safetensors, or a .pth state dict)"
    )


def load_weights(encoder: Encoder, path: Path) -> None:
    """Read weights from a file into the encoder: one of our checkpoints, or a plain state dict of the network.

    .pth files are read with ``weights_only=True``. A classifier (``fc``) in the file is left out.

    Raises:
        ValueError: missing or unreadable file, or weights of another network; names what was expected and found.
    """
    if not path.is_file():
        raise ValueError(f"init must be imagenet, none or a file of weights, got {str(path)!r}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        elif path.suffix in (".pth", ".pt"):
            weights = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ValueError(f"init must be a .safetensors, .pth or .pt file, got {str(path)!r}")
    except ValueError:
        raise
    except Exception as error:  # safetensors and unpickling raise many kinds; all mean the same to the user
        raise ValueError(f"init: cannot read weights from {path}: {str(error).splitlines()[0]}") from None
    for key in ("state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise ValueError(f"init: {path} must hold a dict of tensors")
    weights = {k.removeprefix("module."): t for k, t in weights.items()}
    if any(k.startswith("encoder.network.") for k in weights):  # a checkpoint of ours
        weights = {
            k.removeprefix("encoder.network."): t for k, t in weights.items() if k.startswith("encoder.network.")
        }
    weights = {k: t for k, t in weights.items() if not k.startswith("fc.")}
    load_matching(encoder.network, weights, f"init: {path} does not hold weights of {encoder.name}")


def load_matching(module: nn.Module, weights: dict[str, Tensor], message: str) -> None:
    """``load_state_dict`` with one readable error: ``message``, then names and shapes expected and found."""
    wanted = module.state_dict()
    faults = [f"missing {k} {list(wanted[k].shape)}" for k in wanted if k not in weights]
    faults += [f"unexpected {k} {list(weights[k].shape)}" for k in weights if k not in wanted]
    faults += [
        f"{k} expected {list(wanted[k].shape)}, found {list(weights[k].shape)}"
        for k in wanted
        if k in weights and weights[k].shape != wanted[k].shape
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError(f"{message}: {'; '.join(faults[:4])}{more}")
    module.load_state_dict(weights)


class Projector(nn.Sequential):
    """Two linear layers with a ReLU between: h [N, F] -> z [N, E]."""

    def __init__(self, feature_dim: int, hidden: int, embedding: int) -> None:
        super().__init__(nn.Linear(feature_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embedding))


class Learner(nn.Module):
    """Everything with weights: encoder, projector, and the objective with its anchors."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = Encoder(config.encoder, config.init)
            self.projector = Projector(self.encoder.feature_dim, config.hidden, config.embedding)
            options = config.loss_options()
            options["gather"] &= dist.is_available() and dist.is_initialized()  # one process has all samples already
            self.loss = RelationLoss(self.encoder.feature_dim, **options)
        # what no term reaches takes no part in averaging over processes
        self.loss.aggregator.requires_grad_(config.aggregation == "trained")
        self.loss.anchors.requires_grad_(config.alignment or ("transport" in config.graphs and not config.binary))
        self.one_pass = config.one_pass

    def forward(
        self, x_ref: Tensor, x: Tensor, plan: Plan, begin: Callable[[str], None] = lambda part: None
    ) -> tuple[RelationOutput, Tensor, Tensor]:
        """Normalised images as in ``embed``, in the type that the encoder computes in -> objective, z_dist, h_dist.

        ``begin`` is told when the loss begins.
        """
        with torch.autocast(x.device.type, x.dtype, enabled=x.dtype != torch.float32):
            z_ref, z_dist, h_ref, h_dist = self.embed(x_ref, x)
        begin("loss")
        return self.loss(z_ref, z_dist, h_ref, h_dist, plan), z_dist.detach(), h_dist.detach()

    def embed(self, x_ref: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_ref [B, V, 3, H, W], x [B, V, C, L, 3, H, W] -> z_ref, z_dist [..., E]; h_ref, h_dist [..., F], norm 1."""
        images = [x_ref.flatten(0, 1), x.flatten(0, 3)]
        if self.one_pass:
            h = self.encoder(torch.cat(images)).split([len(i) for i in images])
        else:  # published: batch normalisation sees pristine and distorted images apart
            h = [self.encoder(i) for i in images]
        shapes = (x_ref.shape[:2], x.shape[:4])
        z = [self.projector(f).float().unflatten(0, s) for f, s in zip(h, shapes, strict=True)]
        h = [nn.functional.normalize(f.float(), dim=1).unflatten(0, s) for f, s in zip(h, shapes, strict=True)]
        return (*z, *h)
