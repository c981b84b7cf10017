// The state of a chain, the memory around it, and pixels of every dtype.
#pragma once

#include "math.h"

SHAMISA_BEGIN

// One image between two stages: float32 planes R, G, B without gaps, every sample in [0, 1].
struct Image {
  float* data;  // [3, H, W]
  int H, W;
  SHAMISA_HD int pixels() const { return H * W; }
  SHAMISA_HD int samples() const { return 3 * H * W; }
  SHAMISA_HD float* plane(int c) const { return data + (int64_t)c * H * W; }
};

// Global memory that a team owns for one stage, handed out piece by piece (passed by value: each op starts from the whole).
struct Scratch {
  unsigned char* data;
  template <class T>
  SHAMISA_HD T* take(int64_t n) {  // aligned to 64 bytes, uninitialised
    T* p = (T*)data;
    data += (n * (int64_t)sizeof(T) + 63) / 64 * 64;
    return p;
  }
};
// What a distortion works on; the team keeps it.
struct Stage {
  Image image;      // changed in place
  Image other;      // of the same size: whoever writes there exchanges the two
  Scratch scratch;  // op_scratch bytes
  float value;      // the parameter, within its limits
  uint64_t key;     // of the random numbers
};
// what take<T>(n) uses of it
template <class T>
SHAMISA_HD int64_t taken(int64_t n) {
  return (n * (int64_t)sizeof(T) + 63) / 64 * 64;
}

SHAMISA_HD float float_of_half(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // scaling by a power of two also lifts subnormal numbers
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 5.192296858534828e33f));  // 2^112
}
// to nearest, ties to even
SHAMISA_HD uint16_t half_of_float(float f) {
  const uint32_t bits = bits_of_float(f), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // rounds to 65536 or more
  if (rest < 0x38800000u)                                      // subnormal: adding 0.5 aligns the bits and rounds
    return (uint16_t)(sign | (bits_of_float(float_of_bits(rest) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13));
}
SHAMISA_HD float float_of_bfloat(uint16_t h) { return float_of_bits((uint32_t)h << 16); }
SHAMISA_HD uint16_t bfloat_of_float(float f) {
  const uint32_t bits = bits_of_float(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// tags, so that a lambda taking `auto` is compiled once per dtype: read and write one sample
struct U8 {
  typedef uint8_t Storage;
  SHAMISA_HD static float read(uint8_t x) { return unit_of_byte(x); }
  SHAMISA_HD static uint8_t write(float x) { return (uint8_t)(int)(x * 255.f + 0.5f); }  // of 0..1
};
struct F16 {
  typedef uint16_t Storage;
  SHAMISA_HD static float read(uint16_t x) { return float_of_half(x); }
  SHAMISA_HD static uint16_t write(float x) { return half_of_float(x); }
};
struct BF16 {
  typedef uint16_t Storage;
  SHAMISA_HD static float read(uint16_t x) { return float_of_bfloat(x); }
  SHAMISA_HD static uint16_t write(float x) { return bfloat_of_float(x); }
};
struct F32 {
  typedef float Storage;
  SHAMISA_HD static float read(float x) { return x; }
  SHAMISA_HD static float write(float x) { return x; }
};
struct F64 {
  typedef double Storage;
  SHAMISA_HD static float read(double x) { return (float)x; }
  SHAMISA_HD static double write(float x) { return (double)x; }
};
SHAMISA_END
