"""The demonstration's judge: its set, its numbers, and folds that never share a photograph."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from shamisa.scoring import demo, metrics, ridge

FAST = {"crop": 48, "images": 6, "compositions": 6, "folds": 3}


class Contrast(nn.Module):
    """F = 2: spread of the image and of its differences. Needs a parameter, so that its device is known."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        assert not self.training
        detail = (x[..., 1:] - x[..., :-1]).flatten(1).std(1)
        return self.factor * torch.stack([x.flatten(1).std(1), detail], 1).log1p()


@pytest.fixture(scope="module")
def some():
    return demo.make_set(seed=1, **{k: FAST[k] for k in ("crop", "images", "compositions")})


def test_set_is_what_it_says(some):
    assert some.images.shape == (36, 3, 48, 48) and some.images.dtype == torch.uint8
    assert np.array_equal(some.photo, np.repeat(np.arange(6), 6))
    assert -1 <= some.target.min() and some.target.max() <= 1 and some.target.std() > 0.1
    assert demo.make_set(1, 48, 6, 6) is demo.make_set(1, 48, 6, 6)


def test_target_is_ssim_to_the_pristine_crop(some):
    photo = demo.EmbeddedPhotos("test")[1]
    crop = photo[:, (photo.shape[1] - 48) // 2 :, (photo.shape[2] - 48) // 2 :][:, :48, :48]
    # sums of floats: their last bit depends on where the arrays lie in memory
    assert_allclose(some.target[7], metrics.ssim(some.images[7].numpy(), crop.numpy()), rtol=1e-12)


def test_numbers_are_those_of_the_folds(some):
    encoder = Contrast().train()
    result = demo.evaluate(encoder, seed=1, **FAST)
    assert encoder.training  # the mode is restored
    assert "proxy" in result["proxy"] and "not human" in result["proxy"] and result["images"] == 36
    prediction = demo.cross_validate(demo.features(encoder, some.images), some.target, some.photo, 3)
    folds = [np.isin(some.photo, (f, f + 3)) for f in range(3)]
    for key in demo.KEYS:
        inside = [getattr(metrics, key)(prediction[m], some.target[m]) for m in folds]
        assert_allclose(result[key], np.mean(inside))
    assert_allclose(result["srcc_pooled"], metrics.srcc(prediction, some.target))
    assert demo.evaluate(encoder, seed=1, **FAST) == result


def test_features_that_tell_are_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    target, photo = rng.uniform(size=240), np.repeat(np.arange(12), 20)
    noise = rng.normal(size=(240, 6))
    telling = np.concatenate([noise, target[:, None] + 0.05 * rng.normal(size=(240, 1))], 1)
    found, none = (demo.cross_validate(torch.from_numpy(X), target, photo, 4) for X in (telling, noise))
    assert metrics.srcc(found, target) > 0.95 and abs(metrics.srcc(none, target)) < 0.3


def test_folds_never_share_a_photograph(monkeypatch):
    photo = np.repeat(np.arange(7), 3)
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(21, 2)))
    X[:, 1] = torch.from_numpy(photo)  # tells the photograph
    target = np.random.default_rng(1).normal(size=21)
    fits = []
    real = ridge.fit_path

    def spy(X, *arguments):
        fits.append(set(X[:, 1].tolist()))
        return real(X, *arguments)

    monkeypatch.setattr(ridge, "fit_path", spy)
    prediction = demo.cross_validate(X, target, photo, 3)
    assert np.isfinite(prediction).all()
    for f in range(3):  # two fits in each fold: to choose the strength, and with it
        held_out, validation = {p for p in range(7) if p % 3 == f}, {p for p in range(7) if p % 3 == (f + 1) % 3}
        assert fits[2 * f] == set(range(7)) - held_out - validation
        assert fits[2 * f + 1] == set(range(7)) - held_out


def test_comparison_is_described_and_written(some, tmp_path):
    printed = demo.describe(demo.compare(Contrast(), Contrast(), tmp_path / "demo.json", seed=1, **FAST))
    written = json.loads((tmp_path / "demo.json").read_text())
    for name in ("untrained", "trained"):
        assert name in printed and f"{written[name]['srcc']:.4f}" in printed
    assert "proxy, not human scores" in printed


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": 99}, "images must be in 2..12"),
        ({"crop": 1000}, "crop must fit"),
        ({"folds": 2}, r"folds must be in 3..images = 6, got 2"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        demo.evaluate(Contrast(), **(FAST | change))
