"""Random words by address, drawn by the compiled kernel where there is one; reference/philox.py says what they are.

The plan of a step, its crops and its photographs take some dozens of addresses each: the kernel makes that microseconds, and one launch on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops  # noqa: F401  (defines philox)
from .reference.philox import DOMAIN_PIXEL, join, on_device


def words(
    key: Tensor, element: Tensor | int, draw: Tensor | int = 0, extra: Tensor | int = 0, domain: int = DOMAIN_PIXEL
) -> tuple[Tensor, ...]:
    """``reference.philox.words``: four words int64 [...] at an address, key int64 and numbers or tensors, broadcast."""
    address = torch.broadcast_tensors(key, *(on_device(t, key.device) for t in (element, draw, extra)))
    return torch.ops.shamisa.philox(*address, domain).unbind()


def derive_key(
    key: Tensor, element: Tensor | int, draw: Tensor | int = 0, extra: Tensor | int = 0, *, domain: int
) -> Tensor:
    """``reference.philox.derive_key``: a new 64-bit key (int64) from the first two words at an address of another key."""
    return join(words(key, element, draw, extra, domain))
