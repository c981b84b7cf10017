// A tile of X Y^T in registers, in float32 or float64 arithmetic proper (no tensor cores, whatever torch allows them).
#pragma once

#include "../warp.cuh"

SHAMISA_BEGIN

// A block makes rows x rows products; a thread makes micro x micro of them: those of rows ty + lines u and columns
// tx + lines v. That stride, and the pitch of a stored row, let eight neighbouring threads read 16 bytes each without two of
// them meeting in a bank.
template <class T>
struct ProductTile {
  static constexpr int rows = 64;
  static constexpr int micro = sizeof(T) == 4 ? 8 : 4;
  static constexpr int lines = rows / micro;
  static constexpr int threads = lines * lines;      // 64 or 256
  static constexpr int depth = 64 / (int)sizeof(T);  // columns held in shared memory at a time: 64 bytes of a row
  static constexpr int pitch = depth + wide<T>;      // 80 bytes: 5 mod 8 units of 16 bytes
  static constexpr bool restarts = sizeof(T) == 4;   // float sums of a few columns are put aside: smaller errors
  static constexpr int columns_per_sum = 64;
  static constexpr int steps_per_sum = columns_per_sum / depth;
};

// shared: 36 KiB for float, 20 KiB for double
template <class T>
struct ProductMemory {
  using Tile = ProductTile<T>;
  alignas(16) T x[2][Tile::rows * Tile::pitch];
  alignas(16) T y[2][Tile::rows * Tile::pitch];
  T sum[Tile::restarts ? Tile::micro * Tile::micro * Tile::threads : 1];  // of each thread its own
};

// the rows [first, first + Tile::rows) of x [rows, D], columns [d, d + depth), zeros where there are none
template <class T, int W>
SHAMISA_DEVICE void product_load(const T* x, int64_t rows, int64_t first, int64_t D, int64_t d, T* to) {
  using Tile = ProductTile<T>;
  constexpr int pieces = Tile::depth / W;  // of a row
  SHAMISA_UNROLL
  for (int p = (int)threadIdx.x; p < Tile::rows * pieces; p += Tile::threads) {
    const int r = p / pieces, c = p % pieces * W;
    const bool real = first + r < rows && d + c < D;
    copy_async<W*(int)sizeof(T)>(to + r * Tile::pitch + c, real ? x + (first + r) * D + d + c : x, real);
  }
}

// f(row, column, product) for the tile that starts at (x0, y0), those outside x_rows, y_rows included. Every product is summed
// in the same order, wherever it lies in a tile, and that of (i, j) is that of (j, i). Block: Tile::threads; all of them.
// W: elements copied at once; D is a multiple of it. Over the columns [first, last), last = D or both multiples of
// columns_per_sum.
template <class T, int W, class F>
SHAMISA_DEVICE void product_tile(const T* x, int64_t x_rows, int64_t x0, const T* y, int64_t y_rows, int64_t y0, int64_t D,
                                 int64_t first, int64_t last, ProductMemory<T>& memory, F f) {
  using Tile = ProductTile<T>;
  constexpr int M = Tile::micro, Q = wide<T>;
  const int tx = (int)threadIdx.x % Tile::lines, ty = (int)threadIdx.x / Tile::lines;
  T sum[M][M];
  SHAMISA_UNROLL
  for (int u = 0; u < M; ++u) SHAMISA_UNROLL
  for (int v = 0; v < M; ++v) sum[u][v] = 0;
  T* const kept = memory.sum + threadIdx.x;
  const int64_t steps = (last - first + Tile::depth - 1) / Tile::depth;
  if (steps > 0) {
    product_load<T, W>(x, x_rows, x0, D, first, memory.x[0]);
    product_load<T, W>(y, y_rows, y0, D, first, memory.y[0]);
  }
  copy_commit();
  for (int64_t s = 0; s < steps; ++s) {
    copy_wait<0>();
    __syncthreads();  // step s has arrived for all, and nobody works on the other half any more
    if (s + 1 < steps) {
      product_load<T, W>(x, x_rows, x0, D, first + (s + 1) * Tile::depth, memory.x[(s + 1) % 2]);
      product_load<T, W>(y, y_rows, y0, D, first + (s + 1) * Tile::depth, memory.y[(s + 1) % 2]);
    }
    copy_commit();
    const T *a = memory.x[s % 2] + ty * Tile::pitch, *b = memory.y[s % 2] + tx * Tile::pitch;
    SHAMISA_UNROLL
    for (int d = 0; d < Tile::depth; d += Q) {
      Vector<T, Q> left[M];
      SHAMISA_UNROLL
      for (int u = 0; u < M; ++u) left[u] = *(const Vector<T, Q>*)(a + u * Tile::lines * Tile::pitch + d);
      SHAMISA_UNROLL
      for (int v = 0; v < M; ++v) {
        const Vector<T, Q> right = *(const Vector<T, Q>*)(b + v * Tile::lines * Tile::pitch + d);
        SHAMISA_UNROLL
        for (int q = 0; q < Q; ++q) SHAMISA_UNROLL
        for (int u = 0; u < M; ++u) sum[u][v] = fused(left[u].v[q], right.v[q], sum[u][v]);
      }
    }
    if (Tile::restarts && s % Tile::steps_per_sum == Tile::steps_per_sum - 1) {
      const bool begin = s < Tile::steps_per_sum;
      SHAMISA_UNROLL
      for (int u = 0; u < M; ++u) SHAMISA_UNROLL
      for (int v = 0; v < M; ++v) {
        T& k = kept[(u * M + v) * Tile::threads];
        k = begin ? sum[u][v] : k + sum[u][v];
        sum[u][v] = 0;
      }
    }
  }
  const bool aside = Tile::restarts && steps >= Tile::steps_per_sum;
  SHAMISA_UNROLL
  for (int u = 0; u < M; ++u) SHAMISA_UNROLL
  for (int v = 0; v < M; ++v) {
    const T total = aside ? kept[(u * M + v) * Tile::threads] + sum[u][v] : sum[u][v];
    f(x0 + ty + u * Tile::lines, y0 + tx + v * Tile::lines, total);
  }
}

SHAMISA_END
