// Distortions of single samples: brightness, contrast, quantization.
#pragma once

#include "color.h"

SHAMISA_BEGIN

// parabola through (0, 0), (1/2, 1/2 + v/2), (1, 1), clamped
SHAMISA_HD float parabola(float x, float v) { return clamp01(x + 2.f * v * (x * (1.f - x))); }

// the mean of twice the curve on R, G, B and once the curve on L
template <class Team>
SHAMISA_OP void brighten(Team& team, Image image, float value) {
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  team.each(image.pixels(), [=](int i) {
    const Lab lab = lab_of_rgb(r[i], g[i], b[i]);
    const Rgb rgb = rgb_of_lab(100.f * parabola(lab.l * 0.01f, value), lab.a, lab.b);
    r[i] = clamp01((2.f * parabola(r[i], value) + rgb.r) * (1.f / 3.f));
    g[i] = clamp01((2.f * parabola(g[i], value) + rgb.g) * (1.f / 3.f));
    b[i] = clamp01((2.f * parabola(b[i], value) + rgb.b) * (1.f / 3.f));
  });
}

template <class Team>
SHAMISA_OP void darken(Team& team, Image image, float value) {
  float* x = image.data;
  team.each(image.samples(), [=](int i) { x[i] = parabola(x[i], -value); });
}

template <class Team>
SHAMISA_OP void mean_shift(Team& team, Image image, float value) {
  float* x = image.data;
  team.each(image.samples(), [=](int i) { x[i] = clamp01(x[i] + value); });
}

// The not-a-knot cubic through (0, 0) (.3, .25 - v/4) (.5, .5) (.7, .75 + v/4) (1, 1) is one odd cubic about .5:
// a t + b t^3 with .5 a + .125 b = .5 and .2 a + .008 b = .25 + v/4.
template <class Team>
SHAMISA_OP void linear_contrast(Team& team, Image image, float value) {
  float* x = image.data;
  const double k = (0.05 + (double)value / 4) / 0.042;
  const float a = (float)(1 + k / 4), b = (float)-k;
  team.each(image.samples(), [=](int i) {
    const float t = x[i] - 0.5f;
    x[i] = clamp01(t * (a + b * (t * t)) + 0.5f);
  });
}

template <class Team>
SHAMISA_OP void nonlinear_contrast(Team& team, Image image, float value) {
  float* x = image.data;
  const float slope = 2.f * value, offset = 0.5f - value;
  team.each(image.samples(), [=](int i) { x[i] = clamp01(slope * x[i] + offset); });
}

// The bucket of 255 x among the edges int(255 k / v), k = 1..v-1: an edge is at most m = floor(255 x) exactly when
// k < (m + 1) v / 255, so the number of edges passed is a division.
SHAMISA_HD float bucket(float x, int v) {
  const int n = ((int)(x * 255.f) + 1) * v + 254;  // < 2^17, so the division by a float product below is exact
  return (float)min_of((int)(((float)n + 0.5f) * (1.f / 255.f)) - 1, v - 1);
}

// bucket index, min-max normalised over the image
template <class Team>
SHAMISA_OP void quantization(Team& team, Image image, float value) {
  float* x = image.data;
  const int n = image.samples(), v = (int)value;
  team.each(n, [=](int i) { x[i] = bucket(x[i], v); });
  const float low = team.template min<float>(n, [=](int i) { return x[i]; });
  const float high = team.template max<float>(n, [=](int i) { return x[i]; });
  // an image within one bucket has no range to normalise and becomes bucket / (v - 1)
  const float from = high > low ? low : 0.f, span = high > low ? high - low : (float)(v - 1);
  team.each(n, [=](int i) { x[i] = (x[i] - from) / span; });
}

SHAMISA_END
