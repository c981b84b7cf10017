"""Metrics against definitions written out, against each other, and at their edges."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from shamisa.scoring import metrics

RNG = np.random.default_rng(0)
X = RNG.normal(size=40)
Y = X + 0.5 * RNG.normal(size=40)


def ranks(t):
    """Average ranks, by counting."""
    return np.array([(t < v).sum() + ((t == v).sum() + 1) / 2 for v in t])


@pytest.mark.parametrize("x, y", [(X, Y), (X.round(), Y.round()), (X, -Y)], ids=["plain", "ties", "falling"])
def test_against_definitions(x, y):
    def pearson(a, b):
        a, b = a - a.mean(), b - b.mean()
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

    sign_x, sign_y = (np.sign(t[:, None] - t[None]) for t in (x, y))
    tau_b = (sign_x * sign_y).sum() / np.sqrt((sign_x**2).sum() * (sign_y**2).sum())
    assert_allclose(metrics.plcc(x, y), pearson(x, y), rtol=1e-12)
    assert_allclose(metrics.srcc(x, y), pearson(ranks(x), ranks(y)), rtol=1e-12)
    assert_allclose(metrics.krcc(x, y), tau_b, rtol=1e-12)
    assert_allclose(metrics.rmse(x, y), np.sqrt(np.mean((x - y) ** 2)), rtol=1e-12)


def test_srcc_of_many_columns():
    columns = np.stack([X, X.round(), -X, np.ones(40), Y], 1)
    expected = [metrics.srcc(c, Y.round(1)) for c in columns.T]
    assert np.isnan(expected[3])
    assert_allclose(metrics.srcc_columns(columns, Y.round(1)), expected, rtol=1e-12)
    assert np.isnan(metrics.srcc_columns(columns, np.ones(40))).all()
    with pytest.raises(ValueError, match=r"predictions must be \[n, A\], got \[40\]"):
        metrics.srcc_columns(X, Y)
    with pytest.raises(ValueError, match="target must be finite"):
        metrics.srcc_columns(columns, np.full(40, np.nan))


@pytest.mark.parametrize("parameters", [(80, 20, 0.4, 0.1), (20, 80, 0.5, 0.2), (1, 0, 0.2, 0.05)])
def test_logistic_is_recovered(parameters):
    x = np.linspace(0, 1, 60)
    y = metrics.logistic(x, parameters)
    found = metrics.fit_logistic(x, y)
    assert_allclose(metrics.logistic(x, found), y, atol=1e-6 * np.ptp(y))
    assert_allclose(found, parameters, rtol=1e-3, atol=1e-4)
    assert_allclose(metrics.summary(x, y)["plcc_logistic"], 1, atol=1e-9)


def test_logistic_does_not_care_about_the_scale_of_predictions():
    one, other = metrics.summary(X, Y), metrics.summary(1e4 * X - 7, Y)
    assert tuple(one) == metrics.SUMMARY
    for key in ("srcc", "plcc", "plcc_logistic", "krcc"):
        assert_allclose(other[key], one[key], rtol=1e-6)
    assert one["plcc_logistic"] >= one["plcc"] - 1e-3  # the logistic is nearly straight where that is best


def test_constant_predictions_are_nan_not_zero():
    values = metrics.summary(np.ones(5), np.arange(5))
    assert all(np.isnan(values[k]) for k in ("srcc", "plcc", "plcc_logistic", "krcc"))
    assert_allclose(values["rmse"], np.sqrt(np.mean((np.arange(5) - 1.0) ** 2)))


@pytest.mark.parametrize(
    "x, y, message",
    [
        (X[:3], Y[:4], r"got \[3\] and \[4\]"),
        (X[:1], Y[:1], "at least 2 scores, got 1"),
        ([1, np.nan, 2], [1, 2, 3], "prediction must be finite, got 1"),
        ([1, 2, 3], [1, 2, np.inf], "target must be finite, got 1"),
    ],
)
def test_errors(x, y, message):
    with pytest.raises(ValueError, match=message):
        metrics.summary(x, y)


def test_constant_predictions_have_no_fit():
    with pytest.raises(ValueError, match="must not be constant, got 5 times 2"):
        metrics.fit_logistic(np.full(5, 2.0), np.arange(5))


def test_ssim_orders_noise_and_equals_its_formula_on_flat_images():
    photo = RNG.integers(0, 256, (3, 32, 40), dtype=np.uint8)
    assert metrics.ssim(photo, photo) == 1
    noisy = [np.clip(photo + s * RNG.normal(size=photo.shape), 0, 255).astype(np.uint8) for s in (5, 40, 120)]
    values = [metrics.ssim(n, photo) for n in noisy]
    assert 1 > values[0] > values[1] > values[2]
    flat, other = np.full((3, 32, 32), 100, np.uint8), np.full((3, 32, 32), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert_allclose(metrics.ssim(flat, other), (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rtol=1e-9)


@pytest.mark.parametrize("shape, dtype", [((3, 10, 32), np.uint8), ((32, 32, 3), np.uint8), ((3, 32, 32), np.float32)])
def test_ssim_errors(shape, dtype):
    good = np.zeros((3, 32, 32), np.uint8)
    with pytest.raises(ValueError, match="image must be uint8"):
        metrics.ssim(np.zeros(shape, dtype), good)
    with pytest.raises(ValueError, match="shape of reference"):
        metrics.ssim(good[:, :20], good)
