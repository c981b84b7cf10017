"""The embedded demonstration's judge: do frozen features predict how much held-out photographs were distorted?

Held-out packaged photographs are distorted by the engine; the target is the SSIM of the distorted crop against the pristine
one. SSIM is a proxy that needs no people: these numbers are never to be read as agreement with human scores.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.embedded import EmbeddedPhotos
from ..engine import DistortionEngine, normalize
from ..files import write_json
from ..networks.encoders import evaluating, normalization
from . import metrics, ridge

PROXY = "SSIM to the pristine crop (a proxy, not human scores)"
KEYS = ("srcc", "plcc", "krcc", "rmse")


@dataclass(frozen=True)
class DemoSet:
    """Distorted crops of held-out photographs."""

    images: Tensor  # [n, 3, crop, crop] uint8, the crops of a photograph together
    target: np.ndarray  # [n] SSIM to the pristine crop
    photo: np.ndarray  # [n] int, which photograph


@lru_cache(maxsize=4)
def make_set(seed: int = 0, crop: int = 96, images: int = 12, compositions: int = 24, backend: str = "auto") -> DemoSet:
    """The central crops of the first ``images`` held-out photographs, each under ``compositions`` chains of the engine.

    A function of its arguments; kept, so that several encoders are judged on the same set.

    Raises:
        ValueError: more photographs than there are, or a crop larger than the smallest.
    """
    photos = EmbeddedPhotos("test")
    if not 2 <= images <= len(photos):
        raise ValueError(f"images must be in 2..{len(photos)}, the held-out photographs, got {images}")
    crops = [_centre(photos[i], crop) for i in range(images)]
    plan = DistortionEngine(compositions=compositions, levels=1).sample(images, seed=seed)
    references = torch.stack(crops).unsqueeze(1)  # [images, 1, 3, crop, crop]
    engine = DistortionEngine()
    x = engine(references, plan, normalize=False, dtype=torch.uint8, backend=backend).flatten(0, 3)
    photo = np.repeat(np.arange(images), compositions)
    target = np.array([metrics.ssim(a.numpy(), crops[i].numpy()) for a, i in zip(x, photo, strict=True)])
    return DemoSet(x, target, photo)


def _centre(photo: Tensor, crop: int) -> Tensor:
    if min(photo.shape[1:]) < crop:
        raise ValueError(f"crop must fit into the held-out photographs, got {crop} for {list(photo.shape[1:])}")
    top, left = ((n - crop) // 2 for n in photo.shape[1:])
    return photo[:, top : top + crop, left : left + crop].contiguous()


@torch.inference_mode()
def features(encoder: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """images [n, 3, H, W] uint8 -> h [n, F] float32 on the CPU, the encoder in eval mode; its mode is restored."""
    device, numbers = next(encoder.parameters()).device, normalization(encoder)
    with evaluating(encoder):
        parts = images.split(batch)
        return torch.cat([encoder(normalize(part.to(device), **numbers)).float().cpu() for part in parts])


def cross_validate(X: Tensor, target: np.ndarray, photo: np.ndarray, folds: int) -> np.ndarray:
    """Predictions [n], each by a ridge regressor that has seen no image of the same photograph.

    Fold f holds the photographs p with p mod folds = f; the strength is chosen by SRCC on the next fold, which then joins
    the training images.
    """
    prediction = np.empty(len(target))
    for f in range(folds):
        test, val = photo % folds == f, photo % folds == (f + 1) % folds
        train = ~test & ~val
        chosen, _ = ridge.select(X[train], target[train], X[val], target[val])
        model = ridge.fit_path(X[~test], target[~test], chosen.alpha)
        prediction[test] = model.predict(X[test])[:, 0].numpy()
    return prediction


def within_folds(prediction: np.ndarray, data: DemoSet, folds: int) -> dict[str, float]:
    """The metrics of ``KEYS`` of predictions [n], each the mean over the folds of its value within a fold."""
    inside = [data.photo % folds == f for f in range(folds)]
    return {k: float(np.mean([getattr(metrics, k)(prediction[m], data.target[m]) for m in inside])) for k in KEYS}


def evaluate(
    encoder: nn.Module,
    *,
    seed: int = 0,
    crop: int = 96,
    images: int = 12,
    compositions: int = 24,
    folds: int = 6,
    backend: str = "auto",
) -> dict:
    """Judge a frozen encoder (normalised images [N, 3, crop, crop] -> h [N, F]).

    Returns:
        ``proxy`` (what the target is, in words), ``images``, ``photographs``, ``folds``, ``seed``; ``srcc``, ``plcc``,
        ``krcc``, ``rmse``, each the mean over the folds of the value within the fold; and ``srcc_pooled`` of all out-of-fold
        predictions together. The pooled value is biased downwards: a fold of easy images leaves harder ones to its
        regressor, whose mean is then too low, and so on; features that tell nothing come out negative.

    Raises:
        ValueError: folds not in 3..images; see also ``make_set``.
    """
    if not 3 <= folds <= images:
        raise ValueError(f"folds must be in 3..images = {images}, got {folds}")
    data = make_set(seed, crop, images, compositions, backend)
    prediction = cross_validate(features(encoder, data.images), data.target, data.photo, folds)
    return {
        "proxy": PROXY,
        "images": len(data.target),
        "photographs": images,
        "folds": folds,
        "seed": seed,
        **within_folds(prediction, data, folds),
        "srcc_pooled": metrics.srcc(prediction, data.target),
    }


def compare(untrained: nn.Module, trained: nn.Module, path: Path, **options) -> dict:
    """Judge both encoders on the same images -> their results, also written to ``path`` (JSON); ``describe`` has words."""
    start = time.perf_counter()
    results = {name: evaluate(e, **options) for name, e in (("untrained", untrained), ("trained", trained))}
    write_json(path, results | {"seconds": round(time.perf_counter() - start, 2)})
    return results


def describe(results: dict) -> str:
    """The results of ``compare`` as a table of lines."""
    some = results["trained"]
    lines = [
        f"probe of {some['photographs']} held-out photographs, {some['images']} distorted crops, {some['folds']} folds by "
        f"photograph; target: {PROXY}",
        f"{'encoder':12}{'SRCC':>8}{'PLCC':>8}{'KRCC':>8}{'RMSE':>8}{'SRCC pooled':>13}",
    ]
    for name, r in results.items():
        numbers = "".join(f"{r[key]:8.4f}" for key in ("srcc", "plcc", "krcc", "rmse"))
        lines.append(f"{name:12}{numbers}{r['srcc_pooled']:13.4f}")
    return "\n".join(lines)
