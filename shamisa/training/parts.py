"""What a trainer is made of where the configuration names it by words: each is checked before any work."""

from __future__ import annotations

import os

import torch

from .. import remote
from ..data import opening
from ..data.embedded import EmbeddedPhotos
from ..data.photos import Photos
from ..data.shards import names_shards
from ..distortions import DISTORTIONS
from . import config as configuration
from .config import Config
from .learner import Learner


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The data type of encoder and projector."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return getattr(torch, name)


def check_crop(config: Config) -> None:
    """ValueError where a distortion needs larger images than ``crop``."""
    small = [n for n in config.distortions or DISTORTIONS if DISTORTIONS[n].min_size > config.crop]
    if small:
        need = max(DISTORTIONS[n].min_size for n in small)
        raise ValueError(f"crop must be at least {need} pixels for {', '.join(small)}, got {config.crop}")


def open_photos(config: Config, world_size: int = 1) -> Photos:
    """'embedded', a folder, a list file or shards -> source; ValueError for anything else, and for one without
    photographs."""
    refs = config.refs
    if refs == configuration.EMBEDDED:
        return EmbeddedPhotos(split="train")
    exists = remote.exists if remote.is_url(refs) else os.path.exists
    if not refs or not (names_shards(refs) or exists(refs)):
        fault = f"{refs!r}, which does not exist" if refs else "nothing: name the photographs with --refs"
        raise ValueError(f"refs must be a folder, a list file, shards or 'embedded', got {fault}")
    if refs == "-" and world_size > 1:
        raise ValueError(f"refs must be something that each of {world_size} processes can open, got the standard input")
    return opening.open_photos(refs, max_seconds=config.max_seconds, truncated=config.truncated)


def make_optimizer(config: Config, model: Learner, graphed: bool = False) -> torch.optim.Optimizer:
    """sgd or adamw over all parameters, in the fused form: one kernel for all, which can be told on the device to leave
    out a step (``found_inf``) and, ``graphed``, can run inside a CUDA graph. A group's rate is its ``scale`` times that of
    the step."""
    options = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    rest = [p for part in (model.projector, model.loss) for p in part.parameters()]
    groups = [
        {"params": list(model.encoder.parameters()), "scale": config.encoder_lr},
        {"params": rest, "scale": 1.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, capturable=graphed, **options)
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, **options)
    if config.momentum:  # torch leaves it uninitialised where the first step is left out
        for p in (p for p in model.parameters() if p.requires_grad):
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer
