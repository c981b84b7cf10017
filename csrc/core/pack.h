// Pack<N>: N neighbouring floats of a row in registers. N = 32 or 8 on the CPU (compiler vectors), 1 on CUDA and on tails.
//
// A filter keeps its accumulators in a Pack and loops over the taps: a plain `float acc[32]` would live on the stack (three
// times slower), and a loop per pixel with an inner loop over taps does not vectorise at all.
#pragma once

#include "math.h"

SHAMISA_BEGIN

// the compile-time width that Team::tiles hands to its function: `using P = Pack<decltype(lanes)::width>;`
template <int N>
struct Lanes {
  static constexpr int width = N;
};

template <int N>
struct Pack;

template <>
struct Pack<1> {
  float v;
  SHAMISA_HD static Pack load(const float* p) { return {*p}; }  // any alignment
  SHAMISA_HD static Pack fill(float x) { return {x}; }
  SHAMISA_HD void store(float* p) const { *p = v; }
  // element i is p[at(i)]: for borders, where neighbouring lanes may read the same pixel
  template <class At>
  SHAMISA_HD static Pack gather(const float* p, At at) {
    return {p[at(0)]};
  }
  SHAMISA_HD friend Pack operator+(Pack a, Pack b) { return {a.v + b.v}; }
  SHAMISA_HD friend Pack operator-(Pack a, Pack b) { return {a.v - b.v}; }
  SHAMISA_HD friend Pack operator*(Pack a, Pack b) { return {a.v * b.v}; }
  SHAMISA_HD friend Pack operator*(float s, Pack a) { return {s * a.v}; }
  SHAMISA_HD friend Pack lower(Pack a, Pack b) { return {min_of(a.v, b.v)}; }
  SHAMISA_HD friend Pack higher(Pack a, Pack b) { return {max_of(a.v, b.v)}; }
};

#if defined(__GNUC__) && !defined(__CUDACC__)
template <int N>
struct Pack {
  static constexpr int width = SHAMISA_VECTOR, parts = N / width;
  static_assert(N % width == 0, "a Pack is whole vectors");
  typedef float V __attribute__((vector_size(4 * width)));
  typedef float Unaligned __attribute__((vector_size(4 * width), aligned(4), may_alias));
  V v[parts];

  SHAMISA_HD static Pack load(const float* p) {
    Pack r;
    for (int i = 0; i < parts; ++i) r.v[i] = *(const Unaligned*)(p + i * width);
    return r;
  }
  SHAMISA_HD static Pack fill(float x) {
    Pack r;
    for (int i = 0; i < parts; ++i) r.v[i] = x - V{};
    return r;
  }
  SHAMISA_HD void store(float* p) const {
    for (int i = 0; i < parts; ++i) *(Unaligned*)(p + i * width) = v[i];
  }
  template <class At>
  SHAMISA_HD static Pack gather(const float* p, At at) {
    Pack r;
    for (int i = 0; i < parts; ++i)
      for (int j = 0; j < width; ++j) r.v[i][j] = p[at(i * width + j)];
    return r;
  }
  SHAMISA_HD friend Pack operator+(Pack a, Pack b) {
    for (int i = 0; i < parts; ++i) a.v[i] += b.v[i];
    return a;
  }
  SHAMISA_HD friend Pack operator-(Pack a, Pack b) {
    for (int i = 0; i < parts; ++i) a.v[i] -= b.v[i];
    return a;
  }
  SHAMISA_HD friend Pack operator*(Pack a, Pack b) {
    for (int i = 0; i < parts; ++i) a.v[i] *= b.v[i];
    return a;
  }
  SHAMISA_HD friend Pack operator*(float s, Pack a) {
    for (int i = 0; i < parts; ++i) a.v[i] = s * a.v[i];
    return a;
  }
  SHAMISA_HD friend Pack lower(Pack a, Pack b) {
    for (int i = 0; i < parts; ++i) a.v[i] = b.v[i] < a.v[i] ? b.v[i] : a.v[i];
    return a;
  }
  SHAMISA_HD friend Pack higher(Pack a, Pack b) {
    for (int i = 0; i < parts; ++i) a.v[i] = a.v[i] < b.v[i] ? b.v[i] : a.v[i];
    return a;
  }
};
#endif

SHAMISA_END
