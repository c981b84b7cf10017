"""JPEG 2000 at a compression ratio without its arithmetic coder: what OpenJPEG's default encoder and decoder do to the pixels.

Reversible 5/3 wavelet, three independent planes (no colour transform), 64x64 code blocks, one quality layer, as in Pillow's
`save(..., quality_mode="rates", quality_layers=[ratio])`. Wavelet, coding passes, distortion estimates, packet headers and the search
for the slope threshold are exact; the one model is the length of a pass in bytes, which comes from the counts of its symbols through
an adaptive beta-binomial code length (`PassRates`) in place of the MQ coder. The result differs from OpenJPEG's by less than 0.05 dB of PSNR
on average, and equals the compiled kernels' **bit for bit**: decisions are integers or float64 in the order spelled here.

Number of resolutions: min(8, 1 + floor(log2(min(H, W)))), the most that OpenJPEG accepts; 8 from 128 pixels on.
Source: ISO/IEC 15444-1 (annexes B, D, F); rate control as OpenJPEG 2.5 does it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .jpeg import check_images
from .jpeg2000_passes import CONTEXTS, HH, HL, LH, LL, RUN, SIZE, UNIFORM, ZERO, BlockPlanes, pack, unpack

RESOLUTIONS = 8
MAX_PASSES = 31  # 3 * PLANES - 2
ZERO_PLANES = (9, 10, 10, 11)  # magnitude planes that the header promises, by band; the missing ones are signalled

# Bytes before the packets of a JP2 file by OpenJPEG 2.5.4 (its comment marker included) at 8 resolutions; 3 fewer for each one less.
HEADER_BYTES, HEADER_BYTES_PER_RESOLUTION = 216, 3
MIN_BUDGET = 30  # bytes left for packets at the least

# L2 norms of the 5/3 synthesis basis vectors as OpenJPEG tabulates them, by band and level (0 the finest; LL: number of decompositions).
NORMS_LL = (1.0, 1.5, 2.75, 5.375, 10.68, 21.34, 42.67, 85.33)
NORMS_HL = (1.038, 1.592, 2.919, 5.703, 11.33, 22.64, 45.25)
NORMS_HH = (0.7186, 0.9218, 1.586, 3.043, 6.019, 12.01, 24.0)

# The model of the adaptive coder: pseudo-counts in quarters, of ones and zeros; their sum is held at MEMORY or below.
PRIOR, PRIOR_RARE, MEMORY = (3, 3), (1, 5), 64
LOG_GAMMA_SIZE = 4 * SIZE * SIZE + MEMORY + 1

STEP, ACCURACY, DBL_EPSILON = 128, 0.5e-5, 2.220446049250313e-16  # of the bisection for the slope threshold


def jpeg2000(images: Tensor, ratio: Tensor) -> Tensor:
    """Encode and decode every image as JPEG 2000 at a compression ratio.

    images [N, 3, H, W] uint8 RGB, ratio [N] integer or floating, >= 1 (raw bytes over file bytes; exactly 1 is lossless)
    -> [N, 3, H, W] uint8. Any H, W >= 1, any device; an image's result does not depend on the others.
    Raises TypeError or ValueError naming the argument.
    """
    check_images(images)
    count, _, height, width = images.shape
    if ratio.shape != (count,):
        raise ValueError(f"ratio must be [N] = [{count}], got {list(ratio.shape)}")
    if count == 0:
        return images.clone()
    ratio = ratio.to(images.device, torch.float64)
    if not bool((ratio >= 1).all()):
        raise ValueError(f"ratio must be >= 1, got {float(ratio.min())}")

    layout = layout_of(height, width)
    coefficients = forward_wavelet(images.to(torch.int32) - 128, layout.levels)
    blocks, planes = cut(coefficients, layout)
    limit = budget(ratio, layout)
    rate, gain, passes = code_passes(planes, layout, limit)
    kept = allocate(rate, gain, passes, planes.depth.view(count, -1), layout, limit)
    blocks = truncate(blocks, planes, kept.flatten())
    decoded = inverse_wavelet(paste(blocks, layout, count), layout.levels)
    decoded = (decoded + 128).clamp_(0, 255).to(torch.uint8)
    return torch.where((ratio == 1)[:, None, None, None], images, decoded)


def budget(ratio: Tensor, layout: Layout) -> Tensor:
    """Bytes allowed for the packets, [N] int64: the file's share less the fixed headers, computed in float32 as OpenJPEG does."""
    header = HEADER_BYTES - HEADER_BYTES_PER_RESOLUTION * (RESOLUTIONS - 1 - layout.levels)
    share = 24.0 * (layout.height * layout.width) / (8.0 * ratio.to(torch.float32).to(torch.float64))
    return (share.to(torch.float32) - header).clamp(min=MIN_BUDGET).ceil().to(torch.int64)


# ---------------------------------------------------------------------------------------------------------------------------------
# Geometry: bands, code blocks, packets and tag trees of one image size


@dataclass(frozen=True)
class Layout:
    """Where the K code blocks of an image lie, and the trees that the packet headers send about them. One per size."""

    height: int
    width: int
    levels: int
    place: Tensor  # [K, 64, 64] index into the flattened coefficients; 3 H W where outside
    inside: Tensor  # [K, 64] words, bit c of row r: the sample exists
    orient: Tensor  # [K] LL..HH
    norm: Tensor  # [K] float64
    shift: Tensor  # [K] floor(log2(norm))
    packet: Tensor  # [T] packet of every tree node; the first K nodes are the blocks
    parent: Tensor  # [T] parent of every tree node; T for a root
    climb: Tensor  # [depth, K] ancestors of every block, itself first; T past the root


@lru_cache(maxsize=8)
def layout_of(height: int, width: int) -> Layout:
    levels = min(RESOLUTIONS - 1, int(math.log2(min(height, width))))
    sizes = [(height, width)]
    for _ in range(levels):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    blocks, grids = [], []  # one row per block; (first block, rows, columns, packet) per band
    for resolution in range(levels + 1):
        for channel in range(3):
            for orient, norm, y0, x0, band_h, band_w in bands_of(resolution, sizes, levels):
                rows, columns = -(-band_h // SIZE), -(-band_w // SIZE)
                grids.append((len(blocks), rows, columns, 3 * resolution + channel))
                for y in range(0, band_h, SIZE):
                    for x in range(0, band_w, SIZE):
                        size = (min(SIZE, band_h - y), min(SIZE, band_w - x))
                        blocks.append((channel, y0 + y, x0 + x, *size, orient, norm))

    channel, y, x, h, w, orient = (torch.tensor(column) for column in list(zip(*blocks, strict=True))[:6])
    norm = torch.tensor([block[6] for block in blocks], dtype=torch.float64)
    step = torch.arange(SIZE)
    rows, columns = y[:, None] + step, x[:, None] + step
    exists = (step < h[:, None])[:, :, None] & (step < w[:, None])[:, None, :]
    place = (channel[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    packet, parent, climb = tag_trees(grids, len(blocks))
    return Layout(
        height, width, levels, torch.where(exists, place, 3 * height * width), pack(exists), orient, norm,
        torch.tensor([math.frexp(block[6])[1] - 1 for block in blocks]), packet, parent, climb,
    )  # fmt: skip


def bands_of(resolution: int, sizes: list, levels: int) -> list[tuple]:
    """(orient, norm, y0, x0, height, width) of the bands of one resolution, 0 the smallest, in the usual nested arrangement."""
    if resolution == 0:
        return [(LL, NORMS_LL[levels], 0, 0, *sizes[levels])]
    level = levels - resolution
    (full_h, full_w), (h, w) = sizes[level], sizes[level + 1]
    return [
        (HL, NORMS_HL[level], 0, w, h, full_w - w),
        (LH, NORMS_HL[level], h, 0, full_h - h, w),
        (HH, NORMS_HH[level], h, w, full_h - h, full_w - w),
    ]


def tag_trees(grids: list[tuple[int, int, int, int]], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every band's blocks are the leaves of a tree that joins 2x2 nodes up to one root -> packet [T], parent [T], climb [depth, K]."""
    packet, parent = [0] * count, [-1] * count
    for first, rows, columns, where in grids:
        packet[first : first + rows * columns] = [where] * (rows * columns)
        while rows * columns > 1:
            up_rows, up_columns, up = (rows + 1) // 2, (columns + 1) // 2, len(packet)
            for i in range(rows * columns):
                parent[first + i] = up + (i // columns // 2) * up_columns + i % columns // 2
            packet += [where] * (up_rows * up_columns)
            parent += [-1] * (up_rows * up_columns)
            first, rows, columns = up, up_rows, up_columns
    parents = torch.tensor([*parent, -1])
    parents[parents < 0] = len(packet)
    climb = [torch.arange(count)]
    while bool((parents[climb[-1]] < len(packet)).any()):
        climb.append(parents[climb[-1]])
    return torch.tensor(packet), parents[:-1], torch.stack(climb)


def cut(coefficients: Tensor, layout: Layout) -> tuple[Tensor, BlockPlanes]:
    """Coefficients [N, 3, H, W] -> blocks [M, 64, 64] int32 and their bit planes, M = N K."""
    count, device = len(coefficients), coefficients.device
    flat = torch.nn.functional.pad(coefficients.flatten(1), (0, 1))
    blocks = flat[:, layout.place.to(device)].flatten(0, 1)
    inside, orient = layout.inside.to(device).repeat(count, 1), layout.orient.to(device).repeat(count)
    return blocks, BlockPlanes(blocks, inside, orient)


def paste(blocks: Tensor, layout: Layout, count: int) -> Tensor:
    """The inverse of `cut`: blocks [M, 64, 64] -> coefficients [N, 3, H, W]."""
    flat = blocks.new_zeros((count, 3 * layout.height * layout.width + 1))
    place = layout.place.to(blocks.device).flatten()
    flat[:, place] = blocks.reshape(count, -1)
    return flat[:, :-1].view(count, 3, layout.height, layout.width)


# ---------------------------------------------------------------------------------------------------------------------------------
# The reversible 5/3 wavelet (lifting, symmetric extension, low band first), in place of the upper left part at every level


def forward_wavelet(x: Tensor, levels: int) -> Tensor:
    x = x.clone()
    h, w = x.shape[-2:]
    for _ in range(levels):
        x[..., :h, :w] = split(split(x[..., :h, :w], -2), -1)
        h, w = (h + 1) // 2, (w + 1) // 2
    return x


def inverse_wavelet(x: Tensor, levels: int) -> Tensor:
    x = x.clone()
    sizes = [tuple(x.shape[-2:])]
    for _ in range(levels - 1):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    for h, w in reversed(sizes[:levels]):
        x[..., :h, :w] = join(join(x[..., :h, :w], -1), -2)
    return x


def split(x: Tensor, dim: int) -> Tensor:
    """One level along `dim`, at least 2 samples: [..., n] -> low ceil(n/2), then high floor(n/2)."""
    x = x.transpose(dim, -1)
    even, odd = x[..., ::2], x[..., 1::2]
    high = odd - ((even[..., : odd.shape[-1]] + after(even, odd.shape[-1])) >> 1)
    low = even + ((before(high, even.shape[-1]) + clip(high, even.shape[-1]) + 2) >> 2)
    return torch.cat((low, high), -1).transpose(dim, -1)


def join(x: Tensor, dim: int) -> Tensor:
    """The inverse of `split`."""
    x = x.transpose(dim, -1)
    low, high = x.split(((x.shape[-1] + 1) // 2, x.shape[-1] // 2), -1)
    even = low - ((before(high, low.shape[-1]) + clip(high, low.shape[-1]) + 2) >> 2)
    odd = high + ((even[..., : high.shape[-1]] + after(even, high.shape[-1])) >> 1)
    out = x.clone()
    out[..., ::2], out[..., 1::2] = even, odd
    return out.transpose(dim, -1)


def before(high: Tensor, count: int) -> Tensor:
    """high[i-1] for i < count, mirrored at the start."""
    return torch.cat((high[..., :1], high), -1)[..., :count]


def clip(high: Tensor, count: int) -> Tensor:
    """high[i] for i < count, mirrored at the end."""
    return high if high.shape[-1] == count else torch.cat((high, high[..., -1:]), -1)


def after(even: Tensor, count: int) -> Tensor:
    """even[i+1] for i < count, mirrored at the end."""
    return even[..., 1:] if even.shape[-1] > count else torch.cat((even[..., 1:], even[..., -1:]), -1)


# ---------------------------------------------------------------------------------------------------------------------------------
# Bytes and distortion of every coding pass


@lru_cache(maxsize=1)
def log_gamma() -> Tensor:
    """round(256 log2 Gamma(i / 4)), int64, for i < LOG_GAMMA_SIZE (entry 0 unused).

    No entry comes nearer than 1e-5 to a rounding boundary (a test says so), and float64 lgamma is off by less than 1e-8, so the table
    is the same whatever the libm.
    """
    return torch.tensor([0] + [round(256 * math.lgamma(i / 4) / math.log(2)) for i in range(1, LOG_GAMMA_SIZE)])


class PassRates:
    """Code length of an adaptive binary coder from the counts alone, per block and context.

    A context that has seen a ones and b zeros (pseudo-counts, in quarters) codes k ones and m zeros in any order in
    log2 of B(a, b) / B(a + k, b + m) bits, B the beta function. Then the counts are added, and shrunk to a sum of MEMORY:
    the coder forgets.
    """

    def __init__(self, blocks: int, device: torch.device) -> None:
        self.state = torch.tensor(PRIOR, device=device).repeat(blocks, CONTEXTS, 1)  # [M, 19, 2]
        self.state[:, [ZERO, RUN]] = torch.tensor(PRIOR_RARE, device=device)
        self.bits = torch.zeros(blocks, dtype=torch.int64, device=device)  # in 1/256
        self.table = log_gamma().to(device)

    def add(self, index: Tensor, counts: Tensor) -> Tensor:
        """Code counts [m, 19, 2] in the blocks `index` -> bytes so far [m] int64, rounded as OpenJPEG's would be on average."""
        table, old = self.table, self.state[index]
        new = old + 4 * counts
        bits = table[old].sum(2) - table[old.sum(2)] - table[new].sum(2) + table[new.sum(2)]
        bits[:, UNIFORM] = 256 * counts[:, UNIFORM].sum(1)
        self.bits[index] += bits.sum(1)
        total = new.sum(2)
        ones = torch.div(MEMORY * new[..., 0] + (total >> 1), total, rounding_mode="floor").clamp(1, MEMORY - 1)
        shrunk = torch.stack((ones, MEMORY - ones), 2)
        self.state[index] = torch.where(total[..., None] > MEMORY, shrunk, new)
        # floor(1.012 bits / 8 + 1.7), in integers
        return torch.div(253 * self.bits[index] + 870400, 512000, rounding_mode="floor").clamp(min=1)


def code_passes(planes: BlockPlanes, layout: Layout, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> rate [N, K, 31] int64 bytes and gain [N, K, 31] float64 (decrease of the squared error), both cumulative; passes [N, K].

    Planes of equal weight in the image (a "level") are coded together, the heaviest first. One level after the one that exceeds the
    budget the image is finished: the passes after that are never worth their bytes.
    """
    images, device = len(limit), limit.device
    blocks = len(planes.depth)
    norm, shift = layout.norm.to(device).repeat(images), layout.shift.to(device).repeat(images)
    image = torch.arange(images, device=device).repeat_interleave(blocks // images)
    rates = PassRates(blocks, device)
    rate = torch.zeros((blocks, MAX_PASSES), dtype=torch.int64, device=device)
    gain = torch.zeros((blocks, MAX_PASSES), dtype=torch.float64, device=device)
    passes, spent = torch.zeros_like(planes.depth), torch.zeros_like(planes.depth)
    gained = torch.zeros(blocks, dtype=torch.float64, device=device)
    over, done = torch.zeros_like(limit, dtype=torch.bool), torch.zeros_like(limit, dtype=torch.bool)

    for level in range(int((planes.depth + shift).max()) - 1, int(shift.min()) - 1, -1):
        p = level - shift
        index = ((p >= 0) & (p < planes.depth) & ~done[image]).nonzero()[:, 0]
        if len(index):
            counts, error = planes.at(index, p[index]).statistics()
            weight = norm[index] * norm[index] / 64 * (1 << 2 * p[index])  # exact but for the square
            first = p[index] == planes.depth[index] - 1  # only the cleanup pass
            for kind in range(3):
                rows = slice(None) if kind == 2 else ~first
                which = index[rows]
                spent[which] = rates.add(which, counts[rows, kind])
                gained[which] += weight[rows] * error[rows, kind]
                rate[which, passes[which]], gain[which, passes[which]] = spent[which], gained[which]
                passes[which] += 1
        done = done | over
        over = over | (spent.view(images, -1).sum(1) > limit)
    shape = (images, blocks // images)
    return rate.view(*shape, MAX_PASSES), gain.view(*shape, MAX_PASSES), passes.view(shape)


# ---------------------------------------------------------------------------------------------------------------------------------
# Rate control


def allocate(rate: Tensor, gain: Tensor, passes: Tensor, depth: Tensor, layout: Layout, limit: Tensor) -> Tensor:
    """Number of passes kept of every block, [N, K]: bisection for the least slope threshold whose packets fit the budget."""
    extra_rate = rate.diff(prepend=torch.zeros_like(rate[..., :1]))
    extra_gain = gain.diff(prepend=torch.zeros_like(gain[..., :1]))
    valid = (torch.arange(MAX_PASSES, device=rate.device) < passes[..., None]) & (extra_rate > 0)
    slope = torch.where(valid, extra_gain / extra_rate.clamp(min=1), 0.0)
    high = slope.amax((1, 2))
    low = torch.where(valid, slope, float("inf")).amin((1, 2)).minimum(high)
    headers = PacketHeaders(layout, depth)
    threshold, best = torch.zeros_like(high), torch.zeros_like(high)
    running = torch.ones_like(high, dtype=torch.bool)
    for _ in range(STEP):
        middle = (low + high) / 2
        running &= (middle - threshold).abs() > ACCURACY * threshold
        if not bool(running.any()):
            break
        threshold = torch.where(running, middle, threshold)
        kept = choose(rate, gain, passes, threshold)
        fits = headers.size(kept, rate) <= limit
        high = torch.where(running & fits, threshold, high)
        best = torch.where(running & fits, threshold, best)
        low = torch.where(running & ~fits, threshold, low)
    return choose(rate, gain, passes, torch.where(best == 0, threshold, best))


def choose(rate: Tensor, gain: Tensor, passes: Tensor, threshold: Tensor) -> Tensor:
    """OpenJPEG's greedy rule: keep up to a pass whenever the slope since the last kept one reaches the threshold. -> [N, K]."""
    kept = torch.zeros_like(passes)
    kept_rate, kept_gain = torch.zeros_like(rate[..., 0]), torch.zeros_like(gain[..., 0])
    for i in range(MAX_PASSES):
        more_rate, more_gain = rate[..., i] - kept_rate, gain[..., i] - kept_gain
        steep = threshold[:, None] - more_gain / more_rate.clamp(min=1) < DBL_EPSILON
        take = torch.where(more_rate == 0, more_gain != 0, steep) & (i < passes)
        kept = torch.where(take, i + 1, kept)
        kept_rate, kept_gain = torch.where(take, rate[..., i], kept_rate), torch.where(take, gain[..., i], kept_gain)
    return kept


class PacketHeaders:
    """Sizes of the packets, header bits exact but for bit stuffing. depth [N, K]: bit planes of every block."""

    def __init__(self, layout: Layout, depth: Tensor) -> None:
        device = depth.device
        self.packet, self.parent, self.climb = (t.to(device) for t in (layout.packet, layout.parent, layout.climb))
        zero_planes = torch.tensor(ZERO_PLANES, device=device)[layout.orient.to(device)] - depth
        nodes = len(self.packet)
        value = torch.full((len(depth), nodes + 1), 99, dtype=torch.int64, device=device)
        for ancestor in self.climb:
            value.scatter_reduce_(1, ancestor.expand_as(zero_planes), zero_planes, "amin")
        value[:, nodes] = 0
        self.zero_plane_bits = value[:, :nodes] - value[:, self.parent] + 1  # [N, T]

    def size(self, kept: Tensor, rate: Tensor) -> Tensor:
        """kept [N, K] passes -> bytes of all packets [N]."""
        nodes = len(self.packet)
        used = torch.zeros((len(kept), nodes + 1), dtype=torch.int64, device=kept.device)
        for ancestor in self.climb:
            used.index_add_(1, ancestor, (kept > 0).long())
        used = used.clamp(max=1)
        used[:, nodes] = 1
        bits = used[:, self.parent] + used[:, :nodes] * self.zero_plane_bits  # inclusion; zero planes

        data = rate.gather(2, (kept - 1).clamp(min=0)[..., None])[..., 0] * (kept > 0)
        pass_code = 1 + (kept > 1) + 2 * (kept > 2) + 5 * (kept > 5) + 7 * (kept > 36)
        base = 3 + floor_log2(kept)
        width = torch.maximum(base, floor_log2(data) + 1)
        bits[:, : kept.shape[1]] += (kept > 0) * (pass_code + width - base + 1 + width)
        packets = torch.ones((len(kept), int(self.packet.max()) + 1), dtype=torch.int64, device=kept.device)
        packets.index_add_(1, self.packet, bits)
        return data.sum(1) + ((packets + 7) >> 3).sum(1)


def floor_log2(value: Tensor) -> Tensor:
    """Of int64 values below 2**53; 0 for 0."""
    return torch.frexp(value.clamp(min=1).to(torch.float64)).exponent.to(torch.int64) - 1


# ---------------------------------------------------------------------------------------------------------------------------------
# Decoding


def truncate(blocks: Tensor, planes: BlockPlanes, kept: Tensor) -> Tensor:
    """What the decoder makes of the first `kept` [M] passes of blocks [M, 64, 64]: the middle of what it knows."""
    last = kept - 1
    kind, p = (last + 2) % 3, (planes.depth - 1 - torch.div(last + 2, 3, rounding_mode="floor")).clamp(min=0)
    plane = planes.at(torch.arange(len(kept), device=kept.device), p)
    fresh = plane.propagated() | torch.where(kind[:, None] == 1, plane.significant, 0) | -(kind[:, None] == 2).long()
    q = (p[:, None, None] + (~unpack(fresh)).long()).to(torch.int32)  # the last plane decoded, per sample
    level = blocks.abs() >> q
    middle = torch.where(q > 0, 1 << (q - 1).clamp(min=0), 0)
    magnitude = torch.where(level > 0, (level << q) + middle, 0) * (kept > 0)[:, None, None]
    return (torch.where(blocks < 0, -magnitude, magnitude)).to(torch.int32)
