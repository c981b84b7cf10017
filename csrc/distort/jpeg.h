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
// have stride `period`.
SHAMISA_HD void recode_column(int* column, const float* step, const float* inverse, int stride, int period) {
  int v[8];
  for (int i = 0; i < 8; ++i) v[i] = column[i * stride];
  forward_dct<false>(v);
  for (int i = 0; i < 8; ++i) {
    // |c| / d rounded half up, exactly: d = 8 step is even, and the quotient's float error is far below 1 / (2 d)
    const float d = 8.f * step[i * period], size = (float)(v[i] < 0 ? -v[i] : v[i]);
    const int level = (int)((size + 0.5f * d + 0.5f) * inverse[i * period]) * (int)step[i * period];
    v[i] = v[i] < 0 ? -level : level;
  }
  inverse_dct<11>(v);
  for (int i = 0; i < 8; ++i) column[i * stride] = v[i];
}
// all columns of all blocks of a plane; where neighbouring columns are the lanes of a vector, the tables repeat along a row
template <class Team>
SHAMISA_OP void recode_columns(Team& team, int* plane, const float* step, const float* inverse, int height, int width) {
  team.grid(height / 8, width, [=](int y, int x) {
    const int k = Team::vectors ? x : x % 8;
    const int stride = anew(width);
    recode_column(plane + 8 * y * stride + x, step + k, inverse + k, stride, Team::vectors ? stride : 8);
  });
}

// what the steps share; full_w = 2 chroma_w
struct Memory {
  int* luma;                   // [luma_h, luma_w], then Cb, Cr [chroma_h, chroma_w]
  float *step, *inverse;       // [8, luma_w], then [8, chroma_w]; without vectors [8, 8] each
  int16_t *full_cb, *full_cr;  // [luma_h, full_w]
  int16_t *tall_cb, *tall_cr;  // [H, chroma_w]
  int16_t *wide_cb, *wide_cr;  // [H, full_w]
  Planes planes;
  int quality;
};

}  // namespace jpeg_detail

SHAMISA_HD int64_t jpeg_scratch(int H, int W) {
  const jpeg_detail::Planes p{H, W};
  const int64_t full = 2 * (int64_t)p.chroma_w() * p.luma_h();
  return taken<int>(p.luma() + 2 * p.chroma()) + 2 * taken<float>(8 * (p.luma_w() + p.chroma_w())) + 2 * taken<int16_t>(full) +
         2 * taken<int16_t>((int64_t)H * p.chroma_w()) + 2 * taken<int16_t>((int64_t)H * 2 * p.chroma_w());
}

// image <- decode(encode(trunc(255 image))) / 255 in place; value: the quality, 1..100.
template <class Team>
SHAMISA_STEP void jpeg(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  using namespace jpeg_detail;
  const Image& image = stage.image;
  Memory made;
  {
    const Planes p = made.planes = {image.H, image.W};
    const int64_t rows = p.H, full_w = 2 * p.chroma_w(), tables = Team::vectors ? 8 * (p.luma_w() + p.chroma_w()) : 128;
    Scratch scratch = stage.scratch;
    made.luma = scratch.take<int>(p.luma() + 2 * p.chroma());
    made.step = Team::vectors ? scratch.take<float>(tables) : team.template small<float>((int)tables);
    made.inverse = Team::vectors ? scratch.take<float>(tables) : team.template small<float>((int)tables);
    made.full_cb = scratch.take<int16_t>(full_w * p.luma_h());
    made.full_cr = scratch.take<int16_t>(full_w * p.luma_h());
    made.tall_cb = scratch.take<int16_t>(rows * p.chroma_w());
    made.tall_cr = scratch.take<int16_t>(rows * p.chroma_w());
    made.wide_cb = scratch.take<int16_t>(rows * full_w);
    made.wide_cr = scratch.take<int16_t>(rows * full_w);
    made.quality = (int)stage.value;
  }
  const Memory& m = team.template keep<op_place>(made);
  const Planes& p = m.planes;

  // 1. step sizes
  const int luma_tables = Team::vectors ? 8 * p.luma_w() : 64;
  team.each(Team::vectors ? 8 * (p.luma_w() + p.chroma_w()) : 128, [=](int i) {
    const bool is_chroma = i >= luma_tables;
    const int j = is_chroma ? i - luma_tables : i, period = !Team::vectors ? 8 : is_chroma ? p.chroma_w() : p.luma_w();
    const int size = step_size(standard_step(is_chroma, j / period, j % period % 8), m.quality);
    m.step[i] = (float)size;
    m.inverse[i] = 1.f / (float)(8 * size);
  });

  // 2. to YCbCr, rows padded; then columns padded
  team.grid(p.luma_h(), p.W, [=](int y, int x) {
    const int at = (y < p.H ? y : p.H - 1) * p.W + x, full_at = y * 2 * p.chroma_w() + x;
    const int r = (int)(255.f * image.plane(0)[at]), g = (int)(255.f * image.plane(1)[at]),
              b = (int)(255.f * image.plane(2)[at]);
    m.luma[y * p.luma_w() + x] = ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) - 128;
    m.full_cb[full_at] = (int16_t)((-11059 * r - 21709 * g + 32768 * b + (128 << 16) + 32767) >> 16);
    m.full_cr[full_at] = (int16_t)((32768 * r - 27439 * g - 5329 * b + (128 << 16) + 32767) >> 16);
  });
  if (2 * p.chroma_w() > p.W)
    team.grid(p.luma_h(), 2 * p.chroma_w() - p.W, [=](int y, int x) {
      int* const luma = m.luma + y * p.luma_w() + p.W;
      int16_t *const cb = m.full_cb + y * 2 * p.chroma_w() + p.W, *const cr = m.full_cr + y * 2 * p.chroma_w() + p.W;
      if (p.W + x < p.luma_w()) luma[x] = luma[-1];
      cb[x] = cb[-1];
      cr[x] = cr[-1];
    });

  // 3. chroma halved; the bias of the rounding alternates 1, 2 along a row; the last row is repeated after halving
  team.grid(2 * p.chroma_h(), p.chroma_w(), [=](int y, int x) {
    const int rows = (p.H + 1) / 2, full_w = 2 * p.chroma_w(), chroma_h = p.chroma_h();
    const int16_t* const full = y < chroma_h ? m.full_cb : m.full_cr;
    const int row = y < chroma_h ? y : y - chroma_h, upper = 2 * (row < rows ? row : rows - 1);
    const int16_t* const a = full + upper * full_w;
    const int16_t* const b = full + (upper + 1 < p.H ? upper + 1 : p.H - 1) * full_w;
    m.luma[p.luma() + y * p.chroma_w() + x] = ((a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1] + 1 + (x & 1)) >> 2) - 128;
  });

  // 4. transform, quantise and back: rows, columns, rows; all three planes
  team.each((p.luma() + 2 * p.chroma()) / 8, [=](int i) {
    int* const x = m.luma + 8 * i;
    int v[8];
    for (int j = 0; j < 8; ++j) v[j] = x[j];
    forward_dct<true>(v);
    for (int j = 0; j < 8; ++j) x[j] = v[j];
  });
  recode_columns(team, m.luma, m.step, m.inverse, p.luma_h(), p.luma_w());
  recode_columns(team, m.luma + p.luma(), m.step + luma_tables, m.inverse + luma_tables, 2 * p.chroma_h(), p.chroma_w());
  team.each((p.luma() + 2 * p.chroma()) / 8, [=](int i) {
    int* const x = m.luma + 8 * i;
    int v[8];
    for (int j = 0; j < 8; ++j) v[j] = x[j];
    inverse_dct<18>(v);
    for (int j = 0; j < 8; ++j) x[j] = clamp(v[j] + 128, 0, 255);
  });

  // 5. chroma upsampled by the triangle filter (at most two columns: repeated), down the columns first, and back to RGB
  team.grid(p.H, (p.W + 1) / 2, [=](int y, int x) {
    const int row = y / 2, other = clamp(y % 2 ? row + 1 : row - 1, 0, (p.H + 1) / 2 - 1), chroma_w = p.chroma_w();
    const int* const chroma = m.luma + p.luma() + x;
    const int *const near = chroma + row * chroma_w, *const far = chroma + other * chroma_w;
    m.tall_cb[y * chroma_w + x] = (int16_t)(3 * near[0] + far[0]);
    m.tall_cr[y * chroma_w + x] = (int16_t)(3 * near[p.chroma()] + far[p.chroma()]);
  });
  if (p.W <= 4) {
    team.grid(p.H, (p.W + 1) / 2 * 2, [=](int y, int x) {
      const int* const chroma = m.luma + p.luma() + y / 2 * p.chroma_w() + x / 2;
      m.wide_cb[y * 2 * p.chroma_w() + x] = (int16_t)chroma[0];
      m.wide_cr[y * 2 * p.chroma_w() + x] = (int16_t)chroma[p.chroma()];
    });
  } else {
    const auto widen = [](const int16_t* tall, int16_t* wide, int x, int left, int right) {
      wide[2 * x] = (int16_t)((3 * tall[x] + tall[left] + 8) >> 4);
      wide[2 * x + 1] = (int16_t)((3 * tall[x] + tall[right] + 7) >> 4);
    };
    team.grid(p.H, (p.W + 1) / 2 - 2, [=](int y, int x) {
      const int chroma_w = p.chroma_w();
      widen(m.tall_cb + y * chroma_w, m.wide_cb + y * 2 * chroma_w, x + 1, x, x + 2);
      widen(m.tall_cr + y * chroma_w, m.wide_cr + y * 2 * chroma_w, x + 1, x, x + 2);
    });
    team.each(p.H, [=](int y) {
      const int chroma_w = p.chroma_w(), last = (p.W + 1) / 2 - 1;
      widen(m.tall_cb + y * chroma_w, m.wide_cb + y * 2 * chroma_w, 0, 0, 1);
      widen(m.tall_cr + y * chroma_w, m.wide_cr + y * 2 * chroma_w, 0, 0, 1);
      widen(m.tall_cb + y * chroma_w, m.wide_cb + y * 2 * chroma_w, last, last - 1, last);
      widen(m.tall_cr + y * chroma_w, m.wide_cr + y * 2 * chroma_w, last, last - 1, last);
    });
  }
  team.grid(p.H, p.W, [=](int y, int x) {
    const int at = y * p.W + x, full_at = y * 2 * p.chroma_w() + x;
    const int level = m.luma[y * p.luma_w() + x], cb = m.wide_cb[full_at] - 128, cr = m.wide_cr[full_at] - 128;
    image.plane(0)[at] = unit_of_byte(clamp(level + ((91881 * cr + 32768) >> 16), 0, 255));
    image.plane(1)[at] = unit_of_byte(clamp(level + ((-22554 * cb - 46802 * cr + 32768) >> 16), 0, 255));
    image.plane(2)[at] = unit_of_byte(clamp(level + ((116130 * cb + 32768) >> 16), 0, 255));
  });
}

SHAMISA_END
