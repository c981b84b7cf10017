// The largest scores c_ij = mean_k log p_ik p_jk, and their gradient. Host code, no torch, no allocation; nothing of size
// N x N: rows of scores are made a few at a time, in double, and only those that can still be among the largest are noted.
#pragma once

#include "../../relation/transport.h"
#include "arguments.h"
#include "product.h"

SHAMISA_BEGIN

// a place in the order "score descending, then i, then j" as one number, ascending: the key above the position i N + j
SHAMISA_HD uint64_t place(float score, uint32_t position) { return (uint64_t)key_of(score) << 32 | position; }

SHAMISA_HD float score_of(uint64_t place) {  // the inverse of key_of
  const uint32_t key = (uint32_t)(place >> 32);
  return float_of_bits(key >> 31 ? key : ~key & 0x7fffffffu);
}

// moves the m smallest of the n different values to the front, in any order
inline void select_smallest(uint64_t* v, int64_t n, int64_t m) {
  int64_t low = 0, high = n - 1;
  while (low < high && m > low && m <= high) {  // the boundary lies within [low, high]
    const uint64_t a = v[low], b = v[low + (high - low) / 2], c = v[high];
    const uint64_t pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
    int64_t i = low, j = high;
    while (i <= j) {
      while (v[i] < pivot) ++i;
      while (pivot < v[j]) --j;
      if (i <= j) {
        const uint64_t t = v[i];
        v[i++] = v[j];
        v[j--] = t;
      }
    }
    if (m <= j + 1)
      high = j;
    else if (m >= i)
      low = i;
    else
      return;
  }
}

// The room is full: keep the m smallest.
SHAMISA_HD void shrink(Smallest* best) {
  if (best->n <= best->m) return;
  select_smallest(best->v, best->n, best->m);
  best->n = best->m;
  uint64_t worst = 0;
  for (int64_t i = 0; i < best->m; ++i) worst = worst < best->v[i] ? best->v[i] : worst;
  best->bound = score_of(worst);
}

// a double below which none rounds to a float of `bound` or more
SHAMISA_HD double about(float bound) { return (double)bound - __builtin_fabs((double)bound) * 1e-7 - 1e-44; }

SHAMISA_HD void join(Extreme* a, Extreme b) {  // b comes from later rows
  if (b.low < a->low) a->low = b.low, a->low_at = b.low_at;
  if (b.high > a->high) a->high = b.high, a->high_at = b.high_at;
}

// Rows [first, last), first a multiple of segment_rows. score [tile_rows, stride] with stride = panels * panel_rows is scratch.
// With `edges`, writes index_j [N, edges] in ascending order instead of adding to `best`, whose m is then `edges`.
template <class T>
inline Extreme transport_rows(const Transport& g, int64_t first, int64_t last, double* score, Smallest* best,
                              int64_t* index_j) {
  Extreme found = {__builtin_inf(), -__builtin_inf(), 0, 0};
  using S = Wide<double>;
  using V = S::V;
  constexpr int W = S::width;
  const int64_t panels = panels_of<double>(g.N), stride = panels * panel_rows<double>;
  const V share = S::fill(1 / (double)g.K);
  for (int64_t i0 = first; i0 < last; i0 += tile_rows<double>) {
    product_block<double>(g.log_p, i0, tile_rows<double>, g.p, 0, panels, g.K, score, stride);
    for (int64_t i = i0; i < last && i < i0 + tile_rows<double>; ++i) {
      double* c = score + (i - i0) * stride;
      for (int64_t j = g.N; j < stride; ++j) c[j] = __builtin_nan("");  // padding: no comparison holds
      V lowest = S::fill(__builtin_inf()), highest = -lowest;
      V bound = S::fill(about(best->bound));
      for (int64_t j = 0; j < stride; j += W) {
        const V v = S::load(c + j) * share;
        S::store(c + j, v);
        lowest = v < lowest ? v : lowest;
        highest = v > highest ? v : highest;
        if (!any(v >= bound)) continue;
        for (int64_t e = j; e < j + W; ++e) {
          const float s = (float)c[e];
          if (!(s >= best->bound) || (e == i && !g.diagonal)) continue;
          best->v[best->n++] = place(s, (uint32_t)(i * g.N + e));
          if (best->n == best->room) shrink(best), bound = S::fill(about(best->bound));
        }
      }
      double low = lowest[0], high = highest[0];
      for (int u = 1; u < W; ++u) {
        low = lowest[u] < low ? lowest[u] : low;
        high = highest[u] > high ? highest[u] : high;
      }
      int64_t j;
      if ((T)low < (T)found.low) {
        for (j = 0; (T)c[j] != (T)low; ++j) {
        }
        found.low = (T)low, found.low_at = i * g.N + j;
      }
      if ((T)high > (T)found.high) {
        for (j = 0; (T)c[j] != (T)high; ++j) {
        }
        found.high = (T)high, found.high_at = i * g.N + j;
      }
      if (g.edges) {
        shrink(best);
        int64_t* out = index_j + i * g.edges;
        for (int64_t e = 0; e < g.edges; ++e) {
          const int64_t at = e < best->n ? (int64_t)(uint32_t)best->v[e] - i * g.N : g.N - 1;  // too few: NaN in the scores
          int64_t r = e;
          for (; r > 0 && out[r - 1] > at; --r) out[r] = out[r - 1];
          out[r] = at;
        }
        best->n = 0;
        best->bound = -__builtin_inff();
      }
    }
  }
  return found;
}

SHAMISA_HD double transport_score(const double* log_p, const double* p, int64_t K, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < K; ++k) sum += log_p[i * K + k] * p[j * K + k];
  return sum / (double)K;
}

// grad [N, K] of log_p: += value times the gradient of c_ij K
inline void transport_edge_backward(const double* log_p, const double* p, int64_t K, int64_t i, int64_t j, double value,
                                    double* grad) {
  for (int64_t k = 0; k < K; ++k) {
    grad[i * K + k] += value * p[j * K + k];
    grad[j * K + k] += value * log_p[i * K + k] * p[j * K + k];
  }
}

SHAMISA_END
