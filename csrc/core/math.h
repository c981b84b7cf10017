// Elementary functions as polynomials of plain float32 operations: no libm, so that every instruction set and the GPU give
// the same bits and every loop vectorises. Compiled without contraction (-ffp-contract=off, -fmad=false). Coefficients were
// fitted for least maximum error; the errors named are those of the float32 evaluation.
#pragma once

#include "host_device.h"

SHAMISA_BEGIN

template <class T>
SHAMISA_HD T min_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
SHAMISA_HD T max_of(T a, T b) {
  return a < b ? b : a;
}
template <class T>
SHAMISA_HD T clamp(T x, T low, T high) {
  return min_of(max_of(x, low), high);
}
SHAMISA_HD float float_of_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
#endif
}
SHAMISA_HD uint32_t bits_of_float(float f) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(f);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return bits;
#endif
}

// x clamped to [0, high]; NaN becomes 0
SHAMISA_HD float clamp_below(float x, float high) {
#if defined(__CUDA_ARCH__)
  x = x > 0.f ? x : 0.f;
  return x < high ? x : high;
#else
  // positive floats are ordered as their bits: GCC makes six masks and blends of two nested selects of floats
  return x > 0.f ? float_of_bits(min_of(bits_of_float(x), bits_of_float(high))) : 0.f;
#endif
}
SHAMISA_HD float clamp01(float x) { return clamp_below(x, 1.f); }

SHAMISA_HD float square_root(float x) {  // correctly rounded everywhere
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
SHAMISA_HD double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// i / 255 for i in 0..255, the same bits as the division: 1/255 = 1/256 + 1/65280, and the first product is exact
SHAMISA_HD float unit_of_byte(int i) {
  const float x = (float)i;
  return x * (1.f / 256.f) + x * (1.f / 65280.f);
}

// nearest integer, ties to even, |x| < 2^22: the addition leaves no bits for a fraction
SHAMISA_HD float round_even(float x) {
  const float magic = 12582912.f;  // 1.5 * 2^23
  return (x + magic) - magic;
}
// floor for |x| < 2^31, as float and as int
SHAMISA_HD int floor_int(float x) {
  const int i = (int)x;
  return i - (x < (float)i ? 1 : 0);
}

// natural logarithm for normal x > 0; relative error 1e-7, exact zero at 1
SHAMISA_HD float log_of(float x) {
  const uint32_t bits = bits_of_float(x);
  const uint32_t shifted = bits + (0x3f800000u - 0x3f3504f3u);  // mantissa into [sqrt(1/2), sqrt 2)
  const float e = (float)((int)(shifted >> 23) - 127);
  const float f = float_of_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.f;
  float p = -0.07634500414133072f;
  p = p * f + 0.127615824341774f;
  p = p * f - 0.13160182535648346f;
  p = p * f + 0.14201757311820984f;
  p = p * f - 0.16623356938362122f;
  p = p * f + 0.20001226663589478f;
  p = p * f - 0.2500081956386566f;
  p = p * f + 0.3333333134651184f;
  const float f2 = f * f;
  // the sum runs from small to large; ln 2 in two parts, the first exact when multiplied by e
  return ((f2 * f * p + e * -2.12194440e-4f) - 0.5f * f2) + f + e * 0.693359375f;
}

// sin and cos of 2 pi turn, |turn| <= 4, absolute error 1e-7; the reduction to an eighth is exact
SHAMISA_HD void sincos_turn(float turn, float& s, float& c) {
  const float quarters = round_even(turn * 4.f);
  const float r = (turn * 4.f - quarters) * 1.57079632679489662f;
  const float t = r * r;
  float a = -0.00019515282474458218f;
  a = a * t + 0.00833216030150652f;
  a = a * t - 0.16666655242443085f;
  a = a * t * r + r;
  float b = 2.4438451873720624e-05f;
  b = b * t - 0.001388736767694354f;
  b = b * t + 0.04166664555668831f;
  b = b * t * t - 0.5f * t + 1.f;
  const int q = (int)quarters & 3;
  const float sine = (q & 1) ? b : a, cosine = (q & 1) ? a : b;
  s = (q & 2) ? -sine : sine;
  c = ((q + 1) & 2) ? -cosine : cosine;
}

// cube root of x in [0, 2]: a guess by dividing the exponent by three, two Halley steps; relative error 2e-7
SHAMISA_HD float cube_root(float x) {
  const uint32_t bits = bits_of_float(x);
  // bits / 3 by a float product: unlike an integer division this is one instruction per lane
  float y = float_of_bits((uint32_t)((int)((float)(int)bits * (1.f / 3.f)) + 709921077));
  for (int step = 0; step < 2; ++step) {
    const float y3 = y * y * y;
    y = y * (y3 + 2.f * x) / (2.f * y3 + x);
  }
  return x > 0.f ? y : 0.f;
}

// sRGB decoding of x in [0, 1] (linear above 0.04045); absolute error 2e-6, but fitted so that it is 8e-7 once encoded again
SHAMISA_HD float linear_of_srgb(float x) {
  float p = 0.19505135715007782f;
  p = p * x - 0.9632366895675659f;
  p = p * x + 2.0649142265319824f;
  p = p * x - 2.5552265644073486f;
  p = p * x + 2.0850956439971924f;
  p = p * x - 1.2950695753097534f;
  p = p * x + 0.9579923152923584f;
  p = p * x + 0.473641574382782f;
  p = p * x + 0.03599962964653969f;
  p = p * x + 0.0008395392796956003f;
  return x > 0.04045f ? p : x * (1.f / 12.92f);
}
// sRGB encoding of x in [0, 1], absolute error 4e-7: a polynomial in the fourth root
SHAMISA_HD float srgb_of_linear(float x) {
  const float q = square_root(square_root(x));
  float p = 0.09180045872926712f;
  p = p * q - 0.5260371565818787f;
  p = p * q + 1.332192063331604f;
  p = p * q - 1.981210708618164f;
  p = p * q + 1.9654386043548584f;
  p = p * q - 1.4822596311569214f;
  p = p * q + 1.5463361740112305f;
  p = p * q + 0.11145861446857452f;
  p = p * q - 0.057718291878700256f;
  return x > 0.0031308f ? p : x * 12.92f;
}

// ---- float64, for a handful of values per image (never per pixel) ----------------------------------------------------
// e^x for |x| < 700, relative error below 1e-14
SHAMISA_HD double exp_of(double x) {
  const double k = (double)(int64_t)(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double term = 1, sum = 1;
  for (int i = 1; i < 16; ++i) sum += (term *= r / i);
  const uint64_t bits = (uint64_t)((int64_t)k + 1023) << 52;
  double scale;
#if defined(__CUDA_ARCH__)
  scale = __longlong_as_double((long long)bits);
#else
  __builtin_memcpy(&scale, &bits, 8);
#endif
  return sum * scale;
}
// ln x for normal x > 0, by Newton steps on exp_of
SHAMISA_HD double log_of(double x) {
  double y = 0;
  while (x > 2) x *= 0.5, y += 0.69314718055994530942;
  while (x < 0.5) x *= 2, y -= 0.69314718055994530942;
  double z = (x - 1) / (0.5 * (x + 1));
  for (int step = 0; step < 4; ++step) {
    const double e = exp_of(z);
    z += 2 * (x - e) / (x + e);
  }
  return y + z;
}
// x^p for x >= 0
SHAMISA_HD double power(double x, double p) { return x > 0 ? exp_of(p * log_of(x)) : (p == 0 ? 1. : 0.); }

// nearest integer, ties to even, |x| < 2^51
SHAMISA_HD int round_even_int(double x) {
  const double magic = 6755399441055744.;  // 1.5 * 2^52
  return (int)((x + magic) - magic);
}
SHAMISA_HD int ceil_int(double x) {  // |x| < 2^31
  const int i = (int)x;
  return i + (x > (double)i ? 1 : 0);
}
SHAMISA_HD int absolute_int(int i) { return i < 0 ? -i : i; }
// sin and cos of 2 pi turn, |turn| <= 4, by their series on an eighth; error 1e-15
SHAMISA_HD void sincos_turn(double turn, double& s, double& c) {
  const int quarters = round_even_int(turn * 4);
  const double r = (turn * 4 - quarters) * 1.57079632679489661923;
  double sine = 0, cosine = 0, term = 1;
  for (int i = 0; i < 20; i += 2) {
    const double sign = i & 2 ? -1. : 1.;
    cosine += sign * term;
    term *= r / (i + 1);
    sine += sign * term;
    term *= r / (i + 2);
  }
  const int q = quarters & 3;
  s = q == 0 ? sine : q == 1 ? cosine : q == 2 ? -sine : -cosine;
  c = q == 0 ? cosine : q == 1 ? -sine : q == 2 ? -cosine : sine;
}
// arcsine of x in [0, 1] by its series below 1/2; error 1e-15
SHAMISA_HD double arcsine(double x) {
  const double t = x > 0.5 ? square_root((1 - x) * 0.5) : x;
  double term = t, sum = t;
  for (int n = 1; n < 26; ++n) {
    term *= t * t * (2 * n - 1) / (2 * n);
    sum += term / (2 * n + 1);
  }
  return x > 0.5 ? 1.57079632679489661923 - 2 * sum : sum;
}

SHAMISA_END
