// The reversible 5/3 wavelet of ISO/IEC 15444-1, annex F, on the three planes of an image: lifting with floors, symmetric
// extension, low half first. A level works on the upper left h x w of `x` and uses `other` (same layout) in between.
#pragma once

#include "../core/team.h"

SHAMISA_BEGIN

// what a level of the transform knows; the team keeps it at op_place
struct WaveletPlanes {
  int16_t *x, *other;  // [3, H, W]: magnitudes stay below 2^12 (8 bits and the gain of two high passes)
  int H, W;
  int level;
  SHAMISA_HD int h() const { return (H + (1 << level) - 1) >> level; }
  SHAMISA_HD int w() const { return (W + (1 << level) - 1) >> level; }
  SHAMISA_HD int low_h() const { return (h() + 1) / 2; }
  SHAMISA_HD int low_w() const { return (w() + 1) / 2; }
  SHAMISA_HD int inner() const { return (w() - 1) / 2; }  // pairs with a right neighbour
  SHAMISA_HD int size() const { return H * W; }
  // where row r of the three planes together begins, of `rows` in each
  SHAMISA_HD int at(int r, int rows) const { return r / rows * size() + r % rows * W; }
};

// one level, both sides at least 2: down the columns, then along the rows
template <class Team>
SHAMISA_OP void wavelet_forward(Team& team) {
  const WaveletPlanes& planes = team.template kept<op_place, WaveletPlanes>();
  team.grid(3 * (planes.h() / 2), planes.w(), [=](int row, int column) {
    const int h = planes.h(), W = planes.W, c = row / (h / 2), i = row - c * (h / 2), from = c * planes.size() + 2 * i * W;
    const int16_t *const even = planes.x + from, *const odd = even + W, *const next = 2 * i + 2 < h ? odd + W : even;
    planes.other[c * planes.size() + (planes.low_h() + i) * W + column] =
        (int16_t)(odd[column] - ((even[column] + next[column]) >> 1));
  });
  team.grid(3 * planes.low_h(), planes.w(), [=](int row, int column) {
    const int h = planes.h(), W = planes.W, low_h = planes.low_h(), c = row / low_h, i = row - c * low_h;
    int16_t* const y = planes.other + c * planes.size();
    const int16_t* const high = y + low_h * W;
    const int16_t *const before = high + (i > 0 ? i - 1 : 0) * W, *const after = high + (i < h / 2 ? i : i - 1) * W;
    y[i * W + column] =
        (int16_t)(planes.x[c * planes.size() + 2 * i * W + column] + ((before[column] + after[column] + 2) >> 2));
  });
  team.split(3 * planes.h(), [=](int row, auto& group) {
    const int at = planes.at(row, planes.h());
    const int w = planes.w(), inner = planes.inner(), low_w = planes.low_w();
    const int16_t* const SHAMISA_RESTRICT in = planes.other + at;
    int16_t* const SHAMISA_RESTRICT low = planes.x + at;
    int16_t* const SHAMISA_RESTRICT high = planes.x + at + low_w;
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
SHAMISA_OP void wavelet_inverse(Team& team) {
  const WaveletPlanes& planes = team.template kept<op_place, WaveletPlanes>();
  team.split(3 * planes.h(), [=](int row, auto& group) {
    const int at = planes.at(row, planes.h());
    const int w = planes.w(), inner = planes.inner(), low_w = planes.low_w();
    int16_t* const SHAMISA_RESTRICT low = planes.x + at;
    const int16_t* const SHAMISA_RESTRICT high = planes.x + at + low_w;
    int16_t* const SHAMISA_RESTRICT out = planes.other + at;
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
  team.grid(3 * planes.low_h(), planes.w(), [=](int row, int column) {
    const int h = planes.h(), W = planes.W, low_h = planes.low_h(), c = row / low_h, i = row - c * low_h;
    const int16_t* const y = planes.other + c * planes.size();
    const int16_t* const high = y + low_h * W;
    const int16_t *const before = high + (i > 0 ? i - 1 : 0) * W, *const after = high + (i < h / 2 ? i : i - 1) * W;
    planes.x[c * planes.size() + 2 * i * W + column] =
        (int16_t)(y[i * W + column] - ((before[column] + after[column] + 2) >> 2));
  });
  team.grid(3 * (planes.h() / 2), planes.w(), [=](int row, int column) {
    const int h = planes.h(), W = planes.W, c = row / (h / 2), i = row - c * (h / 2), to = c * planes.size() + 2 * i * W;
    int16_t *const even = planes.x + to, *const odd = even + W, *const next = 2 * i + 2 < h ? odd + W : even;
    odd[column] =
        (int16_t)(planes.other[c * planes.size() + (planes.low_h() + i) * W + column] + ((even[column] + next[column]) >> 1));
  });
}

SHAMISA_END
