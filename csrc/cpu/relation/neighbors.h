// The k nearest rows of every row. Host code, no torch, no allocation; nothing of size N x N.
//
// 1. Squared distances |x_i|^2 + |x_j|^2 - 2 x_i . x_j of blocks of rows against blocks of rows, each pair of blocks once;
//    each row keeps its k + margin best. Rounds of disjoint pairs of blocks can run in parallel. x is h less a common center:
//    distances stay, but the products, and with them the rounding, shrink to the spread of the rows.
// 2. Where that cannot be shown to be exact enough, those few are measured again by their differences, and in double where
//    two are close: that decides the order (then the smaller row).
// 3. A row for which even the choice is in doubt (a tight cluster far from the center) is measured against all others. The
//    rows around it that are in doubt too are a problem of their own, steps 1 and 2 with this row as the center.
#pragma once

#include "../../relation/neighbors.h"
#include "arguments.h"
#include "product.h"

SHAMISA_BEGIN

// the relative error of a squared distance that is summed from differences in float: it stays well below
constexpr double of_difference = 4e-6;

// center [F], columns [first, last): the mean of a few rows in groups, without the groups of the smallest and the largest
// means, so that a few rows far out do not move it; any center is right, only better or worse
template <class T>
inline void neighbors_center(const Neighbors<T>& g, int64_t first, int64_t last) {
  constexpr int width = 64, G = center_groups;
  const int64_t step = (g.N + center_rows - 1) / center_rows, rows = (g.N + step - 1) / step;
  const int groups = (int)(rows < G ? rows : G), left_out = groups / 4;
  for (int64_t d0 = first; d0 < last; d0 += width) {
    const int columns = (int)(last - d0 < width ? last - d0 : width);
    T mean[G][width];
    for (int u = 0; u < G; ++u)
      for (int c = 0; c < width; ++c) mean[u][c] = 0;
    for (int64_t n = 0; n < rows; ++n) {
      const T* x = g.h + n * step * g.F + d0;
      T* sum = mean[n % groups];
      for (int c = 0; c < columns; ++c) sum[c] += x[c];
    }
    for (int u = 0; u < groups; ++u) {
      const T share = T(1) / (T)((rows - u + groups - 1) / groups);
      for (int c = 0; c < width; ++c) {
        const T m = mean[u][c] * share;
        mean[u][c] = m - m == 0 ? m : T(0);  // a row that is not finite spoils itself only
      }
    }
    for (int pass = 0; pass < groups; ++pass)  // sorts the groups of each column
      for (int u = pass % 2; u + 1 < groups; u += 2)
        for (int c = 0; c < width; ++c) {
          const T a = mean[u][c], b = mean[u + 1][c];
          mean[u][c] = a < b ? a : b;
          mean[u + 1][c] = a < b ? b : a;
        }
    const T share = T(1) / (T)(groups - 2 * left_out);
    for (int c = 0; c < columns; ++c) {
      T sum = 0;
      for (int u = left_out; u < groups - left_out; ++u) sum += mean[u][c] * share;
      g.center[d0 + c] = sum;
    }
  }
}

// returns the last key that counts
template <class T>
inline T clear_list(const Neighbors<T>& g, int64_t i) {
  for (int c = -1; c < g.stride - 1; ++c) {
    g.keys(i)[c] = c < 0 ? -(T)__builtin_inf() : (T)__builtin_inf();
    g.rows(i)[c] = (RowOf<T>)(c < 0 ? 0 : g.N);
  }
  return (T)__builtin_inf();
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
    clear_list(g, i);
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
  if (!any(tie)) {  // all places at once: each takes what is left of it, the new one, or what it has
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
  constexpr int P = panel_rows<T>, per = block_rows / P;
  static_assert(block_rows % P == 0 && block_rows % 8 == 0, "a block is whole panels, and whole words of bytes");
  const int64_t panels = panels_of<T>(g.N), first = block_b * per, last = first + per < panels ? first + per : panels;
  const bool same = block_a == block_b;
  if (same)  // what lies left of the panels of the diagonal is the same pairs again
    for (int r = 0; r < rows; r += P)
      product_block<T>(g.packed, a0 + r, rows - r < P ? rows - r : P, g.packed, first + r / P, last, g.F,
                       dot + r * block_rows + r, block_rows);
  else
    product_block<T>(g.packed, a0, rows, g.packed, first, last, g.F, dot, block_rows);
  T norm[block_rows], bound[block_rows];  // of B; what is not there compares as false
  for (int c = 0; c < block_rows; ++c) {
    norm[c] = c < nb ? g.norm[b0 + c] : (T)__builtin_nan("");
    bound[c] = c < nb ? g.keys(b0 + c)[g.candidates - 1] : -(T)__builtin_inf();
  }
  for (int r = 0; r < na; ++r) {     // row r of A offers itself to B and is offered B
    T* line = dot + r * block_rows;  // distances in place of products
    const T own = g.norm[a0 + r];
    const int begin = same ? r / 8 * 8 : 0;
    for (int c = begin; c < block_rows; ++c) line[c] = own + norm[c] - 2 * line[c];
    for (int c = begin; same && c <= r; ++c) line[c] = (T)__builtin_nan("");
    T limit = g.keys(a0 + r)[g.candidates - 1];
    uint8_t hit[block_rows];
    for (int c = begin; c < block_rows; ++c) hit[c] = (line[c] <= limit) | (line[c] <= bound[c]);
    for (int c = begin; c < block_rows; c += 8) {  // few are hit: eight at a time
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

template <class T>
inline void write_row(const Neighbors<T>& g, int64_t i, int n, const double* squared, T* distance, int64_t* neighbor) {
  for (int c = 0; c < g.k; ++c) {
    neighbor[i * g.k + c] = c < n ? g.rows(i)[c] : g.N - 1;
    distance[i * g.k + c] = (T)(c < n ? __builtin_sqrt(squared[c]) : __builtin_nan(""));
  }
}

// Rows [first, last): distance [N, k] and neighbor [N, k], nearest first. A row without enough finite distances is filled up
// with (NaN, N - 1). squared [candidates] is scratch. Where doubt is set, nothing is written.
//
// The choice is in doubt when a row j that is no candidate could be nearer than the k-th, its product being so wrong. Its key
// is at least that of the last candidate; and j is no farther out than norms say: |x_j| <= |x_i| + the k-th distance.
template <class T>
inline void neighbors_finish(const Neighbors<T>& g, int64_t first, int64_t last, T* distance, int64_t* neighbor,
                             double* squared) {
  const double wrong = product_error(g.F, depth_step, 6);
  double most = 0;  // the largest norm
  for (int64_t i = 0; i < g.N; ++i) most = (double)g.norm[i] > most ? (double)g.norm[i] : most;
  for (int64_t i = first; i < last; ++i) {
    RowOf<T>* rows = g.rows(i);
    T* keys = g.keys(i);
    const T* own = g.h + i * g.F;
    const auto plain = [&](int64_t j) { return (double)squared_distance<T>(own, g.h + j * g.F, g.F); };
    const auto exact = [&](int64_t j) { return exact_squared_distance(own, g.h + j * g.F, g.F); };
    int n = 0;
    while (n < g.candidates && rows[n] < g.N) ++n;
    const bool others = sizeof(T) < 8 && n == g.candidates && n < g.N - 1;  // rows that are no candidates
    const double norm = (double)g.norm[i];
    const auto doubtful = [&](double kth) {
      const double reach = __builtin_sqrt(norm) + __builtin_sqrt(kth > 0 ? kth : 0), far = reach * reach * (1 + 1e-5);
      return (double)keys[g.candidates - 1] - wrong * (norm + (far < most ? far : most)) <= kth;
    };
    // Do not measure all candidates where that is in vain. (Rows equal to this one tie.)
    g.doubt[i] = others && doubtful((double)keys[g.k - 1]) && plain(rows[g.k - 1]) > 0;
    if (g.doubt[i]) continue;
    for (int c = 0; c < n; ++c) {
      const bool enough = of_product * (double)keys[c] > wrong * (norm + (double)g.norm[rows[c]]);
      squared[c] = sizeof(T) < 8 && enough ? (double)keys[c] : plain(rows[c]);
    }
    sort_candidates(n, squared, rows);
    if (sizeof(T) < 8) {  // right but for the order of those that are as good as equal
      measure_close(n, close_call * of_product, squared, rows, plain);
      measure_close(n, close_call * of_difference, squared, rows, exact);
    }
    g.doubt[i] = others && squared[g.k - 1] > 0 && doubtful(squared[g.k - 1] * (1 + of_product));
    if (!g.doubt[i]) write_row(g, i, n, squared, distance, neighbor);
  }
}

// squared [N], rows [first, last): measured from row i, NaN for itself
template <class T>
inline void distances(const Neighbors<T>& g, int64_t i, int64_t first, int64_t last, T* squared) {
  for (int64_t j = first; j < last; ++j)
    squared[j] = j == i ? (T)__builtin_nan("") : squared_distance<T>(g.h + i * g.F, g.h + j * g.F, g.F);
}

// Row i of distance and neighbor from all its distances, squared. More rows than there are candidates can be as good as
// equally far as the k-th: then all that may be among the k are measured in double.
template <class T>
inline void neighbors_row(const Neighbors<T>& g, int64_t i, const T* squared, T* distance, int64_t* neighbor, double* exact) {
  const auto measure = [&](int64_t j) { return exact_squared_distance(g.h + i * g.F, g.h + j * g.F, g.F); };
  T limit = clear_list(g, i);
  for (int64_t j = 0; j < g.N; ++j)
    if (squared[j] <= limit) limit = offer<T>(g, i, squared[j], (RowOf<T>)j);
  RowOf<T>* rows = g.rows(i);
  const T* keys = g.keys(i);
  const double farthest = (double)keys[g.k - 1] * (1 + close_call * of_difference);
  if ((double)keys[g.candidates - 1] <= farthest && farthest > 0) {
    limit = clear_list(g, i);
    for (int64_t j = 0; j < g.N; ++j) {
      if (!((double)squared[j] <= farthest)) continue;
      const T key = (T)measure(j);
      if (key <= limit) limit = offer<T>(g, i, key, (RowOf<T>)j);
    }
  }
  int n = 0;
  for (; n < g.candidates && rows[n] < g.N; ++n) exact[n] = (double)keys[n];
  measure_close(n, close_call * of_difference, exact, rows, measure);
  write_row(g, i, n, exact, distance, neighbor);
}

SHAMISA_END
