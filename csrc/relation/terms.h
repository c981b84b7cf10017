// Variance, covariance, and the logits and codes of transport. Host code, no torch, no allocation.
//
// Rows or columns are shared out in fixed units, and every sum runs over its own unit in one order, so that results do not
// depend on the number of threads.
#pragma once

#include "product.h"

SHAMISA_BEGIN

constexpr int unit_rows = 64;      // rows summed in T before they are added to a sum in double
constexpr int unit_columns = 128;  // columns worked on together: a multiple of every panel and vector
constexpr int product_depth = 96;  // columns of two panels that fit in the first cache
constexpr int product_rows = 96;   // rows of a left factor that fit in the second

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

// ---- moments of columns ----------------------------------------------------------------------------------------------
constexpr int sample_rows = 32;  // rows whose mean is the middle

// sum and squared += x - middle and its square over the rows r0, r0 + step, .. below r1, for `parts` vectors of columns
template <int parts, class T>
inline void add_moments(const T* x, int64_t E, int64_t r0, int64_t r1, int64_t step, const T* middle, T* sum, T* squared) {
  using S = Wide<T>;
  constexpr int W = S::width;
  typename S::V center[parts], one[parts], two[parts];
#pragma GCC unroll 4
  for (int u = 0; u < parts; ++u)
    center[u] = S::load(middle + u * W), one[u] = S::load(sum + u * W), two[u] = S::load(squared + u * W);
  for (int64_t r = r0; r < r1; r += step) {
#pragma GCC unroll 4
    for (int u = 0; u < parts; ++u) {
      const typename S::V d = S::load(x + r * E + u * W) - center[u];
      one[u] += d;
      two[u] += d * d;
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < parts; ++u) S::store(sum + u * W, one[u]), S::store(squared + u * W, two[u]);
}
template <class T>
inline void add_moments(const T* x, int64_t E, int width, int64_t r0, int64_t r1, int64_t step, const T* middle, T* sum,
                        T* squared) {
  constexpr int W = Wide<T>::width;
  int c = 0;
  for (; c + 4 * W <= width; c += 4 * W) add_moments<4>(x + c, E, r0, r1, step, middle + c, sum + c, squared + c);
  for (; c + W <= width; c += W) add_moments<1>(x + c, E, r0, r1, step, middle + c, sum + c, squared + c);
  for (; c < width; ++c)
    for (int64_t r = r0; r < r1; r += step) {
      const T d = x[r * E + c] - middle[c];
      sum[c] += d;
      squared[c] += d * d;
    }
}

// x [n, E], columns of the units [first, last) -> mean [E], and square [E], the sum of squared differences from it.
//
// The differences are taken from the mean of a few rows, the middle, and corrected by what that was off. It is off by at most
// sqrt(n / sample_rows) standard deviations (of rows spread over all, as a rule by few per cent of one), so that the correction
// takes at most a share n / (n + sample_rows) away.
template <class T>
inline void column_moments(const T* x, int64_t n, int64_t E, int64_t first, int64_t last, T* mean, double* square) {
  const int64_t step = (n + sample_rows - 1) / sample_rows, sampled = (n + step - 1) / step;
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t c0 = unit * unit_columns;
    const int width = (int)(E - c0 < unit_columns ? E - c0 : unit_columns);
    double total[unit_columns], total_square[unit_columns];
    T sum[unit_columns], squared[unit_columns], middle[unit_columns];
    for (int c = 0; c < unit_columns; ++c) total[c] = total_square[c] = 0, middle[c] = sum[c] = squared[c] = 0;
    add_moments<T>(x + c0, E, width, 0, n, step, middle, sum, squared);
    for (int c = 0; c < width; ++c) middle[c] = (T)((double)sum[c] / (double)sampled);
    for (int64_t r0 = 0; r0 < n; r0 += unit_rows) {
      for (int c = 0; c < unit_columns; ++c) sum[c] = squared[c] = 0;
      add_moments<T>(x + c0, E, width, r0, r0 + unit_rows < n ? r0 + unit_rows : n, 1, middle, sum, squared);
      for (int c = 0; c < width; ++c) total[c] += (double)sum[c], total_square[c] += (double)squared[c];
    }
    for (int c = 0; c < width; ++c) {
      mean[c0 + c] = (T)((double)middle[c] + total[c] / (double)n);
      square[c0 + c] = total_square[c] - total[c] * total[c] / (double)n;
    }
  }
}

// rows [first, last): out = scale (x - mean); without scale, x - mean
template <class T>
inline void subtract_mean(const T* x, int64_t E, const T* mean, const T* scale, int64_t first, int64_t last, T* out) {
  for (int64_t r = first; r < last; ++r) {
    const T* row = x + r * E;
    T* to = out + r * E;
    if (scale)
      for (int64_t c = 0; c < E; ++c) to[c] = scale[c] * (row[c] - mean[c]);
    else
      for (int64_t c = 0; c < E; ++c) to[c] = row[c] - mean[c];
  }
}

// ---- products --------------------------------------------------------------------------------------------------------
// Columns of x [D, m], less center [m] if there is one, in panels, as pack_panels packs rows: [panel][D][panel_rows], padded
// with zeros.
template <class T>
inline void pack_columns(const T* x, const T* center, int64_t D, int64_t m, int64_t first, int64_t last, T* packed) {
  constexpr int P = panel_rows<T>;
  for (int64_t panel = first; panel < last; ++panel) {
    const int width = (int)(m - panel * P < P ? m - panel * P : P);
    T middle[P];
    for (int c = 0; c < P; ++c) middle[c] = center && c < width ? center[panel * P + c] : T(0);
    T* out = packed + panel * P * D;
    for (int64_t d = 0; d < D; ++d, out += P) {
      const T* row = x + d * m + panel * P;
      if (width == P)
        for (int c = 0; c < P; ++c) out[c] = row[c] - middle[c];
      else
        for (int c = 0; c < P; ++c) out[c] = c < width ? row[c] - middle[c] : T(0);
    }
  }
}

// Panels i <= j of the m packed rows: moment [m, m] = scale times their products, both ways. Returns the sum of their squares,
// without the diagonal of the matrix if so asked.
template <class T>
inline double gram_panels(const T* packed, int64_t m, int64_t D, int64_t i, int64_t j, T scale, bool diagonal, T* moment) {
  constexpr int P = panel_rows<T>;
  T block[P * P];
  for (int e = 0; e < P * P; ++e) block[e] = 0;
  for (int64_t d = 0; d < D; d += product_depth) {
    const int64_t depth = D - d < product_depth ? D - d : product_depth;
    outer_rows<T, 3>(P, packed + (i * D + d) * P, P, 1, packed + (j * D + d) * P, P, depth, block, P);
  }
  const int rows = (int)(m - i * P < P ? m - i * P : P), columns = (int)(m - j * P < P ? m - j * P : P);
  double sum = 0;
  for (int r = 0; r < rows; ++r) {
    T* line = block + r * P;
    T squares = 0;
    for (int c = 0; c < columns; ++c) {
      line[c] *= scale;
      squares += (i == j && c == r && !diagonal) ? T(0) : line[c] * line[c];
    }
    sum += (double)squares;
    T* out = moment + (i * P + r) * m + j * P;
    for (int c = 0; c < columns; ++c) out[c] = line[c];
  }
  if (i == j) return sum;
  for (int c = 0; c < columns; ++c) {
    T* out = moment + (j * P + c) * m + i * P;
    for (int r = 0; r < rows; ++r) out[r] = block[r * P + c];
  }
  return 2 * sum;
}

// Rows [first, last) of out [n, E] = scale (A B - y diagonal), where A is [n, D], B [D, E] is packed by columns, y [n, E].
// block [product_rows, panel_rows] is scratch.
template <class T>
inline void covariance_rows(const T* a, const T* packed, const T* y, const T* diagonal, T scale, int64_t E, int64_t D,
                            int64_t first, int64_t last, T* block, T* out) {
  constexpr int P = panel_rows<T>;
  for (int64_t i = first; i < last; i += product_rows) {
    const int64_t rows = last - i < product_rows ? last - i : product_rows;
    for (int64_t panel = 0; panel < panels_of<T>(E); ++panel) {
      for (int64_t e = 0; e < rows * P; ++e) block[e] = 0;
      for (int64_t d = 0; d < D; d += product_depth) {
        const int64_t depth = D - d < product_depth ? D - d : product_depth;
        outer_rows<T, 3>(rows, a + i * D + d, 1, D, packed + (panel * D + d) * P, P, depth, block, P);
      }
      const int64_t c0 = panel * P, columns = E - c0 < P ? E - c0 : P;
      for (int64_t r = 0; r < rows; ++r) {
        const T *line = block + r * P, *own = y + (i + r) * E + c0;
        T* to = out + (i + r) * E + c0;
        for (int64_t c = 0; c < columns; ++c) to[c] = scale * (line[c] - own[c] * diagonal[c0 + c]);
      }
    }
  }
}

// ---- transport logits ------------------------------------------------------------------------------------------------
constexpr double least_norm = 1e-12;  // of a row, against division by zero
constexpr int logits_depth = 128;     // columns of a row and of all anchors that fit in the first cache
constexpr int logits_rows = 32;       // rows worked on together in the backward

// K as it is packed, and as the backward takes it: whole pairs of vectors, which are whole fours too
template <class T>
SHAMISA_HD int64_t padded(int64_t K) {
  constexpr int pair = 2 * Wide<T>::width;
  return (K + pair - 1) / pair * pair;
}

template <class T, class A>
inline T row_norm(const A* x, int64_t F) {
  using S = Simd<T>;
  constexpr int W = S::width;
  typedef A Part __attribute__((vector_size(W * sizeof(A)), aligned(sizeof(A)), may_alias));
  typename S::V sum[4] = {S::fill(0), S::fill(0), S::fill(0), S::fill(0)};
  int64_t f = 0;
  for (; f + 4 * W <= F; f += 4 * W)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const typename S::V v = __builtin_convertvector(*(const Part*)(x + f + u * W), typename S::V);
      sum[u] = multiply_add(v, v, sum[u]);
    }
  T total = S::sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; f < F; ++f) total += (T)x[f] * (T)x[f];
  const T norm = __builtin_sqrt(total);
  return norm < (T)least_norm ? (T)least_norm : norm;
}

// anchors [K, F] -> [F, padded K]
template <class T>
inline void pack_anchors(const T* anchors, int64_t K, int64_t F, T* packed) {
  const int64_t Kp = padded<T>(K);
  for (int64_t e = 0; e < F * Kp; ++e) packed[e] = 0;
  for (int64_t f0 = 0; f0 < F; f0 += 8)  // a line of the cache at a time
    for (int64_t k = 0; k < K; ++k)
      for (int64_t f = f0; f < F && f < f0 + 8; ++f) packed[f * Kp + k] = anchors[k * F + f];
}

// rows of the units [first, last) of unit_rows: logits [N, K] and norm [N], computed in double whatever A is; packed
// [F, padded K]; block [unit_rows, padded K] is scratch
template <class A>
inline void logits_forward(const A* h, const double* packed, int64_t N, int64_t F, int64_t K, int64_t first, int64_t last,
                           double* block, A* logits, A* norm) {
  const int64_t Kp = padded<double>(K);
  for (int64_t i = first * unit_rows; i < N && i < last * unit_rows; i += unit_rows) {
    const int64_t rows = N - i < unit_rows ? N - i : unit_rows;
    for (int64_t e = 0; e < rows * Kp; ++e) block[e] = 0;
    for (int64_t d = 0; d < F; d += logits_depth)
      for (int64_t k = 0; k < Kp; k += 2 * Wide<double>::width)
        outer_rows<double, 2>(rows, h + i * F + d, 1, F, packed + d * Kp + k, Kp, F - d < logits_depth ? F - d : logits_depth,
                              block + k, Kp);
    for (int64_t r = 0; r < rows; ++r) {
      const double length = row_norm<double>(h + (i + r) * F, F);
      norm[i + r] = (A)length;
      for (int64_t k = 0; k < K; ++k) logits[(i + r) * K + k] = (A)(block[r * Kp + k] / length);
    }
  }
}

// rows [first, last): g [N, padded K] = grad / norm, padded with zeros, and along [N], the share of
// the row itself in its gradient
template <class T>
inline void logits_slopes(const T* grad, const T* logits, const T* norm, int64_t K, int64_t first, int64_t last, T* g,
                          T* along) {
  const int64_t Kp = padded<T>(K);
  for (int64_t i = first; i < last; ++i) {
    T sum = 0;
    for (int64_t k = 0; k < Kp; ++k) g[i * Kp + k] = k < K ? grad[i * K + k] / norm[i] : T(0);
    for (int64_t k = 0; k < K; ++k) sum += g[i * Kp + k] * logits[i * K + k];
    along[i] = norm[i] <= (T)least_norm ? T(0) : sum / norm[i];
  }
}

// Columns of the unit: dh [N, F] = g anchors - along h, and dw [K, F] = g^T h.
// scratch [2 logits_rows + 2 padded K, unit_columns]
template <class T>
inline void logits_backward(const T* h, const T* anchors, const T* g, const T* along, int64_t N, int64_t F, int64_t K,
                            int64_t unit, T* scratch, T* dh, T* dw) {
  constexpr int C = unit_columns, step = 2 * Wide<T>::width;
  const int64_t Kp = padded<T>(K), c0 = unit * C, width = F - c0 < C ? F - c0 : C;
  T *x = scratch, *dx = x + logits_rows * C, *w = dx + logits_rows * C, *sum = w + Kp * C;
  for (int64_t e = 0; e < 2 * (logits_rows + Kp) * C; ++e) scratch[e] = 0;
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < width; ++c) w[k * C + c] = anchors[k * F + c0 + c];
  for (int64_t i = 0; i < N; i += logits_rows) {
    const int64_t rows = N - i < logits_rows ? N - i : logits_rows;
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = h + (i + r) * F + c0;
      for (int64_t c = 0; c < width; ++c) x[r * C + c] = row[c], dx[r * C + c] = -along[i + r] * row[c];
    }
    const T* slope = g + i * Kp;
    for (int64_t c = 0; c < width; c += step) {
      outer_rows<T, 2>(rows, slope, 1, Kp, w + c, C, K, dx + c, C);
      outer_rows<T, 2>(Kp, slope, Kp, 1, x + c, C, rows, sum + c, C);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c) dh[(i + r) * F + c0 + c] = dx[r * C + c];
  }
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < width; ++c) dw[k * F + c0 + c] = sum[k * C + c];
}

// ---- transport codes -------------------------------------------------------------------------------------------------
SHAMISA_HD float scaled_by_power(float x, float shifted) {  // x 2^k, where shifted = k + 1.5 2^23
  uint32_t bits;
  __builtin_memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  return x * scale;
}
SHAMISA_HD double scaled_by_power(double x, double shifted) {  // ... k + 1.5 2^52
  uint64_t bits;
  __builtin_memcpy(&bits, &shifted, 8);
  bits = (bits + 1023u) << 52;
  double scale;
  __builtin_memcpy(&scale, &bits, 8);
  return x * scale;
}

// e^x for x <= 0, to a few units in the last place; 0 where that would be subnormal. NaN stays NaN. Without branches, so that
// loops over it vectorise.
template <class T>
SHAMISA_HD T exp_of_negative(T x) {
  constexpr bool wide = sizeof(T) == 8;
  constexpr T least = wide ? (T)-708 : (T)-87, magic = wide ? (T)6755399441055744. : (T)12582912.;
  constexpr T high = wide ? (T)0.693147180369123816490 : (T)0.693359375,
              low = wide ? (T)1.90821492927058770002e-10 : (T)-2.12194440e-4;
  const T y = x < least ? least : x;
  const T shifted = y * (T)1.4426950408889634 + magic, k = shifted - magic;
  const T r = (y - k * high) - k * low;
  T p = 0;
  if (wide) {
    p = (T)(1 / 6227020800.);
    p = p * r + (T)(1 / 479001600.);
    p = p * r + (T)(1 / 39916800.);
    p = p * r + (T)(1 / 3628800.);
    p = p * r + (T)(1 / 362880.);
    p = p * r + (T)(1 / 40320.);
  }
  p = p * r + (T)(1 / 5040.);
  p = p * r + (T)(1 / 720.);
  p = p * r + (T)(1 / 120.);
  p = p * r + (T)(1 / 24.);
  p = p * r + (T)(1 / 6.);
  p = p * r + (T)(1 / 2.);
  p = p * r + (T)1;
  p = p * r + (T)1;
  const T e = scaled_by_power(p, shifted);
  return x < least ? T(0) : e;
}

// Rows [first, last) of u [N, K]: high [K] = the largest of u / temperature and what high holds
template <class T>
inline void codes_largest(const T* u, int64_t K, T temperature, int64_t first, int64_t last, T* high) {
  for (int64_t i = first; i < last; ++i)
    for (int64_t k = 0; k < K; ++k) {
      const T v = u[i * K + k] / temperature;
      high[k] = v > high[k] ? v : high[k];
    }
}

// sum [K] += exp(u / temperature - high) over the rows
template <class T>
inline void codes_columns(const T* u, int64_t K, T temperature, const T* high, int64_t first, int64_t last, T* sum) {
  for (int64_t i = first; i < last; ++i) {
    const T* own = u + i * K;
    for (int64_t k = 0; k < K; ++k) sum[k] += exp_of_negative<T>(own[k] / temperature - high[k]);
  }
}

// q [N, K] = softmax over K of u / temperature - shift, where shift = high + low [K]; sum [K] += its columns.
// row [padded K] is scratch. No column can vanish: each had the sum 1 before the rows were divided by at most K.
template <class T>
inline void codes_rows(const T* u, int64_t K, T temperature, const T* high, const T* low, int64_t first, int64_t last, T* row,
                       T* q, T* sum) {
  using S = Simd<T>;
  constexpr int W = S::width;
  const int64_t Kp = padded<T>(K);
  for (int64_t i = first; i < last; ++i) {
    const T* own = u + i * K;
    T* out = q + i * K;
    for (int64_t k = 0; k < K; ++k) row[k] = own[k] / temperature - high[k] - low[k];
    for (int64_t k = K; k < Kp; ++k) row[k] = -__builtin_inf();
    typename S::V best = S::load(row);
    for (int64_t k = W; k < Kp; k += W) {
      const typename S::V v = S::load(row + k);
      best = v > best ? v : best;
    }
    T largest = best[0];
    for (int w = 1; w < W; ++w) largest = best[w] > largest ? best[w] : largest;
    for (int64_t k = 0; k < Kp; ++k) row[k] = exp_of_negative<T>(row[k] - largest);
    typename S::V total = S::fill(0);
    for (int64_t k = 0; k < Kp; k += W) total += S::load(row + k);
    const T share = 1 / S::sum(total);
    for (int64_t k = 0; k < K; ++k) {
      out[k] = row[k] * share;
      sum[k] += out[k];
    }
  }
}

SHAMISA_END
