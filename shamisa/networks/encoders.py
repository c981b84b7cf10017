"""What the package asks of any encoder, its own or another ``nn.Module``: name, features, normalisation, dimension.

An encoder maps normalised images [N, 3, H, W] to features h [N, F]. Which mean and standard deviation normalise its images
is a property of the encoder, never of what feeds it: attributes ``mean`` and ``std`` (three numbers each, or tensors of
three), ImageNet's where it has neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..engine import IMAGENET_MEAN, IMAGENET_STD

LAST = "last"  # features: the output of the network
Normalization = dict[str, tuple[float, float, float]]  # mean and std


def name_of(encoder: nn.Module) -> str:
    """Its ``name`` where that is a text, else the name of its class."""
    name = getattr(encoder, "name", None)
    return name if isinstance(name, str) and name else type(encoder).__name__


def features_of(encoder: nn.Module) -> str:
    """What its h is, see ``models.Encoder``; "last" for a module that has no choice (``features`` may be a layer)."""
    found = getattr(encoder, "features", None)
    return found if isinstance(found, str) else LAST


def normalization(encoder: nn.Module) -> Normalization:
    """{"mean": (r, g, b), "std": (r, g, b)} of its input in 0..1, as ``engine.normalize`` takes them.

    Raises ValueError where it has one of the two, or something else than three finite numbers, std above 0.
    """
    mean, std = getattr(encoder, "mean", None), getattr(encoder, "std", None)
    if mean is None and std is None:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return check_normalization(mean, std, f"encoder {name_of(encoder)}")


def check_normalization(mean: object, std: object, owner: str) -> Normalization:
    """Both as tuples of three floats; ValueError, naming ``owner``, where they are not."""
    found = {"mean": _three(mean), "std": _three(std)}
    for name, given in (("mean", mean), ("std", std)):
        if found[name] is None or (name == "std" and min(found[name]) <= 0):
            what = "three finite numbers" + (" above 0" if name == "std" else "")
            raise ValueError(f"{name} of {owner} must be {what}, got {given!r}")
    return found


def _three(given: object) -> tuple[float, float, float] | None:
    if isinstance(given, Tensor):
        # the shortest number that float32 rounds to this one: a buffer of .485 is .485
        given = [float(str(v)) for v in given.detach().cpu().float().flatten().numpy()]
    try:
        numbers = tuple(float(v) for v in given)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == 3 and all(map(math.isfinite, numbers)) else None


def describe(encoder: nn.Module) -> dict:
    """encoder (its name), features, mean and std, as checkpoints, regressors and programs record them (JSON values)."""
    return {"encoder": name_of(encoder), "features": features_of(encoder)} | {
        name: list(numbers) for name, numbers in normalization(encoder).items()
    }


def recorded(about: dict, owner: str) -> dict:
    """features, mean and std in a record; what was written before they were recorded is "last" with ImageNet's.

    Raises ValueError, naming ``owner``, for mean or std that are not three numbers.
    """
    numbers = check_normalization(about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD), owner)
    return {"features": about.get("features", LAST), **numbers}


def to_metadata(encoder: nn.Module) -> dict[str, str]:
    """``describe`` as the texts that the header of a .safetensors file holds."""
    found = describe(encoder)
    return found | {name: json.dumps(found[name]) for name in ("mean", "std")}


def recorded_metadata(metadata: dict[str, str], owner: str) -> dict:
    """``recorded`` from such a header; ValueError, naming ``owner``, for texts that are no numbers."""
    try:
        numbers = {name: json.loads(metadata[name]) for name in ("mean", "std") if name in metadata}
    except ValueError as error:
        raise ValueError(f"mean and std of {owner} must be lists of three numbers, got {error}") from None
    return recorded(metadata | numbers, owner)


def is_plain(encoder: nn.Module) -> bool:
    """Whether features and normalisation are what they were before there was a choice."""
    return recorded(describe(encoder), "encoder") == recorded({}, "")


def check_fit(encoder: nn.Module, about: dict) -> None:
    """ValueError, naming both, where a regressor was fitted on other features or images normalised otherwise.

    about: of the regressor.
    """
    own, wanted = recorded(describe(encoder), "encoder"), recorded(about, "the regressor")
    for names in (("features",), ("mean", "std")):
        if any(own[n] != wanted[n] for n in names):
            a, b = (", ".join(f"{n} {_words(found[n])}" for n in names) for found in (own, wanted))
            raise ValueError(f"regressor must be fitted with the encoder's {a} ({name_of(encoder)}), got one for {b}")


def _words(value: object) -> str:
    return value if isinstance(value, str) else " ".join(f"{v:g}" for v in value)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode within; each submodule's own mode afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def feature_dim(encoder: nn.Module, crop: int) -> int:
    """F: its attribute ``feature_dim``, or that of the features of a blank image of ``crop`` pixels.

    Raises ValueError where it does not give [N, F] for it.
    """
    stated = getattr(encoder, "feature_dim", None)
    if isinstance(stated, int) and stated > 0:
        return stated
    first = next(encoder.parameters(), torch.zeros(()))
    with torch.no_grad(), evaluating(encoder):
        try:
            h = encoder(torch.zeros(2, 3, crop, crop, device=first.device))
        except Exception as error:  # a module of somebody else: any kind
            raise ValueError(
                f"encoder {name_of(encoder)} must map images [N, 3, {crop}, {crop}] to [N, F], got {error!r}"
            ) from error
    if not isinstance(h, Tensor) or h.dim() != 2 or len(h) != 2 or not h.shape[1]:
        got = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise ValueError(f"encoder {name_of(encoder)} must map images [2, 3, {crop}, {crop}] to [2, F], got {got}")
    return h.shape[1]
