"""Statistics of JPEG 2000's bit-plane coder without running it: which samples each coding pass visits, and in which contexts.

Membership, contexts, symbol counts and the decrease of distortion of a pass depend on the order of the scan only through "was that
neighbour visited before me", which is a fixpoint of shifts. So a bit plane of a 64x64 code block is 64 words of 64 bits (bit c of word
r is sample (r, c)), a coding pass is a few dozen word operations, and all blocks of a batch go through them side by side.
Only the adaptive arithmetic coder is truly sequential; `jpeg2000.py` replaces it by a code length computed from the counts.

Source: ISO/IEC 15444-1, annex D (passes and contexts, whose numbers are used here) and annex J.14 (distortion estimates).
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 64  # samples along each side of a code block
PLANES = 11  # most magnitude bits of a coefficient: 8 bits and a gain of 2 in HH, with a bit to spare
FRACTION = 6  # planes below the current one that the distortion estimate looks at

CONTEXTS = 19
ZERO, SIGN, MAGNITUDE, RUN, UNIFORM = 0, 9, 14, 17, 18  # first context of each kind: 9, 5, 3, 1 and 1 of them

LL, HL, LH, HH = range(4)


class BlockPlanes:
    """Code blocks cut into bit planes. blocks [M, 64, 64] int32 (zero outside), inside [M, 64] words, orient [M] in LL..HH."""

    def __init__(self, blocks: Tensor, inside: Tensor, orient: Tensor) -> None:
        magnitude = blocks.abs()
        words = torch.zeros((len(blocks), FRACTION + PLANES + 2, SIZE), dtype=torch.int64, device=blocks.device)
        for p in range(PLANES):
            words[:, FRACTION + p] = pack((magnitude >> p) & 1)
        above = words.clone()  # above[p]: any bit of plane p or higher
        for p in range(FRACTION + PLANES - 1, FRACTION - 1, -1):
            above[:, p] |= above[:, p + 1]
        self.words, self.above, self.negative = words, above, pack(blocks < 0)
        self.inside, self.orient = inside, orient
        used = (above[:, FRACTION : FRACTION + PLANES] != 0).any(2)
        self.depth = used.sum(1)  # [M] bit length of the largest magnitude

    def at(self, index: Tensor, p: Tensor) -> Plane:
        """The planes p [m] of the blocks `index` [m]."""
        return Plane(self, index, p)


class Plane:
    """One bit plane of each of m blocks, and what is known when its coding begins. All words are [m, 64]."""

    def __init__(self, planes: BlockPlanes, index: Tensor, p: Tensor) -> None:
        row = FRACTION + p
        self.p = p
        self.bit = planes.words[index, row]
        self.significant = planes.above[index, row + 1]
        self.refined = planes.above[index, row + 2]  # visited by a refinement pass before
        self.lower = [planes.words[index, row - j] for j in range(1, FRACTION + 1)]
        self.negative, self.inside = planes.negative[index], planes.inside[index]
        self.swap = (planes.orient[index] == HL)[:, None]
        self.diagonal = (planes.orient[index] == HH)[:, None]

    def propagated(self) -> Tensor:
        """Members of the significance pass: insignificant samples with a significant neighbour when the scan arrives."""
        free = ~self.significant & self.inside
        members = torch.zeros_like(free)
        while True:
            grown = Neighbours(self.significant, members & self.bit).any() & free
            if torch.equal(grown, members):
                return members
            members = grown

    def statistics(self) -> tuple[Tensor, Tensor]:
        """-> counts [m, 3, 19, 2] of 1 and 0 symbols, error [m, 3] (units of 1/64): by significance, refinement, cleanup pass."""
        members = self.propagated()
        found = members & self.bit
        cleanup = ~self.significant & ~members & self.inside
        known = self.significant | found
        rows = (self.significance(members, found), self.refinement(known), self.cleanup(known, cleanup))
        counts, error = zip(*rows, strict=True)
        return torch.stack(counts, 1), torch.stack(error, 1)

    def significance(self, members: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        near = Neighbours(self.significant, found)
        counts = self.empty_counts()
        self.count_zero_coding(counts, near, members)
        self.count_signs(counts, self.significant, found)
        return counts, self.error_found(found)

    def refinement(self, known: Tensor) -> tuple[Tensor, Tensor]:
        near = Neighbours(known, torch.zeros_like(known)).any()
        counts = self.empty_counts()
        contexts = (~self.refined & ~near, ~self.refined & near, self.refined)
        for c, context in enumerate(contexts):
            count(counts, MAGNITUDE + c, context & self.significant, self.bit)
        return counts, self.error_refined()

    def cleanup(self, known: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        found = members & self.bit
        near = Neighbours(known, found)
        counts = self.empty_counts()
        # A column of four members that see nothing significant codes "any bit?" and the place of the first one.
        blank = members & ~Neighbours(known, found & LAST_OF_STRIPE.to(found.device)).any()
        blank &= ~shift_left(known | found)
        blank, bits = blank.view(-1, SIZE // 4, 4), found.view(-1, SIZE // 4, 4)
        run = blank[..., 0] & blank[..., 1] & blank[..., 2] & blank[..., 3]  # [m, 16]
        seen = [torch.zeros_like(run)]  # seen[j]: a bit in the rows above row j of the stripe
        for j in range(4):
            seen.append(seen[-1] | bits[..., j])
        count(counts, RUN, run, seen[4])
        counts[:, UNIFORM, 0] = 2 * popcount(run & seen[4])
        skipped = torch.stack([run & ~seen[j] for j in range(4)], 2).view_as(members)
        self.count_zero_coding(counts, near, members & ~skipped)
        self.count_signs(counts, known, found)
        return counts, self.error_found(found)

    def empty_counts(self) -> Tensor:
        return torch.zeros((len(self.p), CONTEXTS, 2), dtype=torch.int64, device=self.p.device)

    def count_zero_coding(self, counts: Tensor, near: Neighbours, members: Tensor) -> None:
        """Contexts 0..8 by the number of significant neighbours beside (h), above and below (v) and diagonally (d)."""
        h1, h2 = near.left ^ near.right, near.left & near.right
        v1, v2 = near.up ^ near.down, near.up & near.down
        h1, v1 = torch.where(self.swap, v1, h1), torch.where(self.swap, h1, v1)
        h2, v2 = torch.where(self.swap, v2, h2), torch.where(self.swap, h2, v2)
        h0, v0 = ~(h1 | h2), ~(v1 | v2)

        top1, top2 = near.up_left ^ near.up_right, near.up_left & near.up_right
        low1, low2 = near.down_left ^ near.down_right, near.down_left & near.down_right
        d_some = top1 | top2 | low1 | low2
        d_many = top2 | low2 | (top1 & low1)  # two or more
        d3 = (top2 & (low1 | low2)) | (low2 & (top1 | top2))  # three or more
        d0, d1, d2 = ~d_some, d_some & ~d_many, d_many & ~d3

        straight = h0 & v0
        primary = (
            straight & d0,
            straight & d1,
            straight & d_many,
            h0 & v1,
            h0 & v2,
            h1 & v0 & d0,
            h1 & v0 & d_some,
            h1 & ~v0,
            h2,
        )
        one = (h1 & v0) | (h0 & v1)
        more = ~straight & ~one
        diagonal = (
            d0 & straight,
            d0 & one,
            d0 & more,
            d1 & straight,
            d1 & one,
            d1 & more,
            d2 & straight,
            d2 & ~straight,
            d3,
        )
        for c in range(9):
            count(counts, ZERO + c, torch.where(self.diagonal, diagonal[c], primary[c]) & members, self.bit)

    def count_signs(self, counts: Tensor, before: Tensor, found: Tensor) -> None:
        """Contexts 9..13 by the signs beside and above; the symbol is whether the sign differs from the predicted one."""
        positive = Neighbours(before & ~self.negative, found & ~self.negative)
        negative = Neighbours(before & self.negative, found & self.negative)
        h_plus, h_minus = positive.left | positive.right, negative.left | negative.right
        v_plus, v_minus = positive.up | positive.down, negative.up | negative.down
        h_plus, h_minus = h_plus & ~h_minus, h_minus & ~h_plus
        v_plus, v_minus = v_plus & ~v_minus, v_minus & ~v_plus
        h, v = h_plus | h_minus, v_plus | v_minus
        same = (h_plus & v_plus) | (h_minus & v_minus)
        symbol = self.negative ^ (h_minus | (~h & v_minus))
        contexts = (~h & ~v, ~h & v, h & v & ~same, h & ~v, same)
        for c, context in enumerate(contexts):
            count(counts, SIGN + c, context & found, symbol)

    def error_found(self, found: Tensor) -> Tensor:
        """Decrease of the squared error, in 1/64 of the plane's squared step: 3t - 9/4 for magnitude t in [1, 2), 1 at the last plane."""
        return self.constant() * popcount(found) + 3 * self.fraction(found)

    def error_refined(self) -> Tensor:
        """The same for refinement; |t - 1| minus what the finer midpoint leaves, never below zero."""
        half, quarter = self.lower[0], self.lower[1]
        up = self.significant & self.bit & (half | quarter)
        down = self.significant & ~self.bit & ~(half & quarter)
        return self.fraction(up) - 16 * popcount(up) + self.constant() * popcount(down) - self.fraction(down)

    def constant(self) -> Tensor:
        return torch.where(self.p > 0, 48, 64)

    def fraction(self, members: Tensor) -> Tensor:
        """Sum over the members of the six bits below the plane, [m]."""
        total = torch.zeros_like(self.p)
        for j, word in enumerate(self.lower):
            total += popcount(word & members) << (FRACTION - 1 - j)
        return total


class Neighbours:
    """The eight neighbours of every sample: significance known when the scan (stripes of 4 rows, column by column) arrives there.

    `before` is significant since earlier passes, `found` becomes so during this one and counts only where the scan has been.
    """

    def __init__(self, before: Tensor, found: Tensor) -> None:
        last = LAST_OF_STRIPE.to(found.device)
        known = before | found
        above, below = row_above(known), row_below(before)
        self.left, self.right = shift_left(known), shift_right(before)
        self.up, self.down = above, below
        self.up_left = shift_left(above)
        self.up_right = shift_right(row_above(before | (found & last)))
        self.down_left = shift_left(below | (row_below(found) & ~last))
        self.down_right = shift_right(below)

    def any(self) -> Tensor:
        beside = self.left | self.right | self.up | self.down
        return beside | self.up_left | self.up_right | self.down_left | self.down_right


LAST_OF_STRIPE = torch.tensor([0, 0, 0, -1] * (SIZE // 4), dtype=torch.int64)  # words of the rows with r % 4 == 3


def pack(bits: Tensor) -> Tensor:
    """[..., 64] of 0 and 1 -> [...] int64 words; column c is bit c (the sign bit for c = 63)."""
    return (bits.to(torch.int64) << torch.arange(SIZE, device=bits.device)).sum(-1)


def unpack(words: Tensor) -> Tensor:
    """[...] int64 words -> [..., 64] bool."""
    return ((words[..., None] >> torch.arange(SIZE, device=words.device)) & 1) != 0


def popcount(words: Tensor) -> Tensor:
    """[m, rows] int64 words -> [m] number of set bits."""
    x = words - ((words >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56).sum(-1)


def count(counts: Tensor, context: int, members: Tensor, symbol: Tensor) -> None:
    """Count the members' symbols into counts [m, 19, 2]: ones, then zeros."""
    counts[:, context, 0] = popcount(members & symbol)
    counts[:, context, 1] = popcount(members & ~symbol)


def shift_left(words: Tensor) -> Tensor:
    """What every sample sees on its left."""
    return words << 1


def shift_right(words: Tensor) -> Tensor:
    """What every sample sees on its right."""
    return (words >> 1) & 0x7FFFFFFFFFFFFFFF


def row_above(words: Tensor) -> Tensor:
    return torch.nn.functional.pad(words[:, :-1], (1, 0))


def row_below(words: Tensor) -> Tensor:
    return torch.nn.functional.pad(words[:, 1:], (0, 1))
