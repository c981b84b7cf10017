// The k nearest rows of every row on CUDA, without torch. As csrc/relation/neighbors.h:
//
// 1. Squared distances |x_i|^2 + |x_j|^2 - 2 x_i . x_j of all pairs, into a matrix of bounded size: whole and by symmetry, or
//    panel of rows after panel of rows. x is h less a common center: distances stay, but the products, and with them the
//    rounding, shrink to the spread of the rows.
// 2. Each row keeps its k + margin smallest, ties to the smaller j; NaN never.
// 3. Those few are measured again by their differences, and in double where two are close: that decides the order.
#pragma once

#include "../relation/arguments.h"
#include "incidence.cuh"
#include "product.cuh"

SHAMISA_BEGIN

struct NeighborLaunch {
#if defined(SHAMISA_EMULATE)
  static constexpr int64_t memory_bytes = 64 << 10;  // small tests meet panels too
#else
  static constexpr int64_t memory_bytes = 64 << 20;  // of the matrix of distances; a panel has at least one tile of rows
#endif
  static constexpr int warps = 4;  // of norm, select and refine
  static constexpr int threads = 32 * warps;
  static constexpr int together = 4;       // candidates that a warp measures at once: loads in flight
  static constexpr int center_warps = 8;   // of a block, over 32 columns
  static constexpr int center_rows = 128;  // rows whose mean is the center
};

template <class T>
struct NeighborRows {
  const T* h;     // [N, F]
  const T* x;     // [N, F], h - center
  const T* norm;  // [N], |x|^2
  int64_t N, F;
};

// What is known of the candidates of each row; two of each, for sorting from one into the other
struct Candidates {
  int capacity;
  int32_t* count;      // [N]
  int32_t* row[2];     // [N, capacity]; `count` of them are set
  double* squared[2];  // [N, capacity]
};

// grid: ceil(F / 32); block: 32 center_warps; shared: 1 or 2 KiB. center [F]: the mean of center_rows rows or fewer; any
// center is right, only better or worse. A column with rows that are not finite stays where it is: they spoil themselves only.
template <class T>
__global__ void __launch_bounds__(32 * NeighborLaunch::center_warps)
    neighbor_center(const T* h, int64_t N, int64_t F, T* center) {
  __shared__ T sums[NeighborLaunch::center_warps][32];
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  const int64_t d = (int64_t)blockIdx.x * 32 + lane;
  const int64_t step = (N + NeighborLaunch::center_rows - 1) / NeighborLaunch::center_rows;
  T sum = 0;
  if (d < F)
    for (int64_t i = warp * step; i < N; i += NeighborLaunch::center_warps * step) sum += h[i * F + d];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || d >= F) return;
  for (int w = 1; w < NeighborLaunch::center_warps; ++w) sum += sums[w][lane];
  const T mean = sum / (T)((N + step - 1) / step);
  center[d] = mean - mean == 0 ? mean : T(0);
}

// grid: ceil(N / NeighborLaunch::warps); block: NeighborLaunch::threads. A warp a row: x = h - center, norm = |x|^2, summed in
// double. Reads h once, writes x once.
template <class T>
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_norms(const T* h, const T* center, int64_t N, int64_t F, T* x, T* norm) {
  const int64_t i = (int64_t)blockIdx.x * NeighborLaunch::warps + threadIdx.x / 32;
  if (i >= N) return;
  double sum = 0;
  for (int64_t d = lane_of_warp(); d < F; d += 32) {
    const T v = h[i * F + d] - center[d];
    x[i * F + d] = v;
    sum += (double)v * (double)v;
  }
  sum = warp_sum(sum);
  if (lane_of_warp() == 0) norm[i] = (T)sum;
}

// Squared distances key [rows of the panel, N]; NaN on the diagonal, so that no row is its own neighbour.
// block: ProductTile<T>::threads; shared: ProductMemory<T>. symmetric: the panel is the whole matrix and the grid its
// t (t + 1) / 2 tiles on or above the diagonal, each written on both sides; else grid: (tiles of N, tiles of the panel).
template <class T, int W, bool symmetric>
__global__ void __launch_bounds__(ProductTile<T>::threads, sizeof(T) == 4 ? 6 : 2)
    neighbor_keys(NeighborRows<T> g, int64_t first, int64_t last, T* key) {
  using Tile = ProductTile<T>;
  __shared__ ProductMemory<T> memory;
  int64_t row = blockIdx.y, column = blockIdx.x;
  if (symmetric) {  // block b is tile (row, column) with row <= column and b = column (column + 1) / 2 + row
    const int64_t b = blockIdx.x;
    column = (int64_t)((square_root(8. * (double)b + 1.) - 1.) / 2.);
    while (column * (column + 1) / 2 > b) --column;
    while ((column + 1) * (column + 2) / 2 <= b) ++column;
    row = b - column * (column + 1) / 2;
  }
  const bool both = symmetric && row != column;
  product_tile<T, W>(g.x, last, first + row * Tile::rows, g.x, g.N, column * Tile::rows, g.F, memory,
                     [&](int64_t i, int64_t j, T dot) {
                       if (i >= last || j >= g.N) return;
                       const T squared = i == j ? (T)not_a_number() : g.norm[i] + g.norm[j] - 2 * dot;
                       key[(i - first) * g.N + j] = squared;
                       if (both) key[(j - first) * g.N + i] = squared;
                     });
}

// an unsigned number in the order of x, which is not NaN
SHAMISA_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = bits_of_float(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
SHAMISA_DEVICE uint64_t ordered(double x) {
  uint64_t bits;
#if defined(__CUDA_ARCH__)
  bits = (uint64_t)__double_as_longlong(x);
#else
  __builtin_memcpy(&bits, &x, 8);
#endif
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
SHAMISA_DEVICE int leading_zeros(uint32_t x) { return __clz((int)x); }
SHAMISA_DEVICE int leading_zeros(uint64_t x) { return __clzll((long long)x); }

// grid: ceil(rows of the panel / NeighborLaunch::warps); block: NeighborLaunch::threads; shared: 4 KiB. A warp a row of key
// [rows, N]: finds the value of the last place digit by digit (histograms of 8 bits from the highest that differs), then
// lists the rows up to it, ties by the smaller j. Reads key about five times, mostly from the first cache.
template <class T>
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_select(const T* key, int64_t N, int64_t first, int64_t last, Candidates to) {
  using Bits = decltype(ordered(T(0)));
  constexpr int bits = 8 * (int)sizeof(T);
  __shared__ int histogram[NeighborLaunch::warps][256];
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  const int64_t i = first + (int64_t)blockIdx.x * NeighborLaunch::warps + warp;
  if (i >= last) return;
  const T* own = key + (i - first) * N;
  int* bins = histogram[warp];

  Bits low = ~(Bits)0, high = 0;
  int n = 0;
  for (int64_t j = lane; j < N; j += 32) {
    const T x = own[j];
    if (x != x) continue;
    const Bits v = ordered(x);
    low = min_of(low, v), high = max_of(high, v);
    ++n;
  }
  SHAMISA_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    low = min_of(low, __shfl_xor_sync(whole_warp, low, step));
    high = max_of(high, __shfl_xor_sync(whole_warp, high, step));
    n += __shfl_xor_sync(whole_warp, n, step);
  }
  const int wanted = n < to.capacity ? n : to.capacity;
  if (lane == 0) to.count[i] = wanted;
  if (wanted == 0) return;

  // Wanted are all below `limit` and the first `ties` at it; distances from `low` from here on.
  Bits limit = 0;
  int ties = wanted;
  int shift = max_of(bits - leading_zeros((Bits)(high - low)) - 8, 0);
  for (;;) {
    SHAMISA_UNROLL
    for (int b = 0; b < 8; ++b) bins[b * 32 + lane] = 0;
    __syncwarp();
    for (int64_t j = lane; j < N; j += 32) {
      const T x = own[j];
      if (x != x) continue;
      const Bits digit = (Bits)(ordered(x) - low - limit) >> shift;  // what lies below the limit wraps round
      if (digit < 256) atomicAdd(&bins[(int)digit], 1);
    }
    __syncwarp();
    int mine = 0;
    SHAMISA_UNROLL
    for (int b = 0; b < 8; ++b) mine += bins[lane * 8 + b];
    const int upto = warp_scan(mine);
    const int holder = __ffs((int)__ballot_sync(whole_warp, upto >= ties)) - 1;
    int before = upto - mine, digit = lane * 8;
    while (lane == holder && before + bins[digit] < ties) before += bins[digit++];
    digit = __shfl_sync(whole_warp, digit, holder);
    ties -= __shfl_sync(whole_warp, before, holder);
    const int inside = bins[digit];
    limit += (Bits)digit << shift;
    if (ties == inside && shift > 0) {  // all of this bin: the exact value does not matter
      limit += ((Bits)1 << shift) - 1;
      ties = 0x7fffffff;
      break;
    }
    if (shift == 0) break;
    shift = max_of(shift - 8, 0);
    __syncwarp();  // before the bins are cleared
  }

  int32_t* out = to.row[0] + i * to.capacity;
  const unsigned before_me = (1u << lane) - 1;
  int place = 0;
  for (int64_t j0 = 0; j0 < N; j0 += 32) {
    const T x = j0 + lane < N ? own[j0 + lane] : (T)not_a_number();
    const Bits v = x == x ? (Bits)(ordered(x) - low) : ~(Bits)0;
    const bool some = x == x && v <= limit;
    bool take = some;
    if (ties != 0x7fffffff) {
      const unsigned level = __ballot_sync(whole_warp, some && v == limit);
      take = some && (v != limit || __popc(level & before_me) < ties);
      ties = max_of(ties - __popc(level), 0);
    }
    const unsigned taken = __ballot_sync(whole_warp, take);
    if (take) out[place + __popc(taken & before_me)] = (int32_t)(j0 + lane);
    place += __popc(taken);
  }
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
  SHAMISA_UNROLL
  for (int u = 0; u < count; ++u) sum[u] = 0;
  for (int64_t d = (int64_t)lane_of_warp() * W; d < D; d += 32 * W) {
    const Vector<T, W> x = *(const Vector<T, W>*)(a + d);
    Vector<T, W> y[count];
    SHAMISA_UNROLL
    for (int u = 0; u < count; ++u) y[u] = *(const Vector<T, W>*)(b[u] + d);
    SHAMISA_UNROLL
    for (int u = 0; u < count; ++u) SHAMISA_UNROLL
    for (int w = 0; w < W; ++w) {
      const Sum difference = (Sum)x.v[w] - (Sum)y[u].v[w];
      sum[u] = fused(difference, difference, sum[u]);
    }
  }
  SHAMISA_UNROLL
  for (int u = 0; u < count; ++u) sum[u] = warp_sum(sum[u]);
}

constexpr double close_call = 1e-5;  // relative; several times the rounding of a squared distance summed in float

// grid: N; block: NeighborLaunch::threads. A block a row: reads the row and its candidates once. distance [N, k], neighbor
// [N, k], nearest first; a row without enough finite distances is filled up with (NaN, N - 1).
template <class T, int W>
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_refine(NeighborRows<T> g, Candidates from, int64_t k, T* distance, int64_t* neighbor) {
  constexpr int together = NeighborLaunch::together;
  const int64_t i = blockIdx.x, at = i * from.capacity;
  const int n = from.count[i], warp = (int)threadIdx.x / 32, me = (int)threadIdx.x;
  const T* own = g.h + i * g.F;
  int32_t *rows = from.row[0] + at, *rows_by = from.row[1] + at;
  double *squared = from.squared[0] + at, *squared_by = from.squared[1] + at;
  for (int c = warp * together; c < n; c += NeighborLaunch::warps * together) {
    const T* other[together];
    T sum[together];
    SHAMISA_UNROLL
    for (int u = 0; u < together; ++u) other[u] = c + u < n ? g.h + (int64_t)rows[c + u] * g.F : own;
    squared_distances<T, T, W>(own, other, g.F, sum);
    SHAMISA_UNROLL
    for (int u = 0; u < together; ++u)
      if (lane_of_warp() == u && c + u < n) squared[c + u] = (double)sum[u];
  }
  __syncthreads();
  if (sizeof(T) < 8) {  // summed in float: right but for the order of those that are as good as equal
    for (int c = me; c < n; c += NeighborLaunch::threads) {
      const int place = place_of(c, n, squared, rows);
      squared_by[place] = squared[c];
      rows_by[place] = rows[c];
    }
    __syncthreads();
    const auto close = [&](int c) {  // to the one after it
      return c >= 0 && c + 1 < n && squared_by[c + 1] - squared_by[c] <= close_call * squared_by[c + 1];
    };
    for (int c = warp; c < n; c += NeighborLaunch::warps) {
      double exact[1] = {squared_by[c]};
      if (close(c - 1) || close(c)) {
        const T* other[1] = {g.h + (int64_t)rows_by[c] * g.F};
        squared_distances<T, double, W>(own, other, g.F, exact);
      }
      if (lane_of_warp() == 0) squared[c] = exact[0], rows[c] = rows_by[c];
    }
    __syncthreads();
  }
  for (int c = me; c < n; c += NeighborLaunch::threads) {
    const int place = place_of(c, n, squared, rows);
    if (place < k) {
      neighbor[i * k + place] = rows[c];
      distance[i * k + place] = (T)square_root(squared[c]);
    }
  }
  for (int64_t c = n + me; c < k; c += NeighborLaunch::threads) {
    neighbor[i * k + c] = g.N - 1;
    distance[i * k + c] = (T)not_a_number();
  }
}

// grid: ceil(N k / NeighborLaunch::threads); block: NeighborLaunch::threads. mutual [N, k]: whether row i is also a neighbour
// of its neighbour
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_mutual(const int64_t* neighbor, int64_t N, int64_t k, bool* mutual) {
  const int64_t e = (int64_t)blockIdx.x * NeighborLaunch::threads + threadIdx.x;
  if (e >= N * k) return;
  const int64_t i = e / k, *back = neighbor + neighbor[e] * k;
  bool found = false;
  for (int64_t b = 0; b < k; ++b) found |= back[b] == i;
  mutual[e] = found;
}

// The edges of the gradient in h: from each row to its neighbours, value grad / distance; the slope at distance 0 is 0.
template <class T>
struct NeighborEdges {
  const T *grad, *distance;  // [N, k]
  const int64_t* neighbor;   // [N, k]
  int64_t N, k;

  int64_t count() const { return N * k; }
  SHAMISA_DEVICE void visit(int64_t) const {}
  SHAMISA_DEVICE EdgeEnds ends(int64_t e) const { return EdgeEnds((uint32_t)e / (uint32_t)k, neighbor[e], N); }
  SHAMISA_DEVICE T value(int64_t e) const {
    const T length = distance[e];
    return length > 0 ? grad[e] / length : length == 0 ? T(0) : length;  // NaN stays NaN
  }
};

SHAMISA_END
