"""Philox4x32-10 (Salmon et al. 2011, Random123) in PyTorch, and the addresses of every random number of the package.

A random number has an address: a 64-bit key says which image (and which stage of its chain), the counter says
``(element, draw, extra, domain)``. Nothing reads a stream, so a number depends on nothing but its address.

===================== ===================== ========================== =======================================================
domain                element               draw, extra                used for
===================== ===================== ========================== =======================================================
0 ``DOMAIN_PIXEL``    pixel, patch, ...     see ``distort.py``, 0      one stage of one image
1 ``DOMAIN_IMAGE``    position in the batch 0, 0                       ``shamisa.distort``: seed -> key of an image
2 ``DOMAIN_PLAN``     sample                see ``engine.py``, step    ``DistortionEngine.sample``
3 ``DOMAIN_VIEW``     view                  0, 0                       key of a stage -> its key for one view
4 ``DOMAIN_DATA``     see ``data/readers``                             crops and the choice of references
5 ``DOMAIN_PHOTO``    see ``data/embedded``                            procedural photographs
===================== ===================== ========================== =======================================================

Words become numbers exactly: a uniform is the word's top 24 bits times 2^-24 (so [0, 1) and exact in float32), an index
below n is ``(word * n) >> 32``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DOMAIN_PIXEL, DOMAIN_IMAGE, DOMAIN_PLAN, DOMAIN_VIEW, DOMAIN_DATA, DOMAIN_PHOTO = range(6)

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox4x32(
    counter: tuple[Tensor | int, ...], key: tuple[Tensor | int, ...], rounds: int = 10
) -> tuple[Tensor, ...]:
    """Philox4x32: four counter words and two key words, int64 holding 0..2^32-1 (broadcast) -> four words, int64.

    Bit-exact with Random123 (its known answers are the test).
    """
    # tensors stay where they are: torch.as_tensor would move them to the default device
    c0, c1, c2, c3, k0, k1 = (t.long() if isinstance(t, Tensor) else torch.tensor(t) for t in (*counter, *key))
    for r in range(rounds):
        if r:
            k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
        # the product wraps in int64, but its 64 bits are right: mask after the arithmetic shift
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
    return tuple(torch.broadcast_tensors(c0, c1, c2, c3))


def words(
    key: Tensor, element: Tensor | int, draw: Tensor | int = 0, extra: Tensor | int = 0, domain: int = DOMAIN_PIXEL
) -> tuple[Tensor, ...]:
    """The four words at an address: key int64 (any 64 bits), element, draw, extra 0..2^32-1, all broadcast together."""

    def on_device(c: Tensor | int) -> Tensor:
        if isinstance(c, Tensor):
            return c.to(key.device, torch.int64)
        # made there: a number that is copied to a GPU waits for it, and cannot be part of a CUDA graph
        return torch.full((), c, dtype=torch.int64, device=key.device)

    counter = tuple(on_device(c) & _MASK for c in (element, draw, extra, domain))
    return philox4x32(counter, (key & _MASK, (key >> 32) & _MASK))


def derive_key(
    key: Tensor, element: Tensor | int, draw: Tensor | int = 0, extra: Tensor | int = 0, *, domain: int
) -> Tensor:
    """A new 64-bit key (int64) from the first two words at an address of another key."""
    w = words(key, element, draw, extra, domain)
    return w[0] | (w[1] << 32)  # the shift wraps into the sign bit, as wanted


def uniform(word: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Word -> uniform in [0, 1), a multiple of 2^-24."""
    return (word >> 8).to(dtype) * 2.0**-24


def index(word: Tensor, n: Tensor | int) -> Tensor:
    """Word -> integer in 0..n-1, n < 2^31."""
    return (word * n) >> 32


def normal_pair(word0: Tensor, word1: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two words -> two independent standard normals (Box-Muller): radius from word0 in (0, 1], angle from word1."""
    radius = torch.sqrt(-2 * torch.log(((word0 >> 8) + 1).to(dtype) * 2.0**-24))
    angle = uniform(word1, dtype) * (2 * math.pi)
    return radius * torch.cos(angle), radius * torch.sin(angle)
