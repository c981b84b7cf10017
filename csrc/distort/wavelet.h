// The reversible 5/3 wavelet of ISO/IEC 15444-1, annex F, on the three planes of an image: lifting with floors, symmetric
// extension, low half first. A level works on the upper left h x w of `x` and uses `other` (same layout) in between.
#pragma once

#include "../core/team.h"

SHAMISA_BEGIN

struct WaveletPlanes {
  int16_t *x, *other;  // [3, H, W]: magnitudes stay below 2^12 (8 bits and the gain of two high passes)
  int H, W;
  SHAMISA_HD int height(int level) const { return (H + (1 << level) - 1) >> level; }
  SHAMISA_HD int width(int level) const { return (W + (1 << level) - 1) >> level; }
};

// one level, both sides at least 2: down the columns, then along the rows
template <class Team>
SHAMISA_OP void wavelet_forward(Team& team, const WaveletPlanes& planes, int level) {
  int16_t *const x = planes.x, *const y = planes.other;
  const int W = planes.W, h = planes.height(level), w = planes.width(level), low_h = (h + 1) / 2, low_w = (w + 1) / 2;
  const int64_t size = (int64_t)planes.H * W;
  team.grid(3 * (h / 2), w, [=](int row, int column) {
    const int c = row / (h / 2), i = row - c * (h / 2);
    const int16_t *const even = x + c * size + 2 * i * W, *const odd = even + W, *const next = 2 * i + 2 < h ? odd + W : even;
    y[c * size + (low_h + i) * W + column] = (int16_t)(odd[column] - ((even[column] + next[column]) >> 1));
  });
  team.grid(3 * low_h, w, [=](int row, int column) {
    const int c = row / low_h, i = row - c * low_h;
    const int16_t* const high = y + c * size + low_h * W;
    const int16_t *const before = high + (i > 0 ? i - 1 : 0) * W, *const after = high + (i < h / 2 ? i : i - 1) * W;
    y[c * size + i * W + column] = (int16_t)(x[c * size + 2 * i * W + column] + ((before[column] + after[column] + 2) >> 2));
  });
  const int inner = (w - 1) / 2;  // pairs with a right neighbour
  team.split(3 * h, [=](int row, auto& group) {
    const int64_t at = row / h * size + row % h * W;
    const int16_t* const SHAMISA_RESTRICT in = y + at;
    int16_t* const SHAMISA_RESTRICT low = x + at;
    int16_t* const SHAMISA_RESTRICT high = x + at + low_w;
    group.each(inner, [=](int i) { high[i] = (int16_t)(in[2 * i + 1] - ((in[2 * i] + in[2 * i + 2]) >> 1)); });
    group.serial([=] {
      if (w % 2 == 0) high[inner] = (int16_t)(in[w - 1] - in[w - 2]);
      low[0] = (int16_t)(in[0] + ((2 * high[0] + 2) >> 2));
      if (w % 2) low[low_w - 1] = (int16_t)(in[w - 1] + ((2 * high[inner - 1] + 2) >> 2));
    });
    group.each(w / 2 - 1, [=](int j) { low[j + 1] = (int16_t)(in[2 * j + 2] + ((high[j] + high[j + 1] + 2) >> 2)); });
  });
}

// the inverse: along the rows, then down the columns
template <class Team>
SHAMISA_OP void wavelet_inverse(Team& team, const WaveletPlanes& planes, int level) {
  int16_t *const x = planes.x, *const y = planes.other;
  const int W = planes.W, h = planes.height(level), w = planes.width(level), low_h = (h + 1) / 2, low_w = (w + 1) / 2;
  const int64_t size = (int64_t)planes.H * W;
  const int inner = (w - 1) / 2;
  team.split(3 * h, [=](int row, auto& group) {
    const int64_t at = row / h * size + row % h * W;
    int16_t* const SHAMISA_RESTRICT low = x + at;
    const int16_t* const SHAMISA_RESTRICT high = x + at + low_w;
    int16_t* const SHAMISA_RESTRICT out = y + at;
    group.serial([=] {
      low[0] = (int16_t)(low[0] - ((2 * high[0] + 2) >> 2));
      if (w % 2) low[low_w - 1] = (int16_t)(low[low_w - 1] - ((2 * high[inner - 1] + 2) >> 2));
    });
    group.each(w / 2 - 1, [=](int j) { low[j + 1] = (int16_t)(low[j + 1] - ((high[j] + high[j + 1] + 2) >> 2)); });
    group.each(inner, [=](int i) {
      out[2 * i] = low[i];
      out[2 * i + 1] = (int16_t)(high[i] + ((low[i] + low[i + 1]) >> 1));
    });
    group.serial([=] {
      out[2 * inner] = low[inner];
      if (w % 2 == 0) out[w - 1] = (int16_t)(high[inner] + low[inner]);
    });
  });
  team.grid(3 * low_h, w, [=](int row, int column) {
    const int c = row / low_h, i = row - c * low_h;
    const int16_t* const high = y + c * size + low_h * W;
    const int16_t *const before = high + (i > 0 ? i - 1 : 0) * W, *const after = high + (i < h / 2 ? i : i - 1) * W;
    const int low = y[c * size + i * W + column];
    x[c * size + 2 * i * W + column] = (int16_t)(low - ((before[column] + after[column] + 2) >> 2));
  });
  team.grid(3 * (h / 2), w, [=](int row, int column) {
    const int c = row / (h / 2), i = row - c * (h / 2);
    int16_t *const even = x + c * size + 2 * i * W, *const odd = even + W, *const next = 2 * i + 2 < h ? odd + W : even;
    odd[column] = (int16_t)(y[c * size + (low_h + i) * W + column] + ((even[column] + next[column]) >> 1));
  });
}

SHAMISA_END
