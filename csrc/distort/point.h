// Brightness, contrast, quantization. All but the last work on single pixels (see pointwise.h).
#pragma once

#include "color.h"

SHAMISA_BEGIN

// parabola through (0, 0), (1/2, 1/2 + v/2), (1, 1), clamped
SHAMISA_HD float parabola(float x, float v) { return clamp01(x + 2.f * v * (x * (1.f - x))); }

// the mean of twice the curve on R, G, B and once the curve on L
SHAMISA_HD Rgb brighten(Rgb x, Constants c) {
  const float value = c.a;
  const Lab lab = lab_of_rgb(x.r, x.g, x.b);
  const Rgb rgb = rgb_of_lab(100.f * parabola(lab.l * 0.01f, value), lab.a, lab.b);
  return {clamp01((2.f * parabola(x.r, value) + rgb.r) * (1.f / 3.f)),
          clamp01((2.f * parabola(x.g, value) + rgb.g) * (1.f / 3.f)),
          clamp01((2.f * parabola(x.b, value) + rgb.b) * (1.f / 3.f))};
}

SHAMISA_HD Rgb darken(Rgb x, Constants c) { return {parabola(x.r, -c.a), parabola(x.g, -c.a), parabola(x.b, -c.a)}; }

SHAMISA_HD Rgb mean_shift_down(Rgb x, Constants c) { return {clamp01(x.r + c.a), clamp01(x.g + c.a), clamp01(x.b + c.a)}; }
SHAMISA_HD Rgb mean_shift_up(Rgb x, Constants c) { return mean_shift_down(x, c); }

// The not-a-knot cubic through (0, 0) (.3, .25 - v/4) (.5, .5) (.7, .75 + v/4) (1, 1) is one odd cubic about .5:
// a t + b t^3 with .5 a + .125 b = .5 and .2 a + .008 b = .25 + v/4, so a = 1 + k/4 and b = -k.
SHAMISA_HD Constants linear_contrast_constants(double value) {
  const double k = (0.05 + value / 4) / 0.042;
  return {(float)(1 + k / 4), (float)-k};
}
template <>
SHAMISA_HD Constants constants_of<op_linear_contrast_down>(float value) {
  return linear_contrast_constants(value);
}
template <>
SHAMISA_HD Constants constants_of<op_linear_contrast_up>(float value) {
  return linear_contrast_constants(value);
}
SHAMISA_HD float odd_cubic(float x, Constants c) {
  const float t = x - 0.5f;
  return clamp01(t * (c.a + c.b * (t * t)) + 0.5f);
}
SHAMISA_HD Rgb linear_contrast_down(Rgb x, Constants c) { return {odd_cubic(x.r, c), odd_cubic(x.g, c), odd_cubic(x.b, c)}; }
SHAMISA_HD Rgb linear_contrast_up(Rgb x, Constants c) { return linear_contrast_down(x, c); }

template <>
SHAMISA_HD Constants constants_of<op_nonlinear_contrast>(float value) {
  return {2.f * value, 0.5f - value};  // slope and offset
}
SHAMISA_HD Rgb nonlinear_contrast(Rgb x, Constants c) {
  return {clamp01(c.a * x.r + c.b), clamp01(c.a * x.g + c.b), clamp01(c.a * x.b + c.b)};
}

// The bucket of 255 x among the edges int(255 k / v), k = 1..v-1: an edge is below 255 x exactly when it is at most
// m = ceil(255 x) - 1, that is when k < (m + 1) v / 255, so the number of edges passed is a division. Black, m = -1, is below
// all.
SHAMISA_HD float bucket(float x, int v) {
  const float y = x * 255.f;
  const int up = (int)y + (y > (float)(int)y ? 1 : 0);  // ceil(255 x) = m + 1
  const int n = up * v + 254;                           // < 2^17, so the division by a float product below is exact
  return (float)max_of((int)(((float)n + 0.5f) * (1.f / 255.f)) - 1, 0);
}

// bucket index, min-max normalised over the image
template <class Team>
SHAMISA_OP void quantization(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  float* x = stage.image.data;
  const int n = stage.image.samples(), v = (int)stage.value;
  team.each(n, [=](int i) { x[i] = bucket(x[i], v); });
  const float low = team.template min<float>(n, [=](int i) { return x[i]; });
  const float high = team.template max<float>(n, [=](int i) { return x[i]; });
  // an image within one bucket has no range to normalise and becomes bucket / (v - 1)
  const float from = high > low ? low : 0.f, span = high > low ? high - low : (float)(v - 1);
  team.each(n, [=](int i) { x[i] = (x[i] - from) / span; });
}
SHAMISA_HD int64_t quantization_scratch(int, int) { return 0; }

SHAMISA_END
