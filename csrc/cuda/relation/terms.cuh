// Variance and covariance of embeddings on CUDA, without torch.
#pragma once

#include "../../relation/constants.h"
#include "tile.cuh"

SHAMISA_BEGIN

struct TermsLaunch {
  static constexpr int threads = 256;
  static constexpr int columns = 8;  // of a block of column_moments: 32 bytes of a row
  static constexpr int sum_threads = 1024;
  static constexpr int tile_threads = 128;  // as Tile
  static constexpr int tile_blocks = 4;     // per multiprocessor
};

// mean [E] and unbiased variance [E] of the columns of x [n, E]. grid: ceil(E / columns); block: threads; shared: 1 KB. Sums in
// double of differences from the first row, in a fixed order. Reads n E elements once. Also sets *finished = 0.
template <class T>
__global__ void __launch_bounds__(TermsLaunch::threads)
    column_moments(const T* x, int64_t n, int64_t E, T* mean, T* variance, unsigned* finished) {
  constexpr int columns = TermsLaunch::columns, warps = TermsLaunch::threads / 32;
  __shared__ double partial[2][warps][columns];
  if (blockIdx.x == 0 && threadIdx.x == 0) *finished = 0;
  const int64_t e = (int64_t)blockIdx.x * columns + threadIdx.x % columns;
  const double first = e < E ? (double)x[e] : 0;
  double sum = 0, square = 0;
  if (e < E) {
    SHAMISA_UNROLL
    for (int64_t row = (int)threadIdx.x / columns; row < n; row += TermsLaunch::threads / columns) {
      const double d = (double)x[row * E + e] - first;
      sum += d;
      square = fused(d, d, square);
    }
  }
  for (int step = columns; step < 32; step *= 2) {
    sum += __shfl_xor_sync(whole_warp, sum, step);
    square += __shfl_xor_sync(whole_warp, square, step);
  }
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  if (lane < columns) partial[0][warp][lane] = sum, partial[1][warp][lane] = square;
  __syncthreads();
  if (threadIdx.x >= columns || e >= E) return;
  sum = square = 0;
  for (int w = 0; w < warps; ++w) sum += partial[0][w][lane], square += partial[1][w][lane];
  mean[e] = (T)(first + sum / (double)n);
  variance[e] = (T)((square - sum * sum / (double)n) / (double)(n - 1));
}

// grid: 1; block: sum_threads; shared: 256 bytes. value = mean over e of relu(1 - sqrt(variance + eps)); NaN stays NaN.
template <class T>
__global__ void __launch_bounds__(TermsLaunch::sum_threads) variance_value(const T* variance, int64_t E, T* value) {
  __shared__ double slots[32];
  double sum = 0;
  for (int64_t e = threadIdx.x; e < E; e += TermsLaunch::sum_threads) {
    const double missing = 1 - square_root((double)variance[e] + variance_eps);
    sum += missing <= 0 ? 0 : missing;
  }
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) *value = (T)(sum / (double)E);
}

// grid: ceil(n E / threads); block: threads. out [n, E] = slope of the value in x, times grad.
template <class T>
__global__ void __launch_bounds__(TermsLaunch::threads)
    variance_gradient(const T* grad, const T* x, const T* mean, const T* variance, int64_t n, int64_t E, T* out) {
  const int64_t at = (int64_t)blockIdx.x * TermsLaunch::threads + threadIdx.x;
  if (at >= n * E) return;
  const int64_t e = at % E;
  const T deviation = square_root((T)(variance[e] + (T)variance_eps));
  const T slope = deviation < 1 ? -*grad / ((T)(n - 1) * (T)E * deviation) : T(0);
  out[at] = slope * (x[at] - mean[e]);
}

// ---- covariance ------------------------------------------------------------------------------------------------------
// Centred rows x - mean: [n, E]. The moment is [m, m], m = min(n, E): of the columns for n >= E, else of the rows.
template <class T>
struct Centred {
  const T *x, *mean, *variance;
  int64_t n, E;
  SHAMISA_HD bool by_columns() const { return n >= E; }
  SHAMISA_HD int64_t m() const { return n < E ? n : E; }
  SHAMISA_HD int64_t depth() const { return n < E ? E : n; }
  SHAMISA_DEVICE T at(int64_t row, int64_t e) const { return x[row * E + e] - mean[e]; }
};

// row and column of tile t of an upper triangle of `tiles` rows of tiles
SHAMISA_DEVICE void upper_tile(int t, int tiles, int* row, int* column) {
  *row = 0;
  for (; t >= tiles - *row; ++*row) t -= tiles - *row;
  *column = *row + t;
}

// grid: upper tiles times splits; block: tile_threads; shared: 9 KB (float), 17 KB (double). partial [splits, upper tiles, 64,
// 64]: products of the centred columns (or rows), each over one of `splits` parts of the depth.
template <bool by_columns, class T>
__global__ void __launch_bounds__(TermsLaunch::tile_threads)
    moment_tiles(const Centred<T> c, int tiles, int splits, T* partial) {
  __shared__ typename Tile<T>::Memory memory;
  constexpr int size = Tile<T>::size;
  const int upper = tiles * (tiles + 1) / 2, split = (int)blockIdx.x / upper;
  int row, column;
  upper_tile((int)blockIdx.x % upper, tiles, &row, &column);
  const int64_t m = c.m(), i0 = (int64_t)row * size, j0 = (int64_t)column * size, depth = c.depth();
  const auto load = [&](int64_t i, int d) { return i < m ? (by_columns ? c.at(d, i) : c.at(i, d)) : T(0); };
  const auto a = [&](int r, int d) { return load(i0 + r, d); };
  const auto b = [&](int r, int d) { return load(j0 + r, d); };
  Tile<T> tile;
  tile.template product<!by_columns, !by_columns>(memory, (int)(depth * split / splits), (int)(depth * (split + 1) / splits), a,
                                                  b);
  T* out = partial + (int64_t)blockIdx.x * size * size;
  SHAMISA_UNROLL
  for (int r = 0; r < 8; ++r) {
    SHAMISA_UNROLL
    for (int k = 0; k < 4; ++k) out[tile.row(r) * size + tile.column(k)] = tile.sum[r][k];
  }
}

// grid: upper tiles; block: threads; shared: 260 bytes. Adds the splits: moment [m, m], both halves; squares [grid]; the last
// block makes the value from them.
template <class T>
__global__ void __launch_bounds__(TermsLaunch::threads) moment_join(const Centred<T> c, int tiles, int splits, const T* partial,
                                                                    double* squares, unsigned* finished, T* moment, T* value) {
  __shared__ double slots[32];
  __shared__ int flag;
  constexpr int size = Tile<T>::size;
  int row, column;
  upper_tile((int)blockIdx.x, tiles, &row, &column);
  const int64_t m = c.m(), step = (int64_t)gridDim.x * size * size;
  const T share = 1 / (T)(c.n - 1);
  double sum = 0;
  for (int at = (int)threadIdx.x; at < size * size; at += TermsLaunch::threads) {
    const int64_t i = (int64_t)row * size + at / size, j = (int64_t)column * size + at % size;
    if (i >= m || j >= m || j < i) continue;
    const T* p = partial + (int64_t)blockIdx.x * size * size + at;
    T product = p[0];
    for (int s = 1; s < splits; ++s) product += p[s * step];
    product *= share;
    moment[i * m + j] = moment[j * m + i] = product;
    if (i != j)
      sum += 2 * (double)product * (double)product;
    else if (!c.by_columns())
      sum += (double)product * (double)product;
  }
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) squares[blockIdx.x] = sum;
  if (!last_block(finished, &flag)) return;
  sum = 0;
  for (int64_t t = threadIdx.x; t < gridDim.x; t += TermsLaunch::threads) sum += squares[t];
  if (!c.by_columns())  // the Gram matrix has the squares of the diagonal of the covariance in it
    for (int64_t e = threadIdx.x; e < c.E; e += TermsLaunch::threads) sum -= (double)c.variance[e] * (double)c.variance[e];
  __syncthreads();
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) *value = (T)(sum / (double)c.E);
}

// grid: tiles of n times tiles of E; block: tile_threads; shared as moment_tiles. out [n, E] = 4 grad / (E (n - 1)) times the
// centred rows times the off-diagonal part of the covariance.
template <bool by_columns, class T>
__global__ void __launch_bounds__(TermsLaunch::tile_threads)
    covariance_gradient(const Centred<T> c, const T* grad, const T* moment, T* out) {
  __shared__ typename Tile<T>::Memory memory;
  constexpr int size = Tile<T>::size;
  const int64_t columns = (c.E + size - 1) / size, i0 = blockIdx.x / columns * size, j0 = blockIdx.x % columns * size;
  const int64_t m = c.m();
  const auto a = [&](int r, int d) {
    const int64_t i = i0 + r;
    return i < c.n ? (by_columns ? c.at(i, d) : moment[i * m + d]) : T(0);
  };
  const auto b = [&](int r, int d) {
    const int64_t j = j0 + r;
    return j < c.E ? (by_columns ? moment[d * m + j] : c.at(d, j)) : T(0);
  };
  Tile<T> tile;
  tile.template product<true, false>(memory, 0, (int)m, a, b);
  const T scale = (T)(4 / ((double)c.E * (double)(c.n - 1))) * *grad;
  SHAMISA_UNROLL
  for (int r = 0; r < 8; ++r) {
    SHAMISA_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int64_t i = i0 + tile.row(r), j = j0 + tile.column(k);
      if (i < c.n && j < c.E) out[i * c.E + j] = scale * (tile.sum[r][k] - c.at(i, j) * c.variance[j]);
    }
  }
}

SHAMISA_END
