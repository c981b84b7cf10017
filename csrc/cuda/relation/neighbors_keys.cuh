// Squared distances of all pairs of rows from their products: step 1 of neighbors.cuh.
#pragma once

#include "../../relation/neighbors.h"
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
  static constexpr int parts = 16;        // at most, of the products of few rows
  static constexpr int center_warps = 8;  // of a block, over 32 columns
};

template <class T>
struct NeighborRows {
  const T* h;     // [N, F]
  const T* x;     // [N, F], h - center
  const T* norm;  // [N], |x|^2
  int64_t N, F;
};

// grid: ceil(F / 32); block: 32 center_warps; shared: 1 or 2 KiB. center [F]: the mean of center_rows rows or fewer; any
// center is right, only better or worse. A column with rows that are not finite stays where it is: they spoil themselves only.
template <class T>
__global__ void __launch_bounds__(32 * NeighborLaunch::center_warps)
    neighbor_center(const T* h, int64_t N, int64_t F, T* center) {
  __shared__ T sums[NeighborLaunch::center_warps][32];
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  const int64_t d = (int64_t)blockIdx.x * 32 + lane;
  const int64_t step = (N + center_rows - 1) / center_rows;
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

SHAMISA_END
