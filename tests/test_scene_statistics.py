"""The hand-made statistics against distributions with known parameters, and on images where something is known."""

import numpy as np
import pytest
import torch
from scipy.stats import gennorm
from torch.testing import assert_close

from shamisa.engine import normalize
from shamisa.scoring import scene_statistics
from shamisa.scoring.features import Extractor, hash_encoder
from shamisa.scoring.scene_statistics import NAMES, SceneStatistics

ENCODER = SceneStatistics().eval()


def statistics(photos):
    """[N, 3, H, W] uint8 -> {name: [N]}."""
    return dict(zip(NAMES, ENCODER(normalize(photos)).T, strict=True))


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 5.0])
def test_symmetric_fit_finds_the_distribution(shape):
    x = torch.from_numpy(gennorm.rvs(shape, scale=0.7, size=(2, 200_000), random_state=0)).float()
    found, deviation = ENCODER._symmetric(x)
    assert_close(found, torch.full((2,), shape), rtol=0.05, atol=0)
    assert_close(deviation, torch.full((2,), float(gennorm.std(shape, scale=0.7))), rtol=0.02, atol=0)


@pytest.mark.parametrize("shape, left, right", [(0.8, 1.0, 0.4), (2.0, 0.5, 0.5), (1.3, 0.2, 0.9)])
def test_asymmetric_fit_finds_the_distribution(shape, left, right):
    """Each side is half a generalised Gaussian; a side's share of the mass is its share of the scales."""
    rng = np.random.default_rng(0)
    magnitude = np.abs(gennorm.rvs(shape, size=400_000, random_state=1))
    side = rng.random(400_000) < left / (left + right)
    x = torch.from_numpy(np.where(side, -left * magnitude, right * magnitude)).float()[None]
    found, mean, below, above = (float(t) for t in ENCODER._asymmetric(x))
    std = float(gennorm.std(shape))
    np.testing.assert_allclose([found, below, above], [shape, left * std, right * std], rtol=0.05)
    np.testing.assert_allclose(mean, x.mean(), atol=0.02)


def test_equal_images_equal_numbers_whatever_the_batch(photo):
    one = ENCODER(normalize(photo))
    assert one.shape == (1, ENCODER.feature_dim) and torch.isfinite(one).all()
    assert_close(ENCODER(normalize(photo.expand(3, -1, -1, -1))), one.expand(3, -1), rtol=1e-5, atol=1e-6)
    mirrored = statistics(photo.flip(3))
    for name, value in statistics(photo).items():  # the diagonals change places
        other = {"diagonal": "antidiagonal", "antidiagonal": "diagonal"}.get(name.split()[0])
        other = name if other is None else f"{other} {name.split()[1]}"
        if "gradient" not in name:  # one-sided differences see other pixels
            assert_close(mirrored[other], value, rtol=1e-3, atol=1e-3)


def test_blur_noise_and_grey_move_what_they_should(photo):
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0)) * 25
    noisy = (photo + noise).clamp(0, 255).to(torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(photo.float(), 5, 1, 2).to(torch.uint8)
    grey = photo.float().mean(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
    clean, noisy, blurred, grey = (statistics(p) for p in (photo, noisy, blurred, grey))
    for name in ("gradient", "laplacian", "local deviation"):
        assert blurred[name] < clean[name] < noisy[name]
    assert blurred["horizontal right"] > blurred["horizontal left"]  # neighbours of a blurred image agree
    assert noisy["mscn deviation"] > clean["mscn deviation"] and clean["colourfulness"] > 0.05
    for name in ("saturation mean", "saturation deviation", "colourfulness"):
        assert_close(grey[name], torch.zeros(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images_have_finite_numbers(value):
    found = statistics(torch.full((1, 3, 32, 40), value, dtype=torch.uint8))
    assert torch.isfinite(torch.stack(list(found.values()))).all()
    assert_close(found["luma mean"], torch.tensor([value / 255]))
    assert_close(found["laplacian"], torch.tensor([-3.0]), atol=0.05, rtol=0)


def test_it_is_an_encoder_for_the_extractor(photo, monkeypatch):
    extractor = Extractor(SceneStatistics(), crop=32)
    assert extractor([photo[0]]).shape == (1, 5, 2 * len(NAMES))
    before = hash_encoder(SceneStatistics())
    assert before == extractor.hash
    monkeypatch.setattr(scene_statistics, "_WINDOW", 9)
    assert hash_encoder(SceneStatistics()) != before


def test_too_small_images_are_told():
    with pytest.raises(ValueError, match=r"sides of at least 8, got \[1, 3, 7, 20\]"):
        ENCODER(torch.zeros(1, 3, 7, 20))
