// Colour spaces: sRGB and CIE L*a*b* (D65), and the saturations (on single pixels, see pointwise.h).
#pragma once

#include "../core/image.h"
#include "../core/team.h"
#include "catalogue.h"

SHAMISA_BEGIN

struct Rgb {
  float r, g, b;
};
struct Lab {
  float l, a, b;  // L in 0..100
};

// What a distortion of single pixels has ready for all of them. a is its parameter, unless a specialisation makes something
// else of it.
struct Constants {
  float a, b;
};
template <int opcode>
SHAMISA_HD Constants constants_of(float value) {
  return {value, 0.f};
}

// the cube root of Lab and its linear part near black; t in [0, 1.1]
SHAMISA_HD float lab_curve(float t) {
  const float root = cube_root(max_of(t, 0.008f));
  return t > 0.008856f ? root : 7.787f * t + 16.f / 116.f;
}
SHAMISA_HD float lab_curve_inverse(float f) { return f > 0.2068966f ? f * f * f : (f - 16.f / 116.f) * (1.f / 7.787f); }

SHAMISA_HD float luma(float r, float g, float b) { return 0.299f * r + 0.587f * g + 0.114f * b; }

SHAMISA_HD Lab lab_of_rgb(float red, float green, float blue) {
  const float r = linear_of_srgb(red), g = linear_of_srgb(green), b = linear_of_srgb(blue);
  const float fx = lab_curve((0.412453f * r + 0.357580f * g + 0.180423f * b) * (1.f / 0.95047f));
  const float fy = lab_curve(0.212671f * r + 0.715160f * g + 0.072169f * b);
  const float fz = lab_curve((0.019334f * r + 0.119193f * g + 0.950227f * b) * (1.f / 1.08883f));
  return {116.f * fy - 16.f, 500.f * (fx - fy), 200.f * (fy - fz)};
}

// clamped to [0, 1]; the blue response is clamped at 0 before it is expanded, see shamisa/reference/color.py
SHAMISA_HD Rgb rgb_of_lab(float l, float a, float b) {
  const float fy = (l + 16.f) * (1.f / 116.f), fx = fy + a * (1.f / 500.f), fz = max_of(fy - b * (1.f / 200.f), 0.f);
  const float x = lab_curve_inverse(fx) * 0.95047f, y = lab_curve_inverse(fy), z = lab_curve_inverse(fz) * 1.08883f;
  // clamping before the encoding equals clamping after it
  return {srgb_of_linear(clamp01(3.24048134f * x - 1.53715152f * y - 0.49853633f * z)),
          srgb_of_linear(clamp01(-0.96925495f * x + 1.87599000f * y + 0.04155593f * z)),
          srgb_of_linear(clamp01(0.05564664f * x - 0.20404134f * y + 1.05731107f * z))};
}

// The 8-bit step after a trip through Lab: trunc(255 y + 1/512) / 255, so that an identity survives rounding errors.
SHAMISA_HD float round_8bit(float y) { return unit_of_byte((int)(y * 255.f + 1.f / 512.f)); }

// x' = m + v (x - m), m the largest channel
SHAMISA_HD Rgb color_saturation_hsv(Rgb x, Constants c) {
  const float value = c.a;
  const float m = max_of(max_of(x.r, x.g), x.b);
  return {clamp01(m + value * (x.r - m)), clamp01(m + value * (x.g - m)), clamp01(m + value * (x.b - m))};
}

// Lab; a, b <- v a, v b; 8-bit
SHAMISA_HD Rgb color_saturation_lab(Rgb x, Constants c) {
  const float value = c.a;
  const Lab lab = lab_of_rgb(x.r, x.g, x.b);
  const Rgb rgb = rgb_of_lab(lab.l, value * lab.a, value * lab.b);
  return {round_8bit(rgb.r), round_8bit(rgb.g), round_8bit(rgb.b)};
}

SHAMISA_END
