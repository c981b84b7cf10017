// Philox4x32-10 (Salmon et al. 2011) and the conversions of its words, the same bits as shamisa/reference/philox.py.
//
// A random number has an address: the key says which image and stage, the counter is (element, draw, extra, domain).
#pragma once

#include "math.h"

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

SHAMISA_BEGIN

typedef uint64_t Key;
constexpr uint32_t domain_pixel = 0;  // DOMAIN_PIXEL of the reference: one stage of one image

struct Words {
  uint32_t x, y, z, w;
};

SHAMISA_HD Words philox(Key key, uint32_t element, uint32_t draw = 0, uint32_t extra = 0, uint32_t domain = domain_pixel) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  Words c = {element, draw, extra, domain};
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)c.x * 0xD2511F53u, p1 = (uint64_t)c.z * 0xCD9E8D57u;
    c = {(uint32_t)(p1 >> 32) ^ c.y ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c.w ^ k1, (uint32_t)p0};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

SHAMISA_HD float uniform(uint32_t word) { return (float)(int)(word >> 8) * 5.9604644775390625e-8f; }  // [0, 1)
SHAMISA_HD int index_below(uint32_t word, int n) { return (int)(((uint64_t)word * (uint32_t)n) >> 32); }
// two standard normals (Box-Muller)
SHAMISA_HD void normal_pair(uint32_t word0, uint32_t word1, float& n0, float& n1) {
  const float u = (float)(int)((word0 >> 8) + 1u) * 5.9604644775390625e-8f;  // (0, 1]
  const float radius = square_root(-2.f * log_of(u));
  float s, c;
  sincos_turn(uniform(word1), s, c);
  n0 = radius * c;
  n1 = radius * s;
}

#if defined(__CUDACC__)
// (on a GPU a thread draws for itself)
#elif defined(__SSE2__) && defined(__GNUC__)
// Elements first .. first + 31 at once, words by rows. GCC's 32x32 -> 64 bit products are shuffle-bound (half the speed), so
// here the counters live in 64-bit lanes whose upper halves hold rubbish that the multiplication ignores.
#if defined(__AVX512F__)
typedef __m512i Lanes64;
SHAMISA_HD Lanes64 multiply_low(Lanes64 a, Lanes64 b) { return _mm512_maskz_mul_epu32(0xff, a, b); }
#elif defined(__AVX2__)
typedef __m256i Lanes64;
SHAMISA_HD Lanes64 multiply_low(Lanes64 a, Lanes64 b) { return _mm256_mul_epu32(a, b); }
#else
typedef __m128i Lanes64;
SHAMISA_HD Lanes64 multiply_low(Lanes64 a, Lanes64 b) { return _mm_mul_epu32(a, b); }
#endif
SHAMISA_HD void philox_tile(Key key, uint32_t first, uint32_t draw, uint32_t (*words)[32]) {
  typedef uint64_t U64 __attribute__((vector_size(sizeof(Lanes64))));
  constexpr int width = sizeof(U64) / 8, parts = 32 / width;
  const U64 m0 = U64{} + 0xD2511F53u, m1 = U64{} + 0xCD9E8D57u;
  U64 x[parts], y[parts], z[parts], w[parts];
  for (int p = 0; p < parts; ++p) {
    uint64_t element[width];
    for (int i = 0; i < width; ++i) element[i] = first + (uint32_t)(p * width + i);
    __builtin_memcpy(&x[p], element, sizeof(U64));
    y[p] = U64{} + draw;
    z[p] = U64{};
    w[p] = U64{} + domain_pixel;
  }
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int p = 0; p < parts; ++p) {
      const U64 p0 = (U64)multiply_low((Lanes64)x[p], (Lanes64)m0);
      const U64 p1 = (U64)multiply_low((Lanes64)z[p], (Lanes64)m1);
      x[p] = (p1 >> 32) ^ y[p] ^ k0;
      z[p] = (p0 >> 32) ^ w[p] ^ k1;
      y[p] = p1;
      w[p] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int p = 0; p < parts; ++p)
    for (int i = 0; i < width; ++i) {
      words[0][p * width + i] = (uint32_t)x[p][i];
      words[1][p * width + i] = (uint32_t)y[p][i];
      words[2][p * width + i] = (uint32_t)z[p][i];
      words[3][p * width + i] = (uint32_t)w[p][i];
    }
}
#else
SHAMISA_HD void philox_tile(Key key, uint32_t first, uint32_t draw, uint32_t (*words)[32]) {
  SHAMISA_INDEPENDENT
  for (int i = 0; i < 32; ++i) {
    const Words c = philox(key, first + (uint32_t)i, draw);
    words[0][i] = c.x;
    words[1][i] = c.y;
    words[2][i] = c.z;
    words[3][i] = c.w;
  }
}
#endif

// f(i, Words of element first + i), i < n
template <class F>
SHAMISA_HD void words_from(uint32_t first, int n, uint32_t draw, Key key, F f) {
  int i = 0;
#if !defined(__CUDACC__)
  alignas(64) uint32_t words[4][32];
  for (; i + 32 <= n; i += 32) {
    philox_tile(key, first + (uint32_t)i, draw, words);
    SHAMISA_INDEPENDENT
    for (int j = 0; j < 32; ++j) f(i + j, Words{words[0][j], words[1][j], words[2][j], words[3][j]});
  }
#endif
  for (; i < n; ++i) f(i, philox(key, first + (uint32_t)i, draw));
}

SHAMISA_END
