"""SimCLR (Chen et al. 2020) with shamisa's distortions and a loss of one's own: the engine only.

The engine is a function of crops and a plan, so it stands where the augmentations of a training stand; the loss knows
nothing of it. Trained twice, with the compiled engine and with its PyTorch reference, which makes the same pixels.

    python examples/simclr.py               # trains twice; draws both curves
    python examples/simclr.py --reference   # trains with the PyTorch reference of the engine only
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from common import main, train
from torch import Tensor


def nt_xent(a: Tensor, b: Tensor) -> Tensor:
    """Embeddings a, b [n, E] of the two views -> loss: each row shall know its other view among all 2 n - 1."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)  # 0.5: the temperature
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


if __name__ == "__main__":
    main(__doc__, "simclr", partial(train, nt_xent), partial(train, nt_xent, backend="reference"))
