"""Pairs whose order is known without people: a photograph distorted less must not score below the same one distorted more.

Human scores of photographs from cameras say little about some distortions; a regressor fitted on those alone likes a
photograph better once it is sharpened or loses colours. The pairs are made by the engine's 26 distortions from pristine
photographs, and enter the fit as differences of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.photos import Photos
from ..distortions import DISTORTIONS
from ..engine import distort, normalize
from ..networks.encoders import evaluating, normalization
from ..scoring.crops import views

LEVELS = (0, 2, 4)  # severities that are compared, beside the photograph itself
HELD_OUT = 20  # every such photograph of a folder, the first included, is never fitted on: the checks look at those
_CENTRE = 4  # of the five crops


def held_out(source: Photos) -> list[int]:
    """The positions in a source that are kept for checks."""
    return list(range(0, len(source), HELD_OUT))


def for_fitting(source: Photos, count: int) -> list[int]:
    """``count`` of the other positions, evenly spread; ValueError where there are not that many."""
    others = [i for i in range(len(source)) if i % HELD_OUT]
    if not 1 <= count <= len(others):
        raise ValueError(f"ordered photographs must be 1..{len(others)} of this folder, got {count}")
    return [others[i * len(others) // count] for i in range(count)]


@dataclass(frozen=True)
class Ordered:
    """Differences of features, better minus worse."""

    difference: Tensor  # [m, 2F] float32
    steps: Tensor  # [m] float32: levels between the two; a pristine photograph counts as one below the mildest
    kind: Tensor  # [m] int64: the distortion, as numbered in DISTORTIONS


@torch.inference_mode()
def central_features(encoder: nn.Module, photos: Sequence[Tensor], crop: int) -> Tensor:
    """Photographs uint8 [3, H, W] -> [n, 2F]: of the central crop at both scales, a fifth of what a score needs."""
    numbers = normalization(encoder)
    with evaluating(encoder):
        x = torch.stack([views(photo, crop)[:, _CENTRE] for photo in photos])  # [n, 2, 3, crop, crop]
        h = torch.cat([encoder(normalize(part, **numbers)).float() for part in x])
    return h.unflatten(0, (len(photos), 2)).flatten(1)


def make_ordered(
    encoder: nn.Module, source: Photos, positions: Sequence[int], crop: int = 224, seed: int = 0, progress: bool = True
) -> Ordered:
    """Every distortion of these photographs at ``LEVELS``: the photograph against the mildest, and each level against the
    next.

    Raises PhotoError where one cannot be read.
    """
    from tqdm import tqdm

    difference, steps, kind = [], [], []
    for position in tqdm(positions, desc="ordered pairs", unit="photograph", disable=not progress):
        photo = source[position]
        (clean,) = central_features(encoder, [photo], crop)
        for number, name in enumerate(DISTORTIONS):
            worse = [distort(photo, name, severity=float(s), seed=seed + position) for s in LEVELS]
            chain = torch.stack([clean, *central_features(encoder, worse, crop)])
            difference.append(chain[:-1] - chain[1:])
            places = torch.tensor([-1, *LEVELS], dtype=torch.float32)
            steps.append(places.diff())
            kind += [number] * len(LEVELS)
    return Ordered(torch.cat(difference), torch.cat(steps), torch.tensor(kind))
