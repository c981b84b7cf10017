"""A torchmetrics metric: mean quality of the images seen, with the constructor of torchmetrics' ``ARNIQA``.

metric = SHAMISA()  # the packaged model; or SHAMISA(checkpoint="runs/paper", regressor="regressor.safetensors")
metric.update(images)  # [N, 3, H, W] floating 0..1
metric.compute()  # scalar in 0..1, higher is better
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor

from . import checks
from .scorer import load_quality_net
from .scoring.quality import QualityNet

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
except ImportError as error:
    raise checks.MissingPackage(
        f"shamisa.metric needs torchmetrics: pip install 'shamisa[metrics]' ({error})"
    ) from None

REDUCTIONS = ("mean", "sum", "none")


class SHAMISA(Metric):
    """Quality of images in 0..1, higher is better, by the protocol of ``shamisa score``.

    ``update(img)``: [N, 3, H, W] on any device, H and W of any size; uint8, or floating and then in 0..1 where
    ``normalize``. Pixels are rounded to 256 levels, so there is no gradient. ``compute()``: a scalar, or [N] with
    reduction "none" (in a distributed run: the ranks' one after the other). The encoder runs on ``metric.device``.

    Args:
        checkpoint: a run or checkpoint folder or file, ``untrained:NAME`` or ``imagenet:NAME``; None, as the regressor: the
            packaged model.
        regressor: a file written by ``shamisa.probe`` for that encoder.
        reduction: "mean", "sum" or "none", over all images since the last reset.
        normalize: True: floating images lie in 0..1. False: they are already (x - mean) / std of ImageNet.
        autocast: the encoder runs in the lower precision that ``torch.autocast`` chooses for the device.
        batch: images at a time; each is ten crops [1 on a CPU, 8 elsewhere].
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError, RuntimeError: as ``shamisa.load_scorer``; and ``update`` as ``QualityNet.levels``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    sum_scores: Tensor
    num_scores: Tensor
    scores: list[Tensor]
    model: QualityNet

    def __init__(
        self,
        checkpoint: str | os.PathLike | None = None,
        regressor: str | os.PathLike | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        normalize: bool = True,
        autocast: bool = False,
        batch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.choice("reduction", reduction, REDUCTIONS)
        for name, given in (("normalize", normalize), ("autocast", autocast)):
            checks.flag(name, given)
        self.reduction, self.normalize, self.autocast = reduction, normalize, autocast
        net = load_quality_net(checkpoint, regressor, batch=batch, autocast=autocast)
        # not a submodule: state_dict() of a model that trains need not hold frozen weights, nor half() reach them
        object.__setattr__(self, "model", net)
        if reduction == "none":
            self.add_state("scores", [], dist_reduce_fx="cat")
        else:
            self.add_state("sum_scores", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("num_scores", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, img: Tensor) -> None:
        """Add images [N, 3, H, W]."""
        floating = isinstance(img, Tensor) and img.is_floating_point()
        scores = self.model.to(self.device)(img, normalized=floating and not self.normalize)
        if self.reduction == "none":
            self.scores.append(scores)
        else:
            self.sum_scores += scores.double().sum()
            self.num_scores += len(scores)

    def compute(self) -> Tensor:
        """The reduction of all scores, float32; NaN for the mean of none."""
        if self.reduction == "none":
            return torch.empty(0, device=self.device) if self.scores == [] else dim_zero_cat(self.scores)
        total = self.sum_scores / self.num_scores if self.reduction == "mean" else self.sum_scores
        return total.float()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A value or several, as torchmetrics draws them (matplotlib)."""
        return self._plot(val, ax)
