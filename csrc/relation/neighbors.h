// The k nearest rows of every row. Host code, no torch, no allocation; nothing of size N x N.
//
// 1. Squared distances |x_i|^2 + |x_j|^2 - 2 x_i . x_j of blocks of rows against blocks of rows, each pair of blocks once;
//    each row keeps its k + margin best. Rounds of disjoint pairs of blocks can run in parallel.
// 2. Those few are measured again by their differences, and in double where two are close: that decides the order (then the
//    smaller row).
#pragma once

#include "arguments.h"
#include "product.h"

SHAMISA_BEGIN

constexpr double close_call = 1e-5;  // relative; several times the rounding of a squared distance summed in float

template <class T>
inline void neighbors_begin(const Neighbors<T>& g, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const T* x = g.h + i * g.F;
    double sum = 0;
    for (int64_t d = 0; d < g.F; ++d) sum += (double)x[d] * (double)x[d];
    g.norm[i] = (T)sum;
    for (int c = 0; c < g.candidates; ++c) {
      g.key[i * g.candidates + c] = (T)__builtin_inf();
      g.row[i * g.candidates + c] = -1;
    }
  }
}

// put (key, j) in the ascending list of row i; equal keys by j
template <class T>
inline void offer(const Neighbors<T>& g, int64_t i, T key, int32_t j) {
  T* keys = g.key + i * g.candidates;
  int32_t* rows = g.row + i * g.candidates;
  int c = g.candidates - 1;
  if (!(key < keys[c] || (key == keys[c] && (uint32_t)j < (uint32_t)rows[c]))) return;
  for (; c > 0 && (key < keys[c - 1] || (key == keys[c - 1] && (uint32_t)j < (uint32_t)rows[c - 1])); --c) {
    keys[c] = keys[c - 1];
    rows[c] = rows[c - 1];
  }
  keys[c] = key;
  rows[c] = j;
}

template <class T>
inline void neighbors_pair(const Neighbors<T>& g, int64_t block_a, int64_t block_b, T* dot /* [block_rows, block_rows] */) {
  const int64_t a0 = block_a * block_rows, b0 = block_b * block_rows;
  const int na = (int)(g.N - a0 < block_rows ? g.N - a0 : block_rows);
  const int nb = (int)(g.N - b0 < block_rows ? g.N - b0 : block_rows);
  const int rows = (na + tile_rows<T> - 1) / tile_rows<T> * tile_rows<T>;
  constexpr int per = block_rows / panel_rows<T>;
  static_assert(block_rows % panel_rows<T> == 0, "a block is whole panels");
  const int64_t panels = panels_of<T>(g.N), first = block_b * per;
  product_block<T>(g.packed, a0, rows, g.packed, first, first + per < panels ? first + per : panels, g.F, dot, block_rows);
  const bool same = block_a == block_b;
  for (int r = 0; r < na; ++r) {  // distances in place of products; row r of A offers itself to B and is offered B
    T* line = dot + r * block_rows;
    const T own = g.norm[a0 + r];
    for (int c = 0; c < nb; ++c) line[c] = own + g.norm[b0 + c] - 2 * line[c];
    const T bound = g.key[(a0 + r) * g.candidates + g.candidates - 1];
    for (int c = 0; c < nb; ++c)
      if (line[c] <= bound && !(same && c == r)) offer<T>(g, a0 + r, line[c], (int32_t)(b0 + c));
  }
  if (same) return;
  T bound[block_rows];
  for (int c = 0; c < nb; ++c) bound[c] = g.key[(b0 + c) * g.candidates + g.candidates - 1];
  for (int r = 0; r < na; ++r) {
    const T* line = dot + r * block_rows;
    for (int c = 0; c < nb; ++c)
      if (line[c] <= bound[c]) {
        offer<T>(g, b0 + c, line[c], (int32_t)(a0 + r));
        bound[c] = g.key[(b0 + c) * g.candidates + g.candidates - 1];
      }
  }
}

// rows[0 .. n) into the order of (float)squared, then of the row
inline void sort_candidates(int n, double* squared, int32_t* rows) {
  for (int c = 1; c < n; ++c) {
    const double key = squared[c];
    const int32_t j = rows[c];
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

// rows [first, last): distance [N, k] and neighbor [N, k], nearest first. A row without enough finite distances is filled up
// with (NaN, N - 1). squared [candidates] is scratch.
template <class T>
inline void neighbors_finish(const Neighbors<T>& g, int64_t first, int64_t last, T* distance, int64_t* neighbor,
                             double* squared) {
  for (int64_t i = first; i < last; ++i) {
    int32_t* rows = g.row + i * g.candidates;
    const T* own = g.h + i * g.F;
    int n = 0;
    for (; n < g.candidates && rows[n] >= 0; ++n) squared[n] = squared_distance<T>(own, g.h + rows[n] * g.F, g.F);
    sort_candidates(n, squared, rows);
    if (sizeof(T) < 8) {  // summed in float: right but for the order of those that are as good as equal
      bool close = false;
      for (int c = 0; c < n; ++c) {
        const bool next = c + 1 < n && squared[c + 1] - squared[c] <= close_call * squared[c + 1];
        if (close || next) squared[c] = exact_squared_distance(own, g.h + rows[c] * g.F, g.F);
        close = next;
      }
      sort_candidates(n, squared, rows);
    }
    for (int c = 0; c < g.k; ++c) {
      neighbor[i * g.k + c] = c < n ? rows[c] : g.N - 1;
      distance[i * g.k + c] = (T)(c < n ? __builtin_sqrt(squared[c]) : __builtin_nan(""));
    }
  }
}

// mutual [N, k]: whether row i is also a neighbour of its neighbour
inline void neighbors_mutual(const int64_t* neighbor, int64_t k, int64_t first, int64_t last, bool* mutual) {
  for (int64_t i = first; i < last; ++i)
    for (int64_t c = 0; c < k; ++c) {
      const int64_t* back = neighbor + neighbor[i * k + c] * k;
      bool found = false;
      for (int64_t b = 0; b < k; ++b) found |= back[b] == i;
      mutual[i * k + c] = found;
    }
}

SHAMISA_END
