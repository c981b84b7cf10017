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

// columns [column, column + width) of the N rows side by side in strip [N, columns], zeros after them: rows a power of two
// apart would share few lines of a cache
template <class T>
inline void copy_strip(const T* x, int64_t N, int64_t D, int64_t column, int64_t width, int64_t columns, T* strip) {
  for (int64_t n = 0; n < N; ++n) {
    const T* from = x + n * D + column;
    T* to = strip + n * columns;
    int64_t c = 0;
    for (; c < width; ++c) to[c] = from[c];
    for (; c < columns; ++c) to[c] = T(0);
  }
}

// out_n = sum over the edges of n of value (x_n - x_other), for `parts` vectors of columns
template <int parts, class T>
inline void laplacian_vectors(const T* x /* [columns], of node 0 */, int64_t columns, const T* own, Incidence<T> edges,
                              int64_t n, T* out) {
  using S = Wide<T>;
  constexpr int W = S::width;
  typename S::V sum[parts], mine[parts];
#pragma GCC unroll 4
  for (int u = 0; u < parts; ++u) sum[u] = S::fill(0), mine[u] = S::load(own + u * W);
  for (int64_t e = edges.offset[n]; e < edges.offset[n + 1]; ++e) {
    const T* y = x + edges.other[e] * columns;
    const typename S::V v = S::fill(edges.value[e]);
#pragma GCC unroll 4
    for (int u = 0; u < parts; ++u) sum[u] = multiply_add(v, mine[u] - S::load(y + u * W), sum[u]);
  }
#pragma GCC unroll 4
  for (int u = 0; u < parts; ++u) S::store(out + u * W, sum[u]);
}

// the same for the columns [column, column + width) of all N rows; strip [N, columns] is scratch, width <= columns, which is a
// strip_columns
template <class T>
inline void laplacian(const T* x, int64_t N, int64_t D, Incidence<T> edges, int64_t column, int64_t width, int64_t columns,
                      T* strip, T* out) {
  constexpr int W = Wide<T>::width;
  copy_strip(x, N, D, column, width, columns, strip);
  T line[most_columns<T>];
  for (int64_t n = 0; n < N; ++n) {
    T* o = out + n * D + column;
    T* to = width == columns ? o : line;
    const T* own = strip + n * columns;
    int64_t c = 0;
    for (; c + 4 * W <= columns; c += 4 * W) laplacian_vectors<4>(strip + c, columns, own + c, edges, n, to + c);
    for (; c + 2 * W <= columns; c += 2 * W) laplacian_vectors<2>(strip + c, columns, own + c, edges, n, to + c);
    for (; c < columns; c += W) laplacian_vectors<1>(strip + c, columns, own + c, edges, n, to + c);
    if (to == line)
      for (c = 0; c < width; ++c) o[c] = line[c];
  }
}

SHAMISA_END
