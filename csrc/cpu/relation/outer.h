// Products of a narrow matrix with a wide one, in tiles that live in registers. Host code, no torch, no allocation.
//
// Rows or columns are shared out in fixed units, and every sum runs over its own unit in one order, so that results do not
// depend on the number of threads.
#pragma once

#include "product.h"

SHAMISA_BEGIN

constexpr int unit_rows = 64;      // rows summed in T before they are added to a sum in double
constexpr int unit_columns = 128;  // columns worked on together: a multiple of every panel and vector

// out[r][0 .. U vectors) += sum over D steps of a[r] b[0 .. U vectors), for R rows; a may be narrower than T
template <class T, int R, int U, class A>
inline void outer_tile(const A* a, int64_t a_step, int64_t a_row, const T* b, int64_t b_step, int64_t D, T* out,
                       int64_t out_row) {
  using S = Wide<T>;
  typename S::V sum[R][U];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int u = 0; u < U; ++u) sum[r][u] = S::load(out + r * out_row + u * S::width);
#pragma GCC unroll 2
  for (int64_t d = 0; d < D; ++d, a += a_step, b += b_step) {
    typename S::V right[U];
#pragma GCC unroll 3
    for (int u = 0; u < U; ++u) right[u] = S::load(b + u * S::width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename S::V left = S::fill((T)a[r * a_row]);
#pragma GCC unroll 3
      for (int u = 0; u < U; ++u) sum[r][u] = multiply_add(left, right[u], sum[r][u]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int u = 0; u < U; ++u) S::store(out + r * out_row + u * S::width, sum[r][u]);
}

// the same for any number of rows, in tiles as large as the registers hold
template <class T, int U, class A>
inline void outer_rows(int64_t rows, const A* a, int64_t a_step, int64_t a_row, const T* b, int64_t b_step, int64_t D, T* out,
                       int64_t out_row) {
  int64_t r = 0;
  if (SHAMISA_WIDE == 16)
    for (; r + 8 <= rows; r += 8) outer_tile<T, 8, U>(a + r * a_row, a_step, a_row, b, b_step, D, out + r * out_row, out_row);
  for (; r + 4 <= rows; r += 4) outer_tile<T, 4, U>(a + r * a_row, a_step, a_row, b, b_step, D, out + r * out_row, out_row);
  for (int64_t left = rows % 4; left > 0; --left, ++r)
    outer_tile<T, 1, U>(a + r * a_row, a_step, a_row, b, b_step, D, out + r * out_row, out_row);
}

SHAMISA_END
