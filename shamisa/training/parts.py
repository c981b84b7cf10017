"""What a trainer is made of: the words of the configuration become objects here, each checked before any work."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch
from torch import nn

from .. import remote
from ..data import opening
from ..data.embedded import EmbeddedPhotos
from ..data.photos import Photos
from ..data.readers import References
from ..data.shards import names_shards
from ..distortions import DISTORTIONS
from ..engine import DistortionEngine, normalize
from ..networks.devices import choose_device
from ..ops import has_kernel
from . import check, graphed, loggers
from . import config as configuration
from .config import Config
from .learner import Learner
from .parallel import Processes


@dataclass(frozen=True)
class Parts:
    """The objects of a run."""

    device: torch.device
    precision: torch.dtype  # of encoder and projector
    layout: torch.memory_format
    engine: DistortionEngine
    references: References  # the photographs, as crops
    model: Learner
    optimizer: torch.optim.Optimizer
    labelled: check.LabelledPart | None  # joins the checks of the encoder
    untrained: nn.Module | None  # of the demonstration's comparison, where the configuration cannot build it again


def resolve(config: Config, processes: Processes, encoder: nn.Module | None, photos: Photos | None) -> Parts:
    """Everything that ``config`` names; ``encoder`` and ``photos`` stand in for what it names, where they are given."""
    device = choose_device(config.device, processes.local_rank if processes.several else None)
    if device.index is not None:
        torch.cuda.set_device(device)  # events, streams and graphs are those of the current device
    precision = choose_precision(config.precision, device)
    check_crop(config)
    loggers.check(config)
    labelled = open_labels(config)
    probe = torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=device)
    normalize(probe, backend=config.backend)  # is it there?
    if config.cuda_graph:
        kernels = tuple(k for k in ("cpu", "cuda") if has_kernel("distort", k))
        graphed.check_graphable(config, device, precision, processes.world_size, kernels)
    references = opening.make_references(
        open_photos(config, processes.world_size) if photos is None else photos,
        reader=config.reader,
        device=device,
        batch_size=config.batch,
        seed=config.seed,
        crop=config.crop,
        pad=config.pad,
        max_skipped=config.max_skipped,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    untrained = copy.deepcopy(encoder) if encoder is not None and config.demo else None
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = Learner(config, encoder).to(device, memory_format=layout).train()
    if config.sync_bn:
        model = processes.share_batch_norm(model, device)
    if config.compile:
        model.encoder.compile()
        model.projector.compile()
    return Parts(
        device=device,
        precision=precision,
        layout=layout,
        engine=DistortionEngine(**config.engine_options()),
        references=references,
        model=model,
        optimizer=make_optimizer(config, model, graphed=config.cuda_graph),
        labelled=labelled,
        untrained=untrained,
    )


def open_labels(config: Config) -> check.LabelledPart | None:
    """The human scores that join the checks, where --labels names them."""
    if config.labels:
        return check.LabelledPart.open(config.labels, config.label_root, config.seed, config.truncated)
    if config.label_root:
        raise ValueError(f"label-root belongs to --labels, got {config.label_root!r} without it")
    return None


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
