"""The regressor of the packaged model: ridge on features averaged over the crops, cross-validated inside the train part.

Ordered pairs (``ordered``) enter as rows of differences: for each, the better one shall exceed the worse by a gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..scoring.metrics import plcc, rmse, srcc
from .ordered import Ordered

FOLDS = 5
SHUFFLES = 1  # cross-validations that are averaged, each with other folds
ALPHAS = np.logspace(-0.5, 1.5, 9)  # strengths
WEIGHTS = (0.3, 1.0, 3.0)  # of the ordered pairs, all together, beside the human scores, all together
GAP = 0.06  # of quality between neighbouring levels of a distortion
ALLOWED = 0.003  # loss of SRCC for the sake of the pairs


@dataclass(frozen=True)
class Fit:
    """One regressor and how it was chosen."""

    coef: Tensor  # [F] float64
    intercept: Tensor  # [] float64
    alpha: float
    weight: float  # of the pairs; 0 without
    srcc: float  # means over folds and shuffles
    plcc: float
    rmse: float
    agreeing: float | None  # the share of the pairs that it puts in the right order


def solve(X: Tensor, y: Tensor, D: Tensor, gap: Tensor, weight: float, alphas: np.ndarray) -> tuple[Tensor, Tensor]:
    """X [n, F], y [n], D [m, F], gap [m], float64 -> coef [A, F], intercept [A].

    Minimises ``|y - X w - b|^2 + weight n / m |gap - D w|^2 + alpha |w|^2``; b has no part in differences.
    """
    mean, offset = X.mean(0), y.mean()
    scale = (weight * len(X) / max(len(D), 1)) ** 0.5
    rows = torch.cat([X - mean, scale * D]) if weight else X - mean
    target = torch.cat([y - offset, scale * gap]) if weight else y - offset
    gram = rows @ rows.T
    dual = []
    for alpha in alphas:  # for a few strengths much less work than an eigendecomposition
        factor = torch.linalg.cholesky(gram + alpha * torch.eye(len(gram), dtype=gram.dtype))
        dual.append(torch.cholesky_solve(target[:, None], factor)[:, 0])
    coef = torch.stack(dual) @ rows
    return coef, offset - coef @ mean


def cross_validate(
    X: Tensor, y: Tensor, D: Tensor, gap: Tensor, weight: float, alphas: np.ndarray = ALPHAS
) -> np.ndarray:
    """Mean SRCC, PLCC and RMSE [3, A] over ``SHUFFLES`` times ``FOLDS`` folds of the n images; the pairs stand beside every fold."""
    found = []
    for seed in range(SHUFFLES):
        order = np.random.default_rng([seed, FOLDS]).permutation(len(y))
        for test in np.array_split(order, FOLDS):
            train = np.setdiff1d(order, test)
            coef, intercept = solve(X[train], y[train], D, gap, weight, alphas)
            prediction = (X[test] @ coef.T + intercept).numpy()
            truth = y[test].numpy()
            found.append([[m(p, truth) for p in prediction.T] for m in (srcc, plcc, rmse)])
    return np.mean(found, axis=0)


def fit(X: Tensor, y: Tensor, ordered: Ordered | None = None) -> Fit:
    """The regressor of features X [n, F], averaged over crops, and quality y [n] in 0..1.

    Without pairs: the strength with the best cross-validated SRCC. With them: of the weights whose best SRCC lies at most
    ``ALLOWED`` below that, the largest.
    """
    X, y = X.double(), torch.as_tensor(y, dtype=torch.float64)
    none = X.new_zeros(0, X.shape[1])
    best = choose(X, y, none, none[:, 0], 0.0)
    D, gap = none, none[:, 0]
    if ordered is not None:
        D, gap = ordered.difference.double(), GAP * ordered.steps.double()
        floor = best[0] - ALLOWED
        for weight in WEIGHTS:
            found = choose(X, y, D, gap, weight)
            if found[0] < floor:
                break
            best = found
    *figures, alpha, weight = best
    coef, intercept = solve(X, y, D, gap, weight, np.array([alpha]))
    agreeing = float((D @ coef[0] > 0).double().mean()) if ordered is not None else None
    return Fit(coef[0], intercept[0], alpha, weight, *figures, agreeing)


def choose(X: Tensor, y: Tensor, D: Tensor, gap: Tensor, weight: float) -> tuple[float, ...]:
    """Of the strength with the best SRCC: SRCC, PLCC, RMSE, strength; and the weight again."""
    figures = cross_validate(X, y, D, gap, weight)
    i = int(np.argmax(figures[0]))
    return *map(float, figures[:, i]), float(ALPHAS[i]), weight
