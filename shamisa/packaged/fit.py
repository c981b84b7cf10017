"""The regressor of the packaged model: ridge on features averaged over the crops, cross-validated inside the train part.

What is known without people enters as rows of differences of features, each with the gap in quality that it stands for:
ordered pairs (``ordered``), of which the better one shall exceed the worse, and mirror images (``mirrored``), whose gap is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
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
ALLOWED = 0.004  # loss of SRCC for the sake of the pairs
MIRROR = 8.0  # weight of the mirror images; it costs no SRCC


@dataclass(frozen=True)
class Gaps:
    """Differences of features and the gaps in quality that they stand for; float64, as all of the fit."""

    difference: Tensor  # [m, F]
    gap: Tensor  # [m]
    weight: float  # of all together, beside the human scores, all together


@dataclass(frozen=True)
class Fit:
    """One regressor and how it was chosen."""

    coef: Tensor  # [F] float64
    intercept: Tensor  # [] float64
    alpha: float
    weight: float  # of the pairs; 0 without
    mirror: float  # weight of the mirror images; 0 without
    srcc: float  # means over folds and shuffles
    plcc: float
    rmse: float
    agreeing: float | None  # the share of the pairs that it puts in the right order


def solve(X: Tensor, y: Tensor, known: Sequence[Gaps], alphas: np.ndarray) -> tuple[Tensor, Tensor]:
    """X [n, F], y [n], float64 -> coef [A, F], intercept [A].

    Minimises ``|y - X w - b|^2 + sum over known of weight n / m |gap - difference w|^2 + alpha |w|^2``; b has no part in
    differences.
    """
    mean, offset = X.mean(0), y.mean()
    rows, target = [X - mean], [y - offset]
    for k in known:
        scale = (k.weight * len(X) / len(k.gap)) ** 0.5
        rows.append(scale * k.difference)
        target.append(scale * k.gap)
    rows, target = torch.cat(rows), torch.cat(target)
    gram = rows @ rows.T
    dual = []
    for alpha in alphas:  # for a few strengths much less work than an eigendecomposition
        factor = torch.linalg.cholesky(gram + alpha * torch.eye(len(gram), dtype=gram.dtype))
        dual.append(torch.cholesky_solve(target[:, None], factor)[:, 0])
    coef = torch.stack(dual) @ rows
    return coef, offset - coef @ mean


def cross_validate(
    X: Tensor, y: Tensor, flipped: Tensor | None, pairs: Sequence[Gaps], alphas: np.ndarray = ALPHAS
) -> np.ndarray:
    """Mean SRCC, PLCC and RMSE [3, A] over ``SHUFFLES`` times ``FOLDS`` folds of the n images. The pairs stand beside every
    fold; mirror images are only those of the images that are fitted on."""
    found = []
    for seed in range(SHUFFLES):
        order = np.random.default_rng([seed, FOLDS]).permutation(len(y))
        for test in np.array_split(order, FOLDS):
            train = np.setdiff1d(order, test)
            known = [*pairs, *mirrors(X[train], None if flipped is None else flipped[train])]
            coef, intercept = solve(X[train], y[train], known, alphas)
            prediction = (X[test] @ coef.T + intercept).numpy()
            truth = y[test].numpy()
            found.append([[m(p, truth) for p in prediction.T] for m in (srcc, plcc, rmse)])
    return np.mean(found, axis=0)


def mirrors(X: Tensor, flipped: Tensor | None) -> list[Gaps]:
    """What mirror images say, if there are any."""
    return [] if flipped is None else [Gaps(X - flipped, X.new_zeros(len(X)), MIRROR)]


def fit(X: Tensor, y: Tensor, ordered: Ordered | None = None, flipped: Tensor | None = None) -> Fit:
    """The regressor of features X [n, F], averaged over crops, and quality y [n] in 0..1.

    Without pairs: the strength with the best cross-validated SRCC. With them: of the weights whose best SRCC lies at most
    ``ALLOWED`` below that, the largest. ``flipped`` [n, F]: features of the mirror images.
    """
    X, y = X.double(), torch.as_tensor(y, dtype=torch.float64)
    flipped = None if flipped is None else flipped.double()
    best, pairs = choose(X, y, flipped, []), []
    if ordered is not None:
        D, gap = ordered.difference.double(), GAP * ordered.steps.double()
        floor = best[0] - ALLOWED
        for weight in WEIGHTS:
            found = choose(X, y, flipped, [Gaps(D, gap, weight)])
            if found[0] < floor:
                break
            best, pairs = found, [Gaps(D, gap, weight)]
    *figures, alpha = best
    coef, intercept = solve(X, y, [*pairs, *mirrors(X, flipped)], np.array([alpha]))
    agreeing = float((D @ coef[0] > 0).double().mean()) if ordered is not None else None
    weights = (pairs[0].weight if pairs else 0.0, 0.0 if flipped is None else MIRROR)
    return Fit(coef[0], intercept[0], alpha, *weights, *figures, agreeing)


def choose(X: Tensor, y: Tensor, flipped: Tensor | None, pairs: Sequence[Gaps]) -> tuple[float, ...]:
    """SRCC, PLCC and RMSE of the strength with the best SRCC, and that strength."""
    figures = cross_validate(X, y, flipped, pairs)
    i = int(np.argmax(figures[0]))
    return *map(float, figures[:, i]), float(ALPHAS[i])
