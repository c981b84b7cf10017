"""What is trained: the encoder, the projector from its features h to the embedding z, and the objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..engine import Plan
from ..networks.encoders import feature_dim
from ..networks.models import Encoder
from ..relations import RelationLoss, RelationOutput
from .config import Config


class Projector(nn.Sequential):
    """Two linear layers with a ReLU between: h [N, F] -> z [N, E]."""

    def __init__(self, feature_dim: int, hidden: int, embedding: int) -> None:
        super().__init__(nn.Linear(feature_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embedding))


class Learner(nn.Module):
    """Everything with weights: encoder, projector, and the objective with its anchors.

    Args:
        encoder: any module that maps normalised images [N, 3, H, W] to h [N, F], in place of the configuration's encoder,
            init and features, which then have no meaning; see ``encoders`` for what it may state. None: those.

    Attributes: ``feature_dim`` (F).
    """

    def __init__(self, config: Config, encoder: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = Encoder(config.encoder, config.init, config.features) if encoder is None else encoder
            self.feature_dim = feature_dim(self.encoder, config.crop)
            self.projector = Projector(self.feature_dim, config.hidden, config.embedding)
            options = config.loss_options()
            options["gather"] &= dist.is_available() and dist.is_initialized()  # one process has all samples already
            self.loss = RelationLoss(self.feature_dim, **options)
        # what no term reaches takes no part in averaging over processes
        for parameter in self.encoder.unreached() if isinstance(self.encoder, Encoder) else ():
            parameter.requires_grad_(False)
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
