// Variance and covariance. Host code, no torch, no allocation.
#pragma once

#include "outer.h"

SHAMISA_BEGIN

constexpr int product_depth = 96;  // columns of two panels that fit in the first cache
constexpr int product_rows = 96;   // rows of a left factor that fit in the second

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

SHAMISA_END
