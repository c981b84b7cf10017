// The order of the candidates, and rows whose choice is in doubt: steps 3 and 4 of neighbors.cuh.
#pragma once

#include "neighbors_select.cuh"

SHAMISA_BEGIN

// the relative error of squared_distances in float: W sums a lane, joined, and those of the lanes; the differences
template <int W>
SHAMISA_DEVICE double difference_error(int64_t F) {
  return (double)((F + 32 * W - 1) / (32 * W) + W / 2 + 5 + 3) / (1 << 24);
}

// In the order of (float)squared, then of the row; the same for every bit pattern, so that places never collide.
// place(c) for c < n: how many of the others come before c
SHAMISA_DEVICE int place_of(int c, int n, const double* squared, const int32_t* rows) {
  const uint32_t own = ordered((float)squared[c]);
  const int32_t j = rows[c];
  int place = 0;
  for (int b = 0; b < n; ++b) {
    const uint32_t other = ordered((float)squared[b]);
    place += other < own || (other == own && rows[b] < j);
  }
  return place;
}

// sums of (a_d - b_d)^2 over D columns for several b; the same in every lane
template <class T, class Sum, int W, int count>
SHAMISA_DEVICE void squared_distances(const T* a, const T* const (&b)[count], int64_t D, Sum (&sum)[count]) {
  Sum part[count][W];  // W sums instead of one are W times as exact
  SHAMISA_UNROLL
  for (int u = 0; u < count; ++u) SHAMISA_UNROLL
  for (int w = 0; w < W; ++w) part[u][w] = 0;
  for (int64_t d = (int64_t)lane_of_warp() * W; d < D; d += 32 * W) {
    const Vector<T, W> x = *(const Vector<T, W>*)(a + d);
    Vector<T, W> y[count];
    SHAMISA_UNROLL
    for (int u = 0; u < count; ++u) y[u] = *(const Vector<T, W>*)(b[u] + d);
    SHAMISA_UNROLL
    for (int u = 0; u < count; ++u) SHAMISA_UNROLL
    for (int w = 0; w < W; ++w) {
      const Sum difference = (Sum)x.v[w] - (Sum)y[u].v[w];
      part[u][w] = fused(difference, difference, part[u][w]);
    }
  }
  SHAMISA_UNROLL
  for (int u = 0; u < count; ++u) {
    SHAMISA_UNROLL
    for (int half = W / 2; half > 0; half /= 2) SHAMISA_UNROLL
    for (int w = 0; w < half; ++w) part[u][w] += part[u][w + half];
    sum[u] = warp_sum(part[u][0]);
  }
}

// A block and the n candidates of its row i, in shared steps with a barrier after each.
template <class T, int W>
struct RowOfCandidates {
  const NeighborRows<T>& g;
  const Candidates& from;
  int64_t i;
  int n;
  int32_t *rows, *rows_by;       // the second is sorted
  double *squared, *squared_by;  // likewise

  SHAMISA_DEVICE RowOfCandidates(const NeighborRows<T>& g, const Candidates& from, int64_t i)
      : g(g), from(from), i(i), n(from.count[i]) {
    const int64_t at = i * from.capacity;
    rows = from.row[0] + at, rows_by = from.row[1] + at;
    squared = from.squared[0] + at, squared_by = from.squared[1] + at;
  }
  SHAMISA_DEVICE const T* row(int64_t j) const { return g.h + j * g.F; }

  // squared[c] by differences for those for which wanted(c), `together` by a warp at once
  template <class F>
  SHAMISA_DEVICE void measure(F wanted) const {
    constexpr int together = NeighborLaunch::together;
    const int warps = (int)blockDim.x / 32;
    for (int c = (int)threadIdx.x / 32 * together; c < n; c += warps * together) {
      const T* other[together];
      T sum[together];
      bool want[together], any = false;
      SHAMISA_UNROLL
      for (int u = 0; u < together; ++u) {
        want[u] = c + u < n && wanted(c + u);
        other[u] = row(want[u] ? rows[c + u] : i);
        any |= want[u];
      }
      if (!any) continue;
      squared_distances<T, T, W>(row(i), other, g.F, sum);
      __syncwarp();  // all lanes have read what is written now
      SHAMISA_UNROLL
      for (int u = 0; u < together; ++u)
        if (lane_of_warp() == u && want[u]) squared[c + u] = (double)sum[u];
    }
    __syncthreads();
  }
  SHAMISA_DEVICE void sort() const {
    for (int c = (int)threadIdx.x; c < n; c += (int)blockDim.x) {
      const int place = place_of(c, n, squared, rows);
      squared_by[place] = squared[c];
      rows_by[place] = rows[c];
    }
    __syncthreads();
  }
  // those that are within `share` of the one before or after them are measured again, summed in Sum; the rest is as it was
  template <class Sum>
  SHAMISA_DEVICE void measure_close(double share) const {
    sort();
    const auto close = [&](int c) {  // to the one after it
      return c >= 0 && c + 1 < n && squared_by[c + 1] - squared_by[c] <= share * squared_by[c + 1];
    };
    for (int c = (int)threadIdx.x / 32; c < n; c += (int)blockDim.x / 32) {
      Sum again[1];
      const bool want = close(c - 1) || close(c);
      if (want) {
        const T* other[1] = {row(rows_by[c])};
        squared_distances<T, Sum, W>(row(i), other, g.F, again);
      }
      if (lane_of_warp() == 0) squared[c] = want ? (double)again[0] : squared_by[c], rows[c] = rows_by[c];
    }
    __syncthreads();
  }
  // distance [N, k], neighbor [N, k], nearest first; a row without enough finite distances is filled up with (NaN, N - 1).
  // last(squared distance) by one thread for place k - 1
  template <class F>
  SHAMISA_DEVICE void write(int64_t k, T* distance, int64_t* neighbor, F last) const {
    for (int c = (int)threadIdx.x; c < n; c += (int)blockDim.x) {
      const int place = place_of(c, n, squared, rows);
      if (place < k) {
        neighbor[i * k + place] = rows[c];
        distance[i * k + place] = (T)square_root(squared[c]);
      }
      if (place == k - 1) last(squared[c]);
    }
    for (int64_t c = n + (int)threadIdx.x; c < k; c += (int)blockDim.x) {
      neighbor[i * k + c] = g.N - 1;
      distance[i * k + c] = (T)not_a_number();
    }
  }
};

// grid: rows of the panel; block: NeighborLaunch::threads. A block a row: the order of its candidates, and whether their
// choice is in doubt. Double distances are all measured, and never in doubt.
template <class T, int W>
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_refine(NeighborRows<T> g, Candidates from, int64_t first, int64_t k, T* distance, int64_t* neighbor) {
  const RowOfCandidates<T, W> own(g, from, first + blockIdx.x);
  const int64_t i = own.i;
  const double wrong = product_error(g.F, ProductTile<float>::columns_per_sum, 8), norm = (double)g.norm[i];
  if (sizeof(T) == 8) {
    own.measure([](int) { return true; });
  } else {
    own.measure([&](int c) { return !(of_product * own.squared[c] > wrong * (norm + (double)g.norm[own.rows[c]])); });
    own.template measure_close<T>(close_call * of_product);  // right but for the order of those as good as equal
    own.template measure_close<double>(close_call * difference_error<W>(g.F));
  }
  if (threadIdx.x == 0 && own.n < k) from.reach[i] = -1;
  own.write(k, distance, neighbor, [&](double squared) {
    // Could a row that is no candidate be among the k? It is then no farther, so its norm is bounded too, and that bounds
    // how wrong its key is. (Rows equal to this one tie.)
    const double reach = squared * (1 + of_product), farthest = square_root(norm) + square_root(reach);
    const double least = from.last[i] - wrong * (norm + farthest * farthest * (1 + of_product));
    const bool all = own.n < from.capacity || own.n == g.N - 1;
    from.reach[i] = sizeof(T) == 4 && !all && squared > 0 && least <= reach ? reach : -1.;
  });
}

// grid: rows of the panel; block: NeighborLaunch::doubt_threads; shared: 1 KiB. A block a row, which ends at once unless the
// choice is in doubt. Else all that could be among the k are measured by differences: they take the place of the keys, NaN
// that of the rest, and the candidates are chosen again.
template <class T, int W>
__global__ void __launch_bounds__(NeighborLaunch::doubt_threads)
    neighbor_doubt(NeighborRows<T> g, Candidates from, int64_t first, int64_t k, T* key, T* distance, int64_t* neighbor) {
  constexpr int together = NeighborLaunch::together;
  __shared__ int histogram[256];
  const int64_t i = first + blockIdx.x;
  const double reach = from.reach[i];
  if (!(reach >= 0)) return;
  T* keys = key + (i - first) * g.N;
  const T* own = g.h + i * g.F;
  const double wrong = product_error(g.F, ProductTile<float>::columns_per_sum, 8), norm = (double)g.norm[i];
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  for (int64_t j0 = warp * 32; j0 < g.N; j0 += NeighborLaunch::doubt_threads) {
    const int64_t j = j0 + lane;
    const bool maybe = j < g.N && (double)keys[j] - wrong * (norm + (double)g.norm[j]) <= reach;
    unsigned left = __ballot_sync(whole_warp, maybe);
    T measured = (T)not_a_number();
    while (left) {
      const T* other[together];
      T sum[together];
      int at[together];
      SHAMISA_UNROLL
      for (int u = 0; u < together; ++u) {
        at[u] = __ffs((int)left) - 1;  // -1: none is left
        other[u] = at[u] < 0 ? own : g.h + (j0 + at[u]) * g.F;
        left &= left - 1;
      }
      squared_distances<T, T, W>(own, other, g.F, sum);
      SHAMISA_UNROLL
      for (int u = 0; u < together; ++u) measured = lane == at[u] ? sum[u] : measured;
    }
    if (j < g.N) keys[j] = measured;
  }
  __syncthreads();
  if (warp == 0) select_row<T>(keys, g.N, i, histogram, from);
  __syncthreads();
  const RowOfCandidates<T, W> row(g, from, i);
  row.template measure_close<double>(close_call * difference_error<W>(g.F));
  row.write(k, distance, neighbor, [](double) {});
}

SHAMISA_END
