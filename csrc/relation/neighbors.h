// The k nearest rows of every row. Host code, no torch, no allocation; nothing of size N x N.
//
// 1. Squared distances |x_i|^2 + |x_j|^2 - 2 x_i . x_j of blocks of rows against blocks of rows, each pair of blocks once;
//    each row keeps its k + margin best. Rounds of disjoint pairs of blocks can run in parallel. x is h less a common center:
//    distances stay, but the products, and with them the rounding, shrink to the spread of the rows.
// 2. Where that cannot be shown to be exact enough, those few are measured again by their differences, and in double where
//    two are close: that decides the order (then the smaller row).
#pragma once

#include "arguments.h"
#include "product.h"

SHAMISA_BEGIN

// Relative errors that a squared distance in float may have: one from a product is measured again when it may have more, one
// summed from differences stays well below. Two that are closer than 2.5 of them do not tell their order.
constexpr double of_product = 1.5e-5, of_difference = 4e-6;

// center [F], columns [first, last): the mean of a few rows; any center is right, only better or worse
template <class T>
inline void neighbors_center(const Neighbors<T>& g, int64_t first, int64_t last) {
  const int64_t step = (g.N + center_rows - 1) / center_rows;
  for (int64_t d = first; d < last; ++d) g.center[d] = 0;
  for (int64_t i = 0; i < g.N; i += step)
    for (int64_t d = first; d < last; ++d) g.center[d] += g.h[i * g.F + d];
  const T share = T(1) / (T)((g.N + step - 1) / step);
  for (int64_t d = first; d < last; ++d) {
    const T mean = g.center[d] * share;
    g.center[d] = mean - mean == 0 ? mean : T(0);  // a row that is not finite spoils itself only
  }
}

template <class T>
inline void neighbors_begin(const Neighbors<T>& g, int64_t first, int64_t last) {
  constexpr int lanes = 16;  // sums side by side, the same whatever the instruction set
  for (int64_t i = first; i < last; ++i) {
    const T* x = g.h + i * g.F;
    double sum[lanes] = {};
    int64_t d = 0;
    for (; d + lanes <= g.F; d += lanes)
      for (int u = 0; u < lanes; ++u) {
        const double v = (double)(x[d + u] - g.center[d + u]);
        sum[u] += v * v;
      }
    for (; d < g.F; ++d) {
      const double v = (double)(x[d] - g.center[d]);
      sum[0] += v * v;
    }
    for (int u = 1; u < lanes; ++u) sum[0] += sum[u];
    g.norm[i] = (T)sum[0];
    for (int c = -1; c < g.stride - 1; ++c) {
      g.keys(i)[c] = c < 0 ? -(T)__builtin_inf() : (T)__builtin_inf();
      g.rows(i)[c] = c < 0 ? 0 : g.N;
    }
  }
}

// Put (key, j) in the ascending list of row i; equal keys by j. Returns the last key that counts.
template <class T>
inline T offer(const Neighbors<T>& g, int64_t i, T key, RowOf<T> j) {
  using S = Wide<T>;
  using K = Wide<RowOf<T>>;
  constexpr int W = S::width;
  static_assert(list_lanes % W == 0, "a list is whole vectors");
  T* keys = g.keys(i);
  RowOf<T>* rows = g.rows(i);
  const int last = g.candidates - 1, top = (last / W) * W;
  const typename S::V fresh = S::fill(key);
  const typename K::V name = K::fill(j);
  typename K::V tie = fresh == S::load(keys + top);
  for (int c = 0; c < top; c += W) tie |= fresh == S::load(keys + c);
  uint64_t ties[sizeof tie / 8], equal = 0;
  __builtin_memcpy(ties, &tie, sizeof tie);
  for (uint64_t t : ties) equal |= t;
  if (!equal) {  // all places at once: each takes what is left of it, the new one, or what it has
    for (int c = top; c >= 0; c -= W) {
      const typename S::V left = S::load(keys + c - 1), own = S::load(keys + c);
      const typename K::V left_row = K::load(rows + c - 1), own_row = K::load(rows + c);
      S::store(keys + c, fresh < left ? left : fresh < own ? fresh : own);
      K::store(rows + c, fresh < left ? left_row : fresh < own ? name : own_row);
    }
    return keys[last];
  }
  int c = last;
  if (!(key < keys[c] || j < rows[c])) return keys[last];
  for (; c > 0 && (key < keys[c - 1] || (key == keys[c - 1] && j < rows[c - 1])); --c) {
    keys[c] = keys[c - 1];
    rows[c] = rows[c - 1];
  }
  keys[c] = key;
  rows[c] = j;
  return keys[last];
}

template <class T>
inline void neighbors_pair(const Neighbors<T>& g, int64_t block_a, int64_t block_b, T* dot /* [block_rows, block_rows] */) {
  const int64_t a0 = block_a * block_rows, b0 = block_b * block_rows;
  const int na = (int)(g.N - a0 < block_rows ? g.N - a0 : block_rows);
  const int nb = (int)(g.N - b0 < block_rows ? g.N - b0 : block_rows);
  const int rows = (na + tile_rows<T> - 1) / tile_rows<T> * tile_rows<T>;
  constexpr int per = block_rows / panel_rows<T>;
  static_assert(block_rows % panel_rows<T> == 0 && block_rows % 8 == 0, "a block is whole panels, and whole words of bytes");
  const int64_t panels = panels_of<T>(g.N), first = block_b * per;
  product_block<T>(g.packed, a0, rows, g.packed, first, first + per < panels ? first + per : panels, g.F, dot, block_rows);
  const bool same = block_a == block_b;
  T norm[block_rows], bound[block_rows];  // of B; what is not there compares as false
  for (int c = 0; c < block_rows; ++c) {
    norm[c] = c < nb ? g.norm[b0 + c] : (T)__builtin_nan("");
    bound[c] = c < nb && !same ? g.keys(b0 + c)[g.candidates - 1] : -(T)__builtin_inf();
  }
  for (int r = 0; r < na; ++r) {  // row r of A offers itself to B and is offered B
    T* line = dot + r * block_rows;  // distances in place of products
    const T own = g.norm[a0 + r];
    for (int c = 0; c < block_rows; ++c) line[c] = own + norm[c] - 2 * line[c];
    if (same) line[r] = (T)__builtin_nan("");
    T limit = g.keys(a0 + r)[g.candidates - 1];
    uint8_t hit[block_rows];
    for (int c = 0; c < block_rows; ++c) hit[c] = (line[c] <= limit) | (line[c] <= bound[c]);
    for (int c = 0; c < block_rows; c += 8) {  // few are hit: eight at a time
      uint64_t word;
      __builtin_memcpy(&word, hit + c, 8);
      if (word == 0) continue;
      for (int u = c; u < c + 8; ++u) {
        if (line[u] <= limit) limit = offer<T>(g, a0 + r, line[u], (RowOf<T>)(b0 + u));
        if (line[u] <= bound[u]) bound[u] = offer<T>(g, b0 + u, line[u], (RowOf<T>)(a0 + r));
      }
    }
  }
}

// rows[0 .. n) into the order of (float)squared, then of the row
template <class I>
inline void sort_candidates(int n, double* squared, I* rows) {
  for (int c = 1; c < n; ++c) {
    const double key = squared[c];
    const I j = rows[c];
    int at = c;
    for (; at > 0 && ((float)key < (float)squared[at - 1] || ((float)key == (float)squared[at - 1] && j < rows[at - 1]));
         --at) {
      squared[at] = squared[at - 1];
      rows[at] = rows[at - 1];
    }
    squared[at] = key;
    rows[at] = j;
  }
}

// Measures those again that are within `share` of the one before or after them; rows are sorted, before and after.
template <class I, class Measure>
inline void measure_close(int n, double share, double* squared, I* rows, Measure measure) {
  bool close = false, any = false;
  for (int c = 0; c < n; ++c) {
    const bool next = c + 1 < n && squared[c + 1] - squared[c] <= share * squared[c + 1];
    if (close || next) squared[c] = measure(rows[c]), any = true;
    close = next;
  }
  if (any) sort_candidates(n, squared, rows);
}

// rows [first, last): distance [N, k] and neighbor [N, k], nearest first. A row without enough finite distances is filled up
// with (NaN, N - 1). squared [candidates] is scratch.
//
// A float product of two rows is wrong by at most (depth_step + stretches) u |x_i| |x_j|, u = 2^-24, because it is summed in
// stretches of depth_step columns; norms, center and the subtractions add at most 6 u (|x_i|^2 + |x_j|^2).
template <class T>
inline void neighbors_finish(const Neighbors<T>& g, int64_t first, int64_t last, T* distance, int64_t* neighbor,
                             double* squared) {
  const double wrong = (double)(depth_step + (g.F + depth_step - 1) / depth_step + 6) / (1 << 24) / of_product;
  for (int64_t i = first; i < last; ++i) {
    RowOf<T>* rows = g.rows(i);
    const T *own = g.h + i * g.F, *keys = g.keys(i);
    const auto plain = [&](int64_t j) { return (double)squared_distance<T>(own, g.h + j * g.F, g.F); };
    int n = 0;
    for (; n < g.candidates && rows[n] < g.N; ++n) {
      const bool enough = (double)keys[n] > wrong * ((double)g.norm[i] + (double)g.norm[rows[n]]);
      squared[n] = sizeof(T) < 8 && enough ? (double)keys[n] : plain(rows[n]);
    }
    sort_candidates(n, squared, rows);
    if (sizeof(T) < 8) {  // right but for the order of those that are as good as equal
      measure_close(n, 2.5 * of_product, squared, rows, plain);
      measure_close(n, 2.5 * of_difference, squared, rows,
                    [&](int64_t j) { return exact_squared_distance(own, g.h + j * g.F, g.F); });
    }
    for (int c = 0; c < g.k; ++c) {
      neighbor[i * g.k + c] = c < n ? rows[c] : g.N - 1;
      distance[i * g.k + c] = (T)(c < n ? __builtin_sqrt(squared[c]) : __builtin_nan(""));
    }
  }
}

// where row i stands among the neighbours of its neighbour c: a place in [N, k], or -1
inline int64_t way_back(const int64_t* neighbor, int64_t k, int64_t i, int64_t c) {
  const int64_t j = neighbor[i * k + c];
  const int64_t* back = neighbor + j * k;
  int64_t found = -1;
  for (int64_t b = 0; b < k; ++b) found = back[b] == i ? b : found;
  return found < 0 ? found : j * k + found;
}

SHAMISA_END
