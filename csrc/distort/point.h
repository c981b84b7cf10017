// Brightness, contrast, quantization. All but the last work on single pixels (see pointwise.h).
#pragma once

#include "color.h"

SHAMISA_BEGIN

// parabola through (0, 0), (1/2, 1/2 + v/2), (1, 1), clamped
SHAMISA_HD float parabola(float x, float v) { return clamp01(x + 2.f * v * (x * (1.f - x))); }

// the mean of twice the curve on R, G, B and once the curve on L
SHAMISA_HD Rgb brighten(Rgb x, float value) {
  const Lab lab = lab_of_rgb(x.r, x.g, x.b);
  const Rgb rgb = rgb_of_lab(100.f * parabola(lab.l * 0.01f, value), lab.a, lab.b);
  return {clamp01((2.f * parabola(x.r, value) + rgb.r) * (1.f / 3.f)),
          clamp01((2.f * parabola(x.g, value) + rgb.g) * (1.f / 3.f)),
          clamp01((2.f * parabola(x.b, value) + rgb.b) * (1.f / 3.f))};
}

SHAMISA_HD Rgb darken(Rgb x, float value) { return {parabola(x.r, -value), parabola(x.g, -value), parabola(x.b, -value)}; }

SHAMISA_HD Rgb mean_shift(Rgb x, float value) { return {clamp01(x.r + value), clamp01(x.g + value), clamp01(x.b + value)}; }

// The not-a-knot cubic through (0, 0) (.3, .25 - v/4) (.5, .5) (.7, .75 + v/4) (1, 1) is one odd cubic about .5:
// a t + b t^3 with .5 a + .125 b = .5 and .2 a + .008 b = .25 + v/4, so a = 1 + k/4 and b = -k.
SHAMISA_HD double linear_contrast_k(double value) { return (0.05 + value / 4) / 0.042; }
SHAMISA_HD float odd_cubic(float x, float a, float b) {
  const float t = x - 0.5f;
  return clamp01(t * (a + b * (t * t)) + 0.5f);
}
SHAMISA_HD Rgb linear_contrast(Rgb x, float a, float b) {
  return {odd_cubic(x.r, a, b), odd_cubic(x.g, a, b), odd_cubic(x.b, a, b)};
}

// slope = 2 v, offset = 1/2 - v
SHAMISA_HD Rgb nonlinear_contrast(Rgb x, float slope, float offset) {
  return {clamp01(slope * x.r + offset), clamp01(slope * x.g + offset), clamp01(slope * x.b + offset)};
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

SHAMISA_END
