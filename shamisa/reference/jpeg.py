"""JPEG at 4:2:0 without an entropy coder: what libjpeg-turbo's encoder and decoder together do to the pixels.

Entropy coding is lossless, so the pixels of a JPEG round trip are a fixed integer function of image and quality: colour conversion,
chroma halving, forward DCT, quantisation, and all of it back. Every step below is the int32 arithmetic of libjpeg's `islow` transforms
and "fancy" chroma upsampling (ITU-T T.81 leaves those choices to the implementation), hence the result equals libjpeg-turbo's with its
default options **bit for bit**, at every size and quality.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Quantisation tables of ITU-T T.81, annex K, at quality 50; row-major in frequency.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)

# Rotations of the fast DCT of Loeffler, Ligtenberg and Moschytz (1989), with 13 fractional bits.
C0_298, C0_390, C0_541, C0_765 = 2446, 3196, 4433, 6270
C0_899, C1_175, C1_501, C1_847 = 7373, 9633, 12299, 15137
C1_961, C2_053, C2_562, C3_072 = 16069, 16819, 20995, 25172


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Encode and decode every image as JPEG (4:2:0, islow DCT): libjpeg-turbo's pixels, bit for bit.

    images [N, 3, H, W] uint8 RGB, quality [N] integers 1..100 -> [N, 3, H, W] uint8. Any H, W >= 1, any device.
    Raises TypeError or ValueError naming the argument. Source: ITU-T T.81; behaviour of libjpeg-turbo's defaults.
    """
    check_images(images)
    count, _, height, width = images.shape
    if quality.shape != (count,):
        raise ValueError(f"quality must be [N] = [{count}], got {list(quality.shape)}")
    if quality.is_floating_point():
        raise TypeError(f"quality must be an integer tensor, got {quality.dtype}")
    if count == 0:
        return images.clone()
    if int(quality.min()) < 1 or int(quality.max()) > 100:
        raise ValueError(f"quality must be in 1..100, got {int(quality.min())}..{int(quality.max())}")
    luma_table, chroma_table = quant_tables(quality.to(images.device))

    y, cb, cr = to_ycc(images.to(torch.int32))
    y = recode(edge_pad(y, -height % 8, -width % 8), luma_table)[..., :height, :width]
    cb = upsample(recode(halve(cb), chroma_table), height, width)
    cr = upsample(recode(halve(cr), chroma_table), height, width)
    return to_rgb(y, cb, cr)


def check_images(images: Tensor) -> None:
    """Raise unless `images` is [N, 3, H, W] uint8 with H, W >= 1; shared by both codecs."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] < 1 or images.shape[3] < 1:
        raise ValueError(f"images must be [N, 3, H, W] with H, W >= 1, got {list(images.shape)}")


def quant_tables(quality: Tensor) -> tuple[Tensor, Tensor]:
    """quality [N] -> luma and chroma step sizes, each [N, 8, 8] int32 in 1..255."""
    quality = quality.to(torch.int32)
    low = torch.div(5000, quality, rounding_mode="floor").to(torch.int32)
    scale = torch.where(quality < 50, low, 200 - 2 * quality)[:, None, None]
    tables = []
    for standard in (LUMA_TABLE, CHROMA_TABLE):
        base = torch.tensor(standard, dtype=torch.int32, device=quality.device)
        tables.append(torch.div(base * scale + 50, 100, rounding_mode="floor").clamp(1, 255))
    return tables[0], tables[1]


def to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RGB [N, 3, H, W] int32 -> Y, Cb, Cr, each [N, H, W] in 0..255. The weights have 16 fractional bits."""
    r, g, b = rgb.unbind(1)
    y = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
    cb = (-11059 * r - 21709 * g + 32768 * b + (128 << 16) + 32767) >> 16
    cr = (32768 * r - 27439 * g - 5329 * b + (128 << 16) + 32767) >> 16
    return y, cb, cr


def to_rgb(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """Y, Cb, Cr [N, H, W] int32 -> RGB [N, 3, H, W] uint8."""
    cb, cr = cb - 128, cr - 128
    r = y + ((91881 * cr + 32768) >> 16)
    g = y + ((-22554 * cb - 46802 * cr + 32768) >> 16)
    b = y + ((116130 * cb + 32768) >> 16)
    return torch.stack((r, g, b), 1).clamp(0, 255).to(torch.uint8)


def edge_pad(plane: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column of [N, H, W] outwards."""
    row = torch.arange(plane.shape[1] + rows, device=plane.device).clamp_(max=plane.shape[1] - 1)
    column = torch.arange(plane.shape[2] + columns, device=plane.device).clamp_(max=plane.shape[2] - 1)
    return plane[:, row[:, None], column]


def halve(plane: Tensor) -> Tensor:
    """Chroma [N, H, W] -> means of 2x2, padded to whole 8x8 blocks: [N, 8 ceil(H/16), 8 ceil(W/16)].

    Columns are padded before the means and rows after them, as libjpeg does; the rounding bias alternates 1, 2 along a row.
    """
    _, height, width = plane.shape
    plane = edge_pad(plane, height % 2, -width % 16)
    total = plane[:, ::2, ::2] + plane[:, ::2, 1::2] + plane[:, 1::2, ::2] + plane[:, 1::2, 1::2]
    bias = 1 + torch.arange(total.shape[2], dtype=torch.int32, device=plane.device) % 2
    half = (total + bias) >> 2
    return edge_pad(half, -half.shape[1] % 8, 0)


def upsample(half: Tensor, height: int, width: int) -> Tensor:
    """Decoded chroma (padding included) -> [N, H, W] by the triangle filter; at most two real columns are just repeated."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    half = half[:, :rows, :columns]
    if columns <= 2:
        return half.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    above = torch.cat((half[:, :1], half[:, :-1]), 1)
    below = torch.cat((half[:, 1:], half[:, -1:]), 1)
    tall = 3 * half[:, :, None] + torch.stack((above, below), 2)  # [N, rows, 2, columns]
    tall = tall.flatten(1, 2)
    left = torch.cat((tall[..., :1], tall[..., :-1]), 2)
    right = torch.cat((tall[..., 1:], tall[..., -1:]), 2)
    wide = torch.stack(((3 * tall + left + 8) >> 4, (3 * tall + right + 7) >> 4), 3)
    return wide.flatten(2, 3)[:, :height, :width]


def recode(plane: Tensor, table: Tensor) -> Tensor:
    """Samples [N, 8h, 8w] int32 in 0..255 -> DCT, quantise by `table` [N, 8, 8], dequantise, inverse DCT; same shape and range."""
    count, height, width = plane.shape
    step = table[:, None, :, None, :]  # against blocks [N, h, 8, w, 8]
    blocks = (plane - 128).view(count, height // 8, 8, width // 8, 8)
    blocks = forward_dct(forward_dct(blocks, 4, 11, True), 2, 15, False)  # 8 times the orthonormal DCT
    divisor = 8 * step
    level = torch.div(blocks.abs() + (divisor >> 1), divisor, rounding_mode="floor")
    blocks = torch.where(blocks < 0, -level, level) * step
    blocks = inverse_dct(inverse_dct(blocks, 2, 11), 4, 18)
    return (blocks + 128).clamp_(0, 255).view(count, height, width)


def descale(value: Tensor, bits: int) -> Tensor:
    """Divide by 2**bits, halves rounded up."""
    return (value + (1 << (bits - 1))) >> bits


def forward_dct(x: Tensor, dim: int, bits: int, first: bool) -> Tensor:
    """One pass of the 8-point DCT along `dim`; products lose `bits`. The first pass keeps 2 fractional bits, the second drops them."""
    x0, x1, x2, x3, x4, x5, x6, x7 = x.unbind(dim)
    s0, s1, s2, s3 = x0 + x7, x1 + x6, x2 + x5, x3 + x4
    d0, d1, d2, d3 = x0 - x7, x1 - x6, x2 - x5, x3 - x4
    e0, e1, e2, e3 = s0 + s3, s1 + s2, s1 - s2, s0 - s3

    z = (e2 + e3) * C0_541
    y0 = (e0 + e1) << 2 if first else descale(e0 + e1, 2)
    y4 = (e0 - e1) << 2 if first else descale(e0 - e1, 2)
    y2 = descale(z + e3 * C0_765, bits)
    y6 = descale(z - e2 * C1_847, bits)

    y7, y5, y3, y1 = odd_part(d3, d2, d1, d0)
    y7, y5, y3, y1 = descale(y7, bits), descale(y5, bits), descale(y3, bits), descale(y1, bits)
    return torch.stack((y0, y1, y2, y3, y4, y5, y6, y7), dim)


def inverse_dct(y: Tensor, dim: int, bits: int) -> Tensor:
    """One pass of the inverse 8-point DCT along `dim`, all outputs losing `bits`."""
    y0, y1, y2, y3, y4, y5, y6, y7 = y.unbind(dim)
    z = (y2 + y6) * C0_541
    t2, t3 = z - y6 * C1_847, z + y2 * C0_765
    t0, t1 = (y0 + y4) << 13, (y0 - y4) << 13
    e0, e1, e2, e3 = t0 + t3, t1 + t2, t1 - t2, t0 - t3

    d3, d2, d1, d0 = odd_part(y7, y5, y3, y1)
    sums = (e0 + d0, e1 + d1, e2 + d2, e3 + d3, e3 - d3, e2 - d2, e1 - d1, e0 - d0)
    return torch.stack([descale(value, bits) for value in sums], dim)


def odd_part(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rotations of the odd half, which are their own transpose: the same for both directions."""
    z1, z2, z3, z4 = -C0_899 * (a + d), -C2_562 * (b + c), a + c, b + d
    z5 = (z3 + z4) * C1_175
    z3, z4 = z5 - C1_961 * z3, z5 - C0_390 * z4
    return a * C0_298 + z1 + z3, b * C2_053 + z2 + z4, c * C3_072 + z2 + z3, d * C1_501 + z1 + z4
