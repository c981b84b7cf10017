// Products of rows, X Y^T, in tiles that live in registers; sums and differences of rows. Host code, no torch, no allocation.
#pragma once

#include "../../core/host_device.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

SHAMISA_BEGIN

// a compiler vector of T, `floats` floats long; the default is as wide as the instruction set makes worth while
template <class T, int floats = SHAMISA_VECTOR>
struct Simd {
  static constexpr int width = floats * 4 / (int)sizeof(T);
  typedef T V __attribute__((vector_size(floats * 4)));
  typedef T Unaligned __attribute__((vector_size(floats * 4), aligned(sizeof(T)), may_alias));

  SHAMISA_HD static V load(const T* p) { return *(const Unaligned*)p; }
  SHAMISA_HD static void store(T* p, V v) { *(Unaligned*)p = v; }
  SHAMISA_HD static V fill(T x) { return x - V{}; }
  SHAMISA_HD static T sum(V v) {
    T s = 0;
    for (int i = 0; i < width; ++i) s += v[i];
    return s;
  }
};
// For sums that stay in their lane: their bits do not depend on the width.
template <class T>
using Wide = Simd<T, SHAMISA_WIDE>;

// a b + c, fused where there is an instruction for it (contraction is off in this project)
SHAMISA_HD float multiply_add(float a, float b, float c) { return a * b + c; }
SHAMISA_HD double multiply_add(double a, double b, double c) { return a * b + c; }
#if defined(__FMA__) && SHAMISA_VECTOR == 8
SHAMISA_HD Simd<float>::V multiply_add(Simd<float>::V a, Simd<float>::V b, Simd<float>::V c) {
  return (Simd<float>::V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
SHAMISA_HD Simd<double>::V multiply_add(Simd<double>::V a, Simd<double>::V b, Simd<double>::V c) {
  return (Simd<double>::V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#if SHAMISA_WIDE == 16
SHAMISA_HD Wide<float>::V multiply_add(Wide<float>::V a, Wide<float>::V b, Wide<float>::V c) {
  return (Wide<float>::V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
SHAMISA_HD Wide<double>::V multiply_add(Wide<double>::V a, Wide<double>::V b, Wide<double>::V c) {
  return (Wide<double>::V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#endif
#else
SHAMISA_HD Simd<float>::V multiply_add(Simd<float>::V a, Simd<float>::V b, Simd<float>::V c) { return a * b + c; }
SHAMISA_HD Simd<double>::V multiply_add(Simd<double>::V a, Simd<double>::V b, Simd<double>::V c) { return a * b + c; }
#endif

// whether any lane of a comparison holds
template <class M>
SHAMISA_HD bool any(M mask) {
#if SHAMISA_WIDE == 16
  if (sizeof mask == 64) return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#endif
  uint64_t words[sizeof mask / 8], set = 0;
  __builtin_memcpy(words, &mask, sizeof mask);
  for (uint64_t w : words) set |= w;
  return set != 0;
}

// Rows are packed in panels, [panel][column][row of the panel], the last one padded with zeros. A tile of the product is
// tile_rows rows of one panel times all rows of another: 4 x 3 vectors of sums, 8 x 3 where there are 32 registers.
template <class T>
constexpr int panel_rows = 3 * Wide<T>::width;
template <class T>
constexpr int tile_rows = SHAMISA_WIDE == 16       ? 8
                          : panel_rows<T> % 4 == 0 ? 4
                                                   : 2;
constexpr int depth_step =
    128;  // columns summed before a tile goes back to memory: keeps panels in the first cache, errors small

template <class T>
SHAMISA_HD int64_t panels_of(int64_t rows) {
  return (rows + panel_rows<T> - 1) / panel_rows<T>;
}

// x - center, or x alone without a center
template <class T>
inline void pack_panels(const T* x /* [N, D] */, const T* center /* [D] */, int64_t N, int64_t D, int64_t first, int64_t last,
                        T* packed) {
  constexpr int P = panel_rows<T>;
  for (int64_t panel = first; panel < last; ++panel)
    for (int64_t d0 = 0; d0 < D; d0 += depth_step)  // a stretch at a time, so that its lines stay in the cache
      for (int r = 0; r < P; ++r) {
        const int64_t row = panel * P + r, end = d0 + depth_step < D ? d0 + depth_step : D;
        const T* from = x + row * D;
        T* out = packed + panel * P * D + r;
        if (row >= N)
          for (int64_t d = d0; d < end; ++d) out[d * P] = T(0);
        else if (center)
          for (int64_t d = d0; d < end; ++d) out[d * P] = from[d] - center[d];
        else
          for (int64_t d = d0; d < end; ++d) out[d * P] = from[d];
      }
}

// out[r][0 .. P) = or += x[d][r] y[d][0 .. P) summed over D columns of two panels; out has row stride `stride`
template <class T>
inline void product_tile(const T* x, const T* y, int64_t D, bool add, T* out, int64_t stride) {
  using S = Wide<T>;
  constexpr int P = panel_rows<T>, R = tile_rows<T>, W = S::width;
  typename S::V sum[R][3];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = sum[r][2] = S::fill(0);
#pragma GCC unroll 2
  for (int64_t d = 0; d < D; ++d, x += P, y += P) {
    const typename S::V a = S::load(y), b = S::load(y + W), c = S::load(y + 2 * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename S::V v = S::fill(x[r]);
      sum[r][0] = multiply_add(v, a, sum[r][0]);
      sum[r][1] = multiply_add(v, b, sum[r][1]);
      sum[r][2] = multiply_add(v, c, sum[r][2]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int u = 0; u < 3; ++u) {
      T* o = out + r * stride + u * W;
      S::store(o, add ? S::load(o) + sum[r][u] : sum[r][u]);
    }
}

// out [rows, stride] = packed rows [first_x, first_x + rows) of X times panels [first_panel, last_panel) of Y; first_x and
// rows are multiples of tile_rows. Every element is summed in the same order, wherever it lies in a tile.
template <class T>
inline void product_block(const T* x, int64_t first_x, int rows, const T* y, int64_t first_panel, int64_t last_panel, int64_t D,
                          T* out, int64_t stride) {
  constexpr int P = panel_rows<T>;
  for (int64_t d = 0; d < D; d += depth_step) {
    const int64_t depth = D - d < depth_step ? D - d : depth_step;
    for (int64_t panel = first_panel; panel < last_panel; ++panel)
      for (int r = 0; r < rows; r += tile_rows<T>) {
        const int64_t i = first_x + r;
        product_tile<T>(x + (i / P * D + d) * P + i % P, y + (panel * D + d) * P, depth, d > 0,
                        out + r * stride + (panel - first_panel) * P, stride);
      }
  }
}

// sum of (a_d - b_d)^2: in T, eight sums, each over at most D / 8 columns
template <class T>
inline T squared_distance(const T* a, const T* b, int64_t D) {
  using S = Simd<T>;
  constexpr int W = S::width;
  typename S::V sum[4] = {S::fill(0), S::fill(0), S::fill(0), S::fill(0)};
  int64_t d = 0;
  for (; d + 4 * W <= D; d += 4 * W) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const typename S::V x = S::load(a + d + u * W) - S::load(b + d + u * W);
      sum[u] = multiply_add(x, x, sum[u]);
    }
  }
  T total = S::sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; d < D; ++d) total = multiply_add(a[d] - b[d], a[d] - b[d], total);
  return total;
}

// the same from a to b and to c, with the same bits, a read once
template <class T>
inline void squared_distances(const T* a, const T* b, const T* c, int64_t D, T* out /* [2] */) {
  using S = Wide<T>;
  using Lane = Simd<T>;
  constexpr int W = S::width, L = Lane::width, parts = 4 * L / W;
  typename S::V sum[2][parts];
#pragma GCC unroll 4
  for (int u = 0; u < parts; ++u) sum[0][u] = sum[1][u] = S::fill(0);
  int64_t d = 0;
  for (; d + 4 * L <= D; d += 4 * L) {
#pragma GCC unroll 4
    for (int u = 0; u < parts; ++u) {
      const typename S::V own = S::load(a + d + u * W);
      const typename S::V x = own - S::load(b + d + u * W), y = own - S::load(c + d + u * W);
      sum[0][u] = multiply_add(x, x, sum[0][u]);
      sum[1][u] = multiply_add(y, y, sum[1][u]);
    }
  }
  for (int s = 0; s < 2; ++s) {
    T lanes[4 * L];
    for (int u = 0; u < parts; ++u) S::store(lanes + u * W, sum[s][u]);
    const T* to = s ? c : b;
    out[s] = Lane::sum((Lane::load(lanes) + Lane::load(lanes + L)) + (Lane::load(lanes + 2 * L) + Lane::load(lanes + 3 * L)));
    for (int64_t t = d; t < D; ++t) out[s] = multiply_add(a[t] - to[t], a[t] - to[t], out[s]);
  }
}

// squared_distance in double for float rows: what decides the order of neighbours
SHAMISA_HD double exact_squared_distance(const double* a, const double* b, int64_t D) { return squared_distance(a, b, D); }
inline double exact_squared_distance(const float* a, const float* b, int64_t D) {
  using S = Simd<double>;
  constexpr int W = S::width;
  typedef float Half __attribute__((vector_size(SHAMISA_VECTOR * 2), aligned(4), may_alias));
  typename S::V sum[4] = {S::fill(0), S::fill(0), S::fill(0), S::fill(0)};
  int64_t d = 0;
  for (; d + 4 * W <= D; d += 4 * W) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const S::V x = __builtin_convertvector(*(const Half*)(a + d + u * W), S::V) -
                     __builtin_convertvector(*(const Half*)(b + d + u * W), S::V);
      sum[u] = multiply_add(x, x, sum[u]);
    }
  }
  double total = S::sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; d < D; ++d) {
    const double x = (double)a[d] - (double)b[d];
    total = multiply_add(x, x, total);
  }
  return total;
}

SHAMISA_END
