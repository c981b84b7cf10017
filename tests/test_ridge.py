"""The path of ridge regressors against scikit-learn, one strength at a time."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from shamisa.scoring import metrics, ridge

sklearn = pytest.importorskip("sklearn.linear_model")


def problem(n, p, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * rng.uniform(0.1, 2, p) + offset
    return X, X @ rng.normal(size=p) / np.sqrt(p) + rng.normal(size=n) + 50


@pytest.mark.parametrize("n, p", [(60, 8), (8, 60), (30, 30), (30, 29), (30, 31), (1, 4), (2, 1)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equals_scikit_learn(n, p, dtype):
    X, y = problem(n, p)
    X = X.astype(dtype)
    path = ridge.fit_path(X, y)
    assert path.coef.shape == (100, p) and path.intercept.shape == (100,)
    for a in (0, 33, 66, 99):
        model = sklearn.Ridge(alpha=float(path.alpha[a]), fit_intercept=True).fit(X.astype(np.float64), y)
        assert_allclose(path.coef[a], model.coef_, atol=1e-8)
        assert_allclose(path.intercept[a], model.intercept_, atol=1e-8)
        assert_allclose(path.predict(X)[:, a], model.predict(X.astype(np.float64)), atol=1e-8)


def test_rank_deficient_columns():
    X, y = problem(50, 4)
    X = np.concatenate([X, X, np.ones((50, 2))], 1)  # copies and constants: half of the eigenvalues are zero
    path = ridge.fit_path(X, y, [1e-3, 1.0])
    for a in range(2):
        model = sklearn.Ridge(alpha=float(path.alpha[a]), solver="svd").fit(X, y)
        assert_allclose(path.coef[a], model.coef_, atol=1e-8)


@pytest.mark.parametrize("n, p", [(20, 6), (4, 40)])
def test_crops_are_rows_and_predictions_their_mean(n, p):
    X, _ = problem(n * 5, p)
    crops, y = X.reshape(n, 5, p), problem(n, 3)[1]
    flat, path = ridge.fit_path(X, np.repeat(y, 5)), ridge.fit_path(crops, y)
    assert_allclose(path.coef, flat.coef, atol=1e-12)
    assert_allclose(path.predict(crops), flat.predict(X).view(n, 5, -1).mean(1), atol=1e-10)


def test_chunks_change_nothing(monkeypatch):
    X, y = problem(50, 6)
    whole = ridge.fit_path(X, y)
    monkeypatch.setattr(ridge, "_CHUNK", 7)
    monkeypatch.setattr(ridge, "_BLOCK", 4)
    parts = ridge.fit_path(X, y)
    assert_allclose(parts.coef, whole.coef, atol=1e-11)
    assert_allclose(parts.predict(X), whole.predict(X), atol=1e-10)


def test_selection_is_the_loop_over_scikit_learn():
    X, y = problem(120, 90, seed=3)
    train, val = slice(0, 80), slice(80, 120)
    chosen, values = ridge.select(X[train], y[train], X[val], y[val])
    fits = [sklearn.Ridge(alpha=a).fit(X[train], y[train]) for a in ridge.ALPHAS]
    expected = [metrics.srcc(f.predict(X[val]), y[val]) for f in fits]
    assert_allclose(values, expected, atol=1e-12)
    assert chosen.alpha.item() == ridge.ALPHAS[int(np.argmax(expected))]
    assert chosen.coef.shape == (1, 90)
    by_error, _ = ridge.select(X[train], y[train], X[val], y[val], criterion=lambda p, t: -metrics.rmse(p, t))
    errors = [metrics.rmse(f.predict(X[val]), y[val]) for f in fits]
    assert by_error.alpha.item() == ridge.ALPHAS[int(np.argmin(errors))]


def test_input_is_not_modified():
    X, y = problem(20, 5)
    before = X.copy()
    ridge.fit_path(torch.from_numpy(X), torch.from_numpy(y)).predict(X)
    assert_array_equal(X, before)


@pytest.mark.parametrize(
    "X, y, alphas, message",
    [
        (np.ones((4, 2)), np.ones(3), [1.0], r"y must be \[n\] = \[4\], got \[3\]"),
        (np.ones(4), np.ones(4), [1.0], r"X must be floating \[n, F\]"),
        (np.ones((0, 2)), np.ones(0), [1.0], "none of them 0"),
        (np.ones((4, 2), int), np.ones(4), [1.0], "got torch.int64"),
        (np.ones((4, 2)), np.ones(4), [0.0], "alphas must be"),
        (np.ones((4, 2)), np.ones(4), [], "alphas must be"),
        (np.full((4, 2), np.nan), np.ones(4), [1.0], "must be finite"),
        (np.ones((4, 2)), np.full(4, np.nan), [1.0], "must be finite"),
    ],
)
def test_errors(X, y, alphas, message):
    with pytest.raises(ValueError, match=message):
        ridge.fit_path(X, y, alphas)


def test_errors_of_prediction_and_selection():
    X, y = problem(20, 5)
    with pytest.raises(ValueError, match="F = 5 columns, got"):
        ridge.fit_path(X, y).predict(X[:, :4])
    with pytest.raises(ValueError, match="constant scores"):
        ridge.select(X, y, X[:4], np.ones(4))
