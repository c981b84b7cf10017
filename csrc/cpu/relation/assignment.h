// The logits and codes of transport. Host code, no torch, no allocation.
#pragma once

#include "../../relation/constants.h"
#include "outer.h"

SHAMISA_BEGIN

// ---- transport logits ------------------------------------------------------------------------------------------------
constexpr int logits_depth = 128;  // columns of a row and of all anchors that fit in the first cache
constexpr int logits_rows = 32;    // rows worked on together in the backward

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
