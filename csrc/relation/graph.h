// Edge lists seen from the nodes, and sums over the edges of a node. Host code, no torch, no allocation.
#pragma once

#include "arguments.h"
#include "product.h"

SHAMISA_BEGIN

// The M edges i(e), j(e) with value(e); loops and zeros are left out. Serial, so that every run gives the same order.
template <class T, class I, class J, class Value>
inline void build_incidence(int64_t N, int64_t M, I i, J j, Value value, Incidence<T> to) {
  for (int64_t n = 0; n <= N; ++n) to.offset[n] = 0;
  for (int64_t e = 0; e < M; ++e)
    if (i(e) != j(e) && value(e) != 0) ++to.offset[i(e)], ++to.offset[j(e)];
  int64_t start = 0;
  for (int64_t n = 0; n <= N; ++n) {
    const int64_t count = to.offset[n];
    to.offset[n] = start;
    start += count;
  }
  for (int64_t e = 0; e < M; ++e) {
    if (i(e) == j(e) || value(e) == 0) continue;
    const int64_t ends[2] = {i(e), j(e)};
    for (int s = 0; s < 2; ++s) {
      const int64_t at = to.offset[ends[s]]++;
      to.other[at] = (int32_t)ends[1 - s];
      to.value[at] = value(e);
    }
  }
  for (int64_t n = N; n > 0; --n) to.offset[n] = to.offset[n - 1];  // the fill moved every offset to its end
  to.offset[0] = 0;
}

// out_n = sum over the edges of n of value (x_n - x_other), for the columns [column, column + width) of all N rows
template <class T>
inline void laplacian(const T* x, int64_t N, int64_t D, Incidence<T> edges, int64_t column, int64_t width, T* out) {
  using S = Simd<T>;
  constexpr int W = S::width, parts = laplacian_columns / 2 / W;
  for (int64_t n = 0; n < N; ++n) {
    const T* own = x + n * D + column;
    T* o = out + n * D + column;
    int64_t c = 0;
    for (; c + parts * W <= width; c += parts * W) {
      typename S::V sum[parts], mine[parts];
#pragma GCC unroll 8
      for (int u = 0; u < parts; ++u) sum[u] = S::fill(0), mine[u] = S::load(own + c + u * W);
      for (int64_t e = edges.offset[n]; e < edges.offset[n + 1]; ++e) {
        const T* y = x + edges.other[e] * D + column + c;
        const typename S::V v = S::fill(edges.value[e]);
#pragma GCC unroll 8
        for (int u = 0; u < parts; ++u) sum[u] = multiply_add(v, mine[u] - S::load(y + u * W), sum[u]);
      }
#pragma GCC unroll 8
      for (int u = 0; u < parts; ++u) S::store(o + c + u * W, sum[u]);
    }
    for (; c < width; ++c) {
      T sum = 0;
      for (int64_t e = edges.offset[n]; e < edges.offset[n + 1]; ++e)
        sum = multiply_add(edges.value[e], own[c] - x[edges.other[e] * D + column + c], sum);
      o[c] = sum;
    }
  }
}

SHAMISA_END
