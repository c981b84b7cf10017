// The k nearest rows of every row on CUDA, without torch. As csrc/relation/neighbors.h:
//
// 1. Squared distances |x_i|^2 + |x_j|^2 - 2 x_i . x_j of all pairs, into a matrix of bounded size: whole and by symmetry, or
//    panel of rows after panel of rows. x is h less a common center: distances stay, but the products, and with them the
//    rounding, shrink to the spread of the rows.
// 2. Each row keeps its k + margin smallest, ties to the smaller j; NaN never.
// 3. Where that cannot be shown to be exact enough, those few are measured again by their differences, and in double where
//    two are close: that decides the order.
// 4. A row for which even the choice is in doubt (a tight cluster far from the center) is measured against all that could be
//    nearer. A block a row is launched for that whether or not there is any such row: the host need not know.
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
  static constexpr int together = 4;      // candidates that a warp measures at once: loads in flight
  static constexpr int doubt_warps = 16;  // of a row in doubt: they are few, and the others wait for them
  static constexpr int doubt_threads = 32 * doubt_warps;
  static constexpr int parts = 16;         // at most, of the products of few rows
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
  double* squared[2];  // [N, capacity]; at first the keys
  double* last;        // [N], the largest key of a candidate
  double* reach;       // [N], where the choice is in doubt: no k-th row is farther (squared); else less than 0
};

// The relative error that a squared distance from a product may have, or else it is measured again
constexpr double of_product = 1.5e-5;
// and two that are closer than so many relative errors do not tell their order
constexpr double close_call = 2.5;

// Float products are summed in stretches of columns_per_sum columns: each is wrong by at most (columns_per_sum + stretches)
// u |x_i| |x_j|, u = 2^-24; norms, center and the subtractions add at most 8 u (|x_i|^2 + |x_j|^2). So this times
// (|x_i|^2 + |x_j|^2) bounds the error of a key.
SHAMISA_DEVICE double product_error(int64_t F) {
  constexpr int columns = ProductTile<float>::columns_per_sum;
  return (double)(columns + (F + columns - 1) / columns + 8) / (1 << 24);
}
// the relative error of squared_distances in float: W sums a lane, joined, and those of the lanes; the differences
template <int W>
SHAMISA_DEVICE double difference_error(int64_t F) {
  return (double)((F + 32 * W - 1) / (32 * W) + W / 2 + 5 + 3) / (1 << 24);
}

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

// row and column, row <= column, of tile b of a matrix: b = column (column + 1) / 2 + row
struct TileOfPairs {
  int64_t row, column;
  SHAMISA_DEVICE explicit TileOfPairs(int64_t b) {
    column = (int64_t)((square_root(8. * (double)b + 1.) - 1.) / 2.);
    while (column * (column + 1) / 2 > b) --column;
    while ((column + 1) * (column + 2) / 2 <= b) ++column;
    row = b - column * (column + 1) / 2;
  }
};
// from the product of rows i and j; NaN on the diagonal, so that no row is its own neighbour
template <class T>
SHAMISA_DEVICE T squared_from(const NeighborRows<T>& g, int64_t i, int64_t j, T dot) {
  return i == j ? (T)not_a_number() : g.norm[i] + g.norm[j] - 2 * dot;
}

// Squared distances key [rows of the panel, N]. block: ProductTile<T>::threads; shared: ProductMemory<T>. symmetric: the panel
// is the whole matrix and the grid its t (t + 1) / 2 tiles on or above the diagonal, each written on both sides; else grid:
// (tiles of N, tiles of the panel).
template <class T, int W, bool symmetric>
__global__ void __launch_bounds__(ProductTile<T>::threads, sizeof(T) == 4 ? 6 : 2)
    neighbor_keys(NeighborRows<T> g, int64_t first, int64_t last, T* key) {
  using Tile = ProductTile<T>;
  __shared__ ProductMemory<T> memory;
  int64_t row = blockIdx.y, column = blockIdx.x;
  if (symmetric) {
    const TileOfPairs tile(blockIdx.x);
    row = tile.row, column = tile.column;
  }
  const bool both = symmetric && row != column;
  product_tile<T, W>(g.x, last, first + row * Tile::rows, g.x, g.N, column * Tile::rows, g.F, 0, g.F, memory,
                     [&](int64_t i, int64_t j, T dot) {
                       if (i >= last || j >= g.N) return;
                       const T squared = squared_from(g, i, j, dot);
                       key[(i - first) * g.N + j] = squared;
                       if (both) key[(j - first) * g.N + i] = squared;
                     });
}

// For few rows, whose tiles alone would leave most multiprocessors idle: grid: (tiles as of the symmetric neighbor_keys,
// parts); block and shared likewise. part [parts, tiles, rows, rows]: the products over one part of the columns each.
template <class T, int W>
__global__ void __launch_bounds__(ProductTile<T>::threads, sizeof(T) == 4 ? 4 : 2)
    neighbor_products(NeighborRows<T> g, T* part) {
  using Tile = ProductTile<T>;
  __shared__ ProductMemory<T> memory;
  const TileOfPairs tile(blockIdx.x);
  const int64_t stretches = (g.F + Tile::columns_per_sum - 1) / Tile::columns_per_sum, x0 = tile.row * Tile::rows;
  const int64_t first = stretches * blockIdx.y / gridDim.y * Tile::columns_per_sum, y0 = tile.column * Tile::rows;
  const int64_t last = min_of(stretches * (blockIdx.y + 1) / gridDim.y * Tile::columns_per_sum, g.F);
  T* to = part + ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * Tile::rows * Tile::rows;
  product_tile<T, W>(g.x, g.N, x0, g.x, g.N, y0, g.F, first, last, memory,
                     [&](int64_t i, int64_t j, T dot) { to[(i - x0) * Tile::rows + j - y0] = dot; });
}

// grid: tiles; block: NeighborLaunch::threads. key [N, N] from the parts of the products, added in order.
template <class T>
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_join(NeighborRows<T> g, const T* part, int64_t parts, T* key) {
  constexpr int rows = ProductTile<T>::rows;
  const TileOfPairs tile(blockIdx.x);
  const int64_t step = (int64_t)gridDim.x * rows * rows;
  for (int at = (int)threadIdx.x; at < rows * rows; at += NeighborLaunch::threads) {
    const int64_t i = tile.row * rows + at / rows, j = tile.column * rows + at % rows;
    if (i >= g.N || j >= g.N) continue;
    const T* from = part + (int64_t)blockIdx.x * rows * rows + at;
    T dot = from[0];
    for (int64_t p = 1; p < parts; ++p) dot += from[p * step];
    const T squared = squared_from(g, i, j, dot);
    key[i * g.N + j] = squared;
    if (tile.row != tile.column) key[j * g.N + i] = squared;
  }
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

// A warp: the candidates of row i from its keys own [N]. Finds the value of the last place digit by digit (histograms of 8 bits
// from the highest that differs), then lists the rows up to it, ties by the smaller j. Reads own about five times, mostly from
// the first cache. bins: shared [256], of this warp.
template <class T>
SHAMISA_DEVICE void select_row(const T* own, int64_t N, int64_t i, int* bins, const Candidates& to) {
  using Bits = decltype(ordered(T(0)));
  constexpr int bits = 8 * (int)sizeof(T);
  const int lane = lane_of_warp();
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
  double *out_key = to.squared[0] + i * to.capacity, last = not_a_number();
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
    if (take) {
      const int at = place + __popc(taken & before_me);
      out[at] = (int32_t)(j0 + lane), out_key[at] = (double)x;
      last = last > (double)x ? last : (double)x;
    }
    place += __popc(taken);
  }
  SHAMISA_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(whole_warp, last, step);
    last = last >= other || other != other ? last : other;
  }
  if (lane == 0) to.last[i] = last;
}

// grid: ceil(rows of the panel / NeighborLaunch::warps); block: NeighborLaunch::threads; shared: 4 KiB. A warp a row of key
// [rows, N].
template <class T>
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_select(const T* key, int64_t N, int64_t first, int64_t last, Candidates to) {
  __shared__ int histogram[NeighborLaunch::warps][256];
  const int warp = (int)threadIdx.x / 32;
  const int64_t i = first + (int64_t)blockIdx.x * NeighborLaunch::warps + warp;
  if (i < last) select_row<T>(key + (i - first) * N, N, i, histogram[warp], to);
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
  const double wrong = product_error(g.F), norm = (double)g.norm[i];
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
  const double wrong = product_error(g.F), norm = (double)g.norm[i];
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
