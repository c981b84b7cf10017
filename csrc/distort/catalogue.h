// What the kernels must know of the table in shamisa/distortions.py (tests/test_native.py compares the two).
#pragma once

#include "../core/math.h"

SHAMISA_BEGIN

// name, low, high: limits of the parameter; discrete: it is rounded; min_size: smallest height and width. In the order of
// the op codes.
#define SHAMISA_DISTORTIONS(ROW)              \
  ROW(gaussian_blur, 0, 16, 0, 1)             \
  ROW(lens_blur, 0, 16, 0, 1)                 \
  ROW(motion_blur, 1, 32, 0, 1)               \
  ROW(color_diffusion, 0, 16, 0, 1)           \
  ROW(color_shift, 0, 64, 0, 1)               \
  ROW(color_saturation_hsv, -4, 4, 0, 1)      \
  ROW(color_saturation_lab, 0, 16, 0, 1)      \
  ROW(jpeg2000, 1, 1000, 0, 1)                \
  ROW(jpeg, 1, 100, 1, 1)                     \
  ROW(white_noise, 0, 1, 0, 1)                \
  ROW(color_noise, 0, 1, 0, 1)                \
  ROW(impulse_noise, 0, 1, 0, 1)              \
  ROW(multiplicative_noise, 0, 1, 0, 1)       \
  ROW(brighten, 0, 2, 0, 1)                   \
  ROW(darken, 0, 2, 0, 1)                     \
  ROW(mean_shift_down, -1, 1, 0, 1)           \
  ROW(mean_shift_up, -1, 1, 0, 1)             \
  ROW(jitter, 0, 64, 0, 1)                    \
  ROW(non_eccentricity_patch, 0, 1000, 1, 48) \
  ROW(pixelate, 0, 0.9, 0, 1)                 \
  ROW(quantization, 2, 256, 1, 1)             \
  ROW(color_block, 0, 1000, 1, 32)            \
  ROW(high_sharpen, 0, 64, 0, 1)              \
  ROW(linear_contrast_down, -1, 1, 0, 1)      \
  ROW(linear_contrast_up, -1, 1, 0, 1)        \
  ROW(nonlinear_contrast, 0, 1, 0, 1)

enum Opcode : int {
#define SHAMISA_ROW(name, low, high, discrete, min_size) op_##name,
  SHAMISA_DISTORTIONS(SHAMISA_ROW)
#undef SHAMISA_ROW
      opcode_count
};

struct Row {
  float low, high;
  bool discrete;
  int min_size;
};

// a switch and not an array, which device code could not index
SHAMISA_HD Row row_of(int opcode) {
  switch (opcode) {
#define SHAMISA_ROW(name, low, high, discrete, min_size) \
  case op_##name: return {(float)low, (float)high, discrete != 0, min_size};
    SHAMISA_DISTORTIONS(SHAMISA_ROW)
#undef SHAMISA_ROW
  }
  return {0.f, 0.f, false, 0};
}

inline const char* name_of(int opcode) {
  switch (opcode) {
#define SHAMISA_ROW(name, low, high, discrete, min_size) \
  case op_##name: return #name;
    SHAMISA_DISTORTIONS(SHAMISA_ROW)
#undef SHAMISA_ROW
  }
  return nullptr;
}

// the parameter as a kernel uses it: inside the limits (NaN counts as low), rounded half to even where it is discrete
SHAMISA_HD float parameter(const Row& row, float value) {
  value = value > row.low ? value : row.low;
  value = value < row.high ? value : row.high;
  return row.discrete ? round_even(value) : value;
}

SHAMISA_END
