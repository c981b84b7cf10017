// JPEG at 4:2:0 without its entropy coder: the int32 arithmetic of libjpeg's islow transforms and fancy upsampling, bit for bit
// equal to shamisa/reference/jpeg.py (whose docstring explains the steps) and to libjpeg-turbo.
#pragma once

#include "../core/image.h"
#include "../core/team.h"

SHAMISA_BEGIN

namespace jpeg_detail {

// Sizes of the padded planes: luma in whole 8x8 blocks, chroma in whole 16x16 pixel squares.
struct Planes {
  int H, W;
  SHAMISA_HD int luma_h() const { return (H + 7) / 8 * 8; }
  SHAMISA_HD int luma_w() const { return (W + 7) / 8 * 8; }
  SHAMISA_HD int chroma_h() const { return (H + 15) / 16 * 8; }
  SHAMISA_HD int chroma_w() const { return (W + 15) / 16 * 8; }
  SHAMISA_HD int luma() const { return luma_h() * luma_w(); }
  SHAMISA_HD int chroma() const { return chroma_h() * chroma_w(); }
};

// Annex K of ITU-T T.81: step sizes at quality 50.
SHAMISA_HD int standard_step(bool chroma, int row, int column) {
  static constexpr uint8_t luma_table[64] = {16, 11, 10, 16, 24,  40,  51,  61,  12, 12, 14, 19, 26,  58,  60,  55,  //
                                             14, 13, 16, 24, 40,  57,  69,  56,  14, 17, 22, 29, 51,  87,  80,  62,  //
                                             18, 22, 37, 56, 68,  109, 103, 77,  24, 35, 55, 64, 81,  104, 113, 92,  //
                                             49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99};
  static constexpr uint8_t chroma_table[16] = {17, 18, 24, 47, 18, 21, 26, 66, 24, 26, 56, 99, 47, 66, 99, 99};
  if (chroma) return row < 4 && column < 4 ? chroma_table[4 * row + column] : 99;
  return luma_table[8 * row + column];
}
SHAMISA_HD int step_size(int standard, int quality) {
  const int scale = quality < 50 ? 5000 / quality : 200 - 2 * quality;
  return clamp((standard * scale + 50) / 100, 1, 255);
}

// Rotations of the fast DCT of Loeffler, Ligtenberg and Moschytz (1989), with 13 fractional bits.
enum : int {
  c0_298 = 2446,
  c0_390 = 3196,
  c0_541 = 4433,
  c0_765 = 6270,
  c0_899 = 7373,
  c1_175 = 9633,
  c1_501 = 12299,
  c1_847 = 15137,
  c1_961 = 16069,
  c2_053 = 16819,
  c2_562 = 20995,
  c3_072 = 25172
};

SHAMISA_HD int descale(int value, int bits) { return (value + (1 << (bits - 1))) >> bits; }

// the rotations of the odd half, which are their own transpose: the same for both directions
SHAMISA_HD void odd_part(int& a, int& b, int& c, int& d) {
  const int z1 = -c0_899 * (a + d), z2 = -c2_562 * (b + c), z5 = (a + b + c + d) * c1_175;
  const int z3 = z5 - c1_961 * (a + c), z4 = z5 - c0_390 * (b + d);
  a = a * c0_298 + z1 + z3;
  b = b * c2_053 + z2 + z4;
  c = c * c3_072 + z2 + z3;
  d = d * c1_501 + z1 + z4;
}

// 8 values in place. The first pass keeps 2 fractional bits, the second drops them: the result is 8 times the orthonormal DCT.
template <bool kFirst>
SHAMISA_HD void forward_dct(int (&x)[8]) {
  constexpr int bits = kFirst ? 11 : 15;
  const int s0 = x[0] + x[7], s1 = x[1] + x[6], s2 = x[2] + x[5], s3 = x[3] + x[4];
  int d0 = x[0] - x[7], d1 = x[1] - x[6], d2 = x[2] - x[5], d3 = x[3] - x[4];
  const int e0 = s0 + s3, e1 = s1 + s2, e2 = s1 - s2, e3 = s0 - s3, z = (e2 + e3) * c0_541;
  x[0] = kFirst ? (e0 + e1) * 4 : descale(e0 + e1, 2);
  x[4] = kFirst ? (e0 - e1) * 4 : descale(e0 - e1, 2);
  x[2] = descale(z + e3 * c0_765, bits);
  x[6] = descale(z - e2 * c1_847, bits);
  odd_part(d3, d2, d1, d0);
  x[7] = descale(d3, bits);
  x[5] = descale(d2, bits);
  x[3] = descale(d1, bits);
  x[1] = descale(d0, bits);
}

template <int kBits>
SHAMISA_HD void inverse_dct(int (&y)[8]) {
  const int z = (y[2] + y[6]) * c0_541, t2 = z - y[6] * c1_847, t3 = z + y[2] * c0_765;
  const int t0 = (y[0] + y[4]) * 8192, t1 = (y[0] - y[4]) * 8192;
  const int e0 = t0 + t3, e1 = t1 + t2, e2 = t1 - t2, e3 = t0 - t3;
  int d3 = y[7], d2 = y[5], d1 = y[3], d0 = y[1];
  odd_part(d3, d2, d1, d0);
  y[0] = descale(e0 + d0, kBits);
  y[1] = descale(e1 + d1, kBits);
  y[2] = descale(e2 + d2, kBits);
  y[3] = descale(e3 + d3, kBits);
  y[4] = descale(e3 - d3, kBits);
  y[5] = descale(e2 - d2, kBits);
  y[6] = descale(e1 - d1, kBits);
  y[7] = descale(e0 - d0, kBits);
}

// Column transforms of one column of one block, with the quantiser between them. `column` has stride `stride`, the tables
// (stride too) repeat every 8 columns, so that neighbouring columns are neighbouring lanes.
SHAMISA_HD void recode_column(int* column, const float* step, const float* inverse, int stride) {
  int v[8];
  for (int i = 0; i < 8; ++i) v[i] = column[i * stride];
  forward_dct<false>(v);
  for (int i = 0; i < 8; ++i) {
    // |c| / d rounded half up, exactly: d = 8 step is even, and the quotient's float error is far below 1 / (2 d)
    const float d = 8.f * step[i * stride], size = (float)(v[i] < 0 ? -v[i] : v[i]);
    const int level = (int)((size + 0.5f * d + 0.5f) * inverse[i * stride]) * (int)step[i * stride];
    v[i] = v[i] < 0 ? -level : level;
  }
  inverse_dct<11>(v);
  for (int i = 0; i < 8; ++i) column[i * stride] = v[i];
}
// all columns of all blocks of a plane; a function of its own, because nothing of the codec around it need stay in registers
template <class Team>
SHAMISA_OP void recode_columns(Team& team, int* plane, const float* step, const float* inverse, int height, int width) {
  team.grid(height / 8, width, [=](int y, int x) { recode_column(plane + 8 * y * width + x, step + x, inverse + x, width); });
}

}  // namespace jpeg_detail

SHAMISA_HD int64_t jpeg_scratch(int H, int W) {
  const jpeg_detail::Planes p{H, W};
  const int64_t full = 2 * (int64_t)p.chroma_w() * p.luma_h();
  return taken<int>(p.luma() + 2 * p.chroma()) + 2 * taken<float>(8 * (p.luma_w() + p.chroma_w())) + 2 * taken<int16_t>(full) +
         2 * taken<int16_t>((int64_t)H * p.chroma_w()) + 2 * taken<int16_t>((int64_t)H * 2 * p.chroma_w());
}

// image <- decode(encode(trunc(255 image))) / 255 in place; value: the quality, 1..100.
template <class Team>
SHAMISA_OP void jpeg(Team& team, Image image, Scratch scratch, float value) {
  using namespace jpeg_detail;
  const Planes p{image.H, image.W};
  const int H = p.H, W = p.W, quality = (int)value;
  const int luma_h = p.luma_h(), luma_w = p.luma_w(), chroma_h = p.chroma_h(), chroma_w = p.chroma_w(), full_w = 2 * chroma_w;
  int* const luma = scratch.take<int>(p.luma() + 2 * p.chroma());  // then Cb, then Cr
  int* const chroma = luma + p.luma();
  float* const step = scratch.take<float>(8 * (luma_w + chroma_w));  // [8, luma_w], then [8, chroma_w]
  float* const inverse = scratch.take<float>(8 * (luma_w + chroma_w));
  int16_t* const full_cb = scratch.take<int16_t>((int64_t)full_w * luma_h);
  int16_t* const full_cr = scratch.take<int16_t>((int64_t)full_w * luma_h);

  // 1. step sizes, repeated along a row
  team.each(8 * (luma_w + chroma_w), [=](int i) {
    const bool is_chroma = i >= 8 * luma_w;
    const int j = is_chroma ? i - 8 * luma_w : i, width = is_chroma ? chroma_w : luma_w;
    const int size = step_size(standard_step(is_chroma, j / width, j % width % 8), quality);
    step[i] = (float)size;
    inverse[i] = 1.f / (float)(8 * size);
  });

  // 2. to YCbCr, rows padded; then columns padded
  const float *const red = image.plane(0), *const green = image.plane(1), *const blue = image.plane(2);
  team.grid(luma_h, W, [=](int y, int x) {
    const int at = (y < H ? y : H - 1) * W + x;
    const int r = (int)(255.f * red[at]), g = (int)(255.f * green[at]), b = (int)(255.f * blue[at]);
    luma[y * luma_w + x] = ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) - 128;
    full_cb[y * full_w + x] = (int16_t)((-11059 * r - 21709 * g + 32768 * b + (128 << 16) + 32767) >> 16);
    full_cr[y * full_w + x] = (int16_t)((32768 * r - 27439 * g - 5329 * b + (128 << 16) + 32767) >> 16);
  });
  if (full_w > W)
    team.grid(luma_h, full_w - W, [=](int y, int x) {
      if (W + x < luma_w) luma[y * luma_w + W + x] = luma[y * luma_w + W - 1];
      full_cb[y * full_w + W + x] = full_cb[y * full_w + W - 1];
      full_cr[y * full_w + W + x] = full_cr[y * full_w + W - 1];
    });

  // 3. chroma halved; the bias of the rounding alternates 1, 2 along a row; the last row is repeated after halving
  const int rows = (H + 1) / 2, columns = (W + 1) / 2;
  team.grid(2 * chroma_h, chroma_w, [=](int y, int x) {
    const int16_t* const full = y < chroma_h ? full_cb : full_cr;
    const int row = y < chroma_h ? y : y - chroma_h, upper = 2 * (row < rows ? row : rows - 1);
    const int16_t* const a = full + upper * full_w;
    const int16_t* const b = full + (upper + 1 < H ? upper + 1 : H - 1) * full_w;
    chroma[y * chroma_w + x] = ((a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1] + 1 + (x & 1)) >> 2) - 128;
  });

  // 4. transform, quantise and back: rows, columns, rows; all three planes
  team.each((p.luma() + 2 * p.chroma()) / 8, [=](int i) {
    int v[8];
    for (int j = 0; j < 8; ++j) v[j] = luma[8 * i + j];
    forward_dct<true>(v);
    for (int j = 0; j < 8; ++j) luma[8 * i + j] = v[j];
  });
  recode_columns(team, luma, step, inverse, luma_h, luma_w);
  recode_columns(team, chroma, step + 8 * luma_w, inverse + 8 * luma_w, 2 * chroma_h, chroma_w);
  team.each((p.luma() + 2 * p.chroma()) / 8, [=](int i) {
    int v[8];
    for (int j = 0; j < 8; ++j) v[j] = luma[8 * i + j];
    inverse_dct<18>(v);
    for (int j = 0; j < 8; ++j) luma[8 * i + j] = clamp(v[j] + 128, 0, 255);
  });

  // 5. chroma upsampled by the triangle filter (at most two columns: repeated), down the columns first, and back to RGB
  int16_t* const tall_cb = scratch.take<int16_t>((int64_t)H * chroma_w);
  int16_t* const tall_cr = scratch.take<int16_t>((int64_t)H * chroma_w);
  int16_t* const wide_cb = scratch.take<int16_t>((int64_t)H * full_w);
  int16_t* const wide_cr = scratch.take<int16_t>((int64_t)H * full_w);
  team.grid(H, columns, [=](int y, int x) {
    const int row = y / 2, other = clamp(y % 2 ? row + 1 : row - 1, 0, rows - 1);
    const int *const near = chroma + row * chroma_w + x, *const far = chroma + other * chroma_w + x;
    tall_cb[y * chroma_w + x] = (int16_t)(3 * near[0] + far[0]);
    tall_cr[y * chroma_w + x] = (int16_t)(3 * near[p.chroma()] + far[p.chroma()]);
  });
  if (columns <= 2) {
    team.grid(H, 2 * columns, [=](int y, int x) {
      wide_cb[y * full_w + x] = (int16_t)chroma[y / 2 * chroma_w + x / 2];
      wide_cr[y * full_w + x] = (int16_t)chroma[y / 2 * chroma_w + x / 2 + p.chroma()];
    });
  } else {
    const auto widen = [=](const int16_t* tall, int16_t* wide, int x, int left, int right) {
      wide[2 * x] = (int16_t)((3 * tall[x] + tall[left] + 8) >> 4);
      wide[2 * x + 1] = (int16_t)((3 * tall[x] + tall[right] + 7) >> 4);
    };
    team.grid(H, columns - 2, [=](int y, int x) {
      widen(tall_cb + y * chroma_w, wide_cb + y * full_w, x + 1, x, x + 2);
      widen(tall_cr + y * chroma_w, wide_cr + y * full_w, x + 1, x, x + 2);
    });
    team.each(H, [=](int y) {
      widen(tall_cb + y * chroma_w, wide_cb + y * full_w, 0, 0, 1);
      widen(tall_cr + y * chroma_w, wide_cr + y * full_w, 0, 0, 1);
      widen(tall_cb + y * chroma_w, wide_cb + y * full_w, columns - 1, columns - 2, columns - 1);
      widen(tall_cr + y * chroma_w, wide_cr + y * full_w, columns - 1, columns - 2, columns - 1);
    });
  }
  float *const out_r = image.plane(0), *const out_g = image.plane(1), *const out_b = image.plane(2);
  team.grid(H, W, [=](int y, int x) {
    const int level = luma[y * luma_w + x], cb = wide_cb[y * full_w + x] - 128, cr = wide_cr[y * full_w + x] - 128;
    out_r[y * W + x] = (float)clamp(level + ((91881 * cr + 32768) >> 16), 0, 255) / 255.f;
    out_g[y * W + x] = (float)clamp(level + ((-22554 * cb - 46802 * cr + 32768) >> 16), 0, 255) / 255.f;
    out_b[y * W + x] = (float)clamp(level + ((116130 * cb + 32768) >> 16), 0, 255) / 255.f;
  });
}

SHAMISA_END
