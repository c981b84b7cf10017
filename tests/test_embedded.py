"""The packaged photographs and the synthetic ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from shamisa.data import EmbeddedPhotos, dead_leaves


def test_embedded_splits_are_disjoint():
    train, test = EmbeddedPhotos("train", leaves=2, size=96), EmbeddedPhotos("test", leaves=2, size=96)
    names = [{s.name(i) for i in range(len(s))} for s in (train, test)]
    assert len(names[0]) == len(train) == 6 and len(names[1]) == len(test) == 5
    assert names[0].isdisjoint(names[1])
    photos = [s[i] for s in (train, test) for i in range(len(s))]
    assert all(p.dtype == torch.uint8 and p.shape[0] == 3 and min(p.shape[1:]) >= 96 for p in photos)
    small = torch.stack([torch.nn.functional.interpolate(p[None].float(), (32, 32)).flatten() for p in photos])
    distance = torch.pdist(small) / small.shape[1] ** 0.5  # r.m.s. grey levels
    assert distance.min() > 20
    assert train[1] is train[1]  # decoded once
    for bad in ({"split": "validation"}, {"leaves": -1}, {"size": 8}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            EmbeddedPhotos(**bad)


def test_embedded_names_the_missing_wheel(monkeypatch):
    monkeypatch.setattr("shamisa.data.embedded.PACKAGED", {"train": (("x", "skimage", "data/absent.png"),)})
    with pytest.raises(ValueError, match="must be installed with scikit-image, got none at .*absent.png"):
        EmbeddedPhotos("train")


def test_dead_leaves_are_pure_and_different():
    first = dead_leaves(5, 96, seed=3)
    assert first.shape == (3, 96, 96) and first.dtype == torch.uint8
    state = torch.random.get_rng_state()
    assert_close(dead_leaves(5, 96, seed=3), first, rtol=0, atol=0)
    assert_close(torch.random.get_rng_state(), state)
    for other in (dead_leaves(6, 96, seed=3), dead_leaves(5, 96, seed=4)):
        assert (other.float() - first.float()).abs().mean() > 10
    for bad in ({"index": -1}, {"size": 31}, {"seed": 2**63}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            dead_leaves(**{"index": 0, **bad})


def spectral_slope(image: torch.Tensor) -> float:
    """Exponent of the radially averaged power spectrum, from 4 cycles an image to half the Nyquist frequency."""
    grey = image.double().mean(0)
    n = grey.shape[0]
    window = torch.hann_window(n, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2((grey - grey.mean()) * window[:, None] * window).abs().square()
    f = torch.fft.fftfreq(n, dtype=torch.float64) * n
    ring = (f[:, None] ** 2 + f**2).sqrt().round().long().flatten()
    mean = (
        torch.zeros(int(ring.max()) + 1, dtype=torch.float64).scatter_add_(0, ring, power.flatten()) / ring.bincount()
    )
    k = np.arange(4, n // 4)
    return float(np.polyfit(np.log(k), np.log(mean[k].numpy()), 1)[0])


def test_dead_leaves_have_natural_statistics():
    images = [dead_leaves(i, 256) for i in range(8)]
    slopes = torch.tensor([spectral_slope(image) for image in images])
    assert -2.8 < slopes.mean() < -2.0, slopes  # natural photographs: about -2.3
    assert slopes.min() > -3.3 and slopes.max() < -1.5, slopes
    x = torch.stack(images).float()
    gradient = (x[..., 1:] - x[..., :-1]).flatten()
    kurtosis = gradient.pow(4).mean() / gradient.square().mean() ** 2
    assert kurtosis > 6, kurtosis  # edges: heavy tails, a Gaussian has 3
    assert (gradient == 0).float().mean() < 0.13  # textured: without its texture 0.20
    assert x.std((1, 2, 3)).min() > 25 and 60 < x.mean() < 160
