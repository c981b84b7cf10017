// The four noises, on single pixels (see pointwise.h). Element = pixel, draw 0; see the table of addresses in
// shamisa/reference/philox.py.
#pragma once

#include "color.h"

SHAMISA_BEGIN

struct Normals {
  float r, g, b;
};
SHAMISA_HD Normals normals(Words w) {
  Normals n;
  float unused;
  normal_pair(w.x, w.y, n.r, n.g);
  normal_pair(w.z, w.w, n.b, unused);
  return n;
}

template <>
SHAMISA_HD Constants constants_of<op_white_noise>(float value) {
  return {square_root(value), 0.f};  // the deviation
}
template <>
SHAMISA_HD Constants constants_of<op_color_noise>(float value) {
  return {square_root(value), 0.f};
}
template <>
SHAMISA_HD Constants constants_of<op_multiplicative_noise>(float value) {
  return {square_root(value), 0.f};
}

// x + deviation n
SHAMISA_HD Rgb white_noise(Rgb x, Words w, Constants c) {
  const float deviation = c.a;
  const Normals n = normals(w);
  return {clamp01(x.r + deviation * n.r), clamp01(x.g + deviation * n.g), clamp01(x.b + deviation * n.b)};
}

// the same in YCbCr
SHAMISA_HD Rgb color_noise(Rgb x, Words w, Constants c) {
  const float deviation = c.a;
  const Normals n = normals(w);
  float y = luma(x.r, x.g, x.b);
  const float cb = 0.564f * (x.b - y) + deviation * n.g;
  const float cr = 0.713f * (x.r - y) + deviation * n.b;
  y += deviation * n.r;
  return {clamp01(y + 1.403f * cr), clamp01(y - 0.714f * cr - 0.344f * cb), clamp01(y + 1.773f * cb)};
}

// x (1 + deviation n)
SHAMISA_HD Rgb multiplicative_noise(Rgb x, Words w, Constants c) {
  const float deviation = c.a;
  const Normals n = normals(w);
  return {clamp01(x.r * (1.f + deviation * n.r)), clamp01(x.g * (1.f + deviation * n.g)),
          clamp01(x.b * (1.f + deviation * n.b))};
}

// a sample is hit with probability v; a hit is 1 or 0 with equal chance
SHAMISA_HD Rgb impulse_noise(Rgb x, Words w, Constants c) {
  const float value = c.a;
  return {uniform(w.x) < value ? (float)(int)(w.w & 1) : x.r, uniform(w.y) < value ? (float)(int)(w.w >> 1 & 1) : x.g,
          uniform(w.z) < value ? (float)(int)(w.w >> 2 & 1) : x.b};
}

SHAMISA_END
