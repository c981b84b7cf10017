"""VICReg (Bardes, Ponce and LeCun 2022) with shamisa's kernels and distortions, beside the usual lines of PyTorch.

python examples/vicreg.py               # trains twice, with either loss; draws both curves, prints their difference
python examples/vicreg.py --reference   # trains with the usual lines only
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from common import main, train
from torch import Tensor

import shamisa.functional as SF


def ours(a: Tensor, b: Tensor) -> Tensor:
    """Embeddings a, b [n, E] of the two views -> loss."""
    n = len(a)
    i = torch.arange(n, device=a.device)
    positives = SF.RelationGraph(
        weight=torch.full_like(i, 2, dtype=a.dtype), index=torch.stack([i, i + n]), nodes=2 * n
    )
    invariance = SF.pair_cost(torch.cat([a, b]), positives)  # sum of 2 |a_i - b_i|^2 / (2 n E): mean squared error
    variance = (SF.variance(a) + SF.variance(b)) / 2
    covariance = SF.covariance(a) + SF.covariance(b)
    return 25 * invariance + 25 * variance + covariance


def usual(a: Tensor, b: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    invariance, variance, covariance = F.mse_loss(a, b), 0, 0
    for x in (a, b):
        variance = variance + F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean() / 2
        cov = x.T.cov()
        covariance = covariance + (cov - cov.diagonal().diag()).square().sum() / x.shape[1]
    return 25 * invariance + 25 * variance + covariance


if __name__ == "__main__":
    main(__doc__, "vicreg", partial(train, ours), partial(train, usual))
