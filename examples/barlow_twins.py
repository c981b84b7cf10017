"""Barlow Twins (Zbontar et al. 2021) with shamisa's kernels and distortions, beside the usual lines of PyTorch.

The usual lines build the E x E cross-correlation of the two views. `covariance` of the views side by side, [n, 2 E],
holds its squared sum too, and never builds a matrix larger than n x n where n < 2 E.

    python examples/barlow_twins.py               # trains twice, with either loss; draws both curves
    python examples/barlow_twins.py --reference   # trains with the usual lines only
"""

from __future__ import annotations

from functools import partial

import torch
from common import main, train
from torch import Tensor

import shamisa.functional as SF

WEIGHT = 5e-3  # of the redundancy term


def standardize(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.std(0) + 1e-5)


def ours(a: Tensor, b: Tensor) -> Tensor:
    """Embeddings a, b [n, E] of the two views -> loss."""
    a, b = standardize(a), standardize(b)
    E = a.shape[1]
    same = (a * b).sum(0) / (len(a) - 1)  # the diagonal c_ii
    # cov([a, b]) holds the cross-correlation twice beside cov(a) and cov(b), whose diagonals do not count
    every = E * (SF.covariance(torch.cat([a, b], 1)) - (SF.covariance(a) + SF.covariance(b)) / 2)  # sum of all c_ij^2
    return (1 - same).square().sum() + WEIGHT * (every - same.square().sum())


def usual(a: Tensor, b: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    c = standardize(a).T @ standardize(b) / (len(a) - 1)
    off_diagonal = c - c.diagonal().diag()
    return (1 - c.diagonal()).square().sum() + WEIGHT * off_diagonal.square().sum()


if __name__ == "__main__":
    main(__doc__, "barlow_twins", partial(train, ours), partial(train, usual))
