// Rows against anchors on CUDA, without torch: normalised products with their gradient, and balanced codes.
#pragma once

#include "../../relation/constants.h"
#include "tile.cuh"

SHAMISA_BEGIN

struct AssignmentLaunch {
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int rows = 16, anchors = 32;  // of a block of assignment_logits
  static constexpr int gradient_rows = 16;       // that are staged together
  static constexpr int gradient_parts = 64;      // at most, of the rows: each has sums of its own for the anchors
  static constexpr int code_rows = 16;
};

// ---- logits ----------------------------------------------------------------------------------------------------------
// grid: ceil(N / rows) times ceil(K / anchors), at least 1; block: threads; shared: 33 KB (double). logits [N,
// K] = x w^T / norm, norm [N] = |x|. Each warp sums its own columns of every staged piece, then the warps' sums are added in
// order. Reads x once for every 32 anchors, w once per block (from the cache).
template <class T>
__global__ void __launch_bounds__(AssignmentLaunch::threads)
    assignment_logits(const T* x /* [N, F] */, const T* w /* [K, F] */, int64_t N, int64_t F, int64_t K, T* logits, T* norm) {
  using A = AssignmentLaunch;
  constexpr int piece = 512 / (int)sizeof(T), pitch = piece + wide<T>, lines = A::threads / piece;
  constexpr int own_rows = A::rows / lines, own_anchors = A::anchors / lines, columns = piece / A::warps;
  constexpr int staged = (A::rows + A::anchors) * pitch, joined = A::warps * A::rows * A::anchors;
  alignas(16) __shared__ T memory[staged > joined ? staged : joined];
  __shared__ T squares[A::warps][own_rows], length[A::rows];
  const int64_t parts = max_of<int64_t>((K + A::anchors - 1) / A::anchors, 1);
  const int64_t i0 = blockIdx.x / parts * A::rows, k0 = blockIdx.x % parts * A::anchors;
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32, line = (int)threadIdx.x / piece;
  const int offset = (int)threadIdx.x % piece;
  T next_x[own_rows], next_w[own_anchors], square[own_rows] = {}, sum[4][4] = {};
  const auto fetch = [&](int64_t d) {
    SHAMISA_UNROLL
    for (int s = 0; s < own_rows; ++s) {
      const int64_t i = i0 + line + lines * s;
      next_x[s] = i < N && d < F ? x[i * F + d] : T(0);
    }
    SHAMISA_UNROLL
    for (int s = 0; s < own_anchors; ++s) {
      const int64_t k = k0 + line + lines * s;
      next_w[s] = k < K && d < F ? w[k * F + d] : T(0);
    }
  };
  fetch(offset);
  for (int64_t d = offset; d < F + offset; d += piece) {
    __syncthreads();  // what was there has been read
    SHAMISA_UNROLL
    for (int s = 0; s < own_rows; ++s) {
      memory[(line + lines * s) * pitch + offset] = next_x[s];
      square[s] = fused(next_x[s], next_x[s], square[s]);
    }
    SHAMISA_UNROLL
    for (int s = 0; s < own_anchors; ++s) memory[(A::rows + line + lines * s) * pitch + offset] = next_w[s];
    __syncthreads();
    fetch(d + piece);
    SHAMISA_UNROLL
    for (int c = 0; c < columns; c += wide<T>) {
      Vector<T, wide<T>> a[4], b[4];
      SHAMISA_UNROLL
      for (int u = 0; u < 4; ++u) {
        a[u] = *(const Vector<T, wide<T>>*)(memory + (lane / 8 * 4 + u) * pitch + warp * columns + c);
        b[u] = *(const Vector<T, wide<T>>*)(memory + (A::rows + lane % 8 + 8 * u) * pitch + warp * columns + c);
      }
      SHAMISA_UNROLL
      for (int v = 0; v < wide<T>; ++v) {
        SHAMISA_UNROLL
        for (int r = 0; r < 4; ++r) {
          SHAMISA_UNROLL
          for (int u = 0; u < 4; ++u) sum[r][u] = fused(a[r].v[v], b[u].v[v], sum[r][u]);
        }
      }
    }
  }
  SHAMISA_UNROLL
  for (int s = 0; s < own_rows; ++s) {  // a warp lies within one line
    square[s] = warp_sum(square[s]);
    if (lane == 0) squares[warp][s] = square[s];
  }
  __syncthreads();
  SHAMISA_UNROLL
  for (int r = 0; r < 4; ++r) {
    SHAMISA_UNROLL
    for (int u = 0; u < 4; ++u) memory[(warp * A::rows + lane / 8 * 4 + r) * A::anchors + lane % 8 + 8 * u] = sum[r][u];
  }
  if (threadIdx.x < A::rows) {
    constexpr int per_line = A::warps / lines;
    const int own = (int)threadIdx.x % lines, s = (int)threadIdx.x / lines;
    T total = 0;
    for (int part = 0; part < per_line; ++part) total += squares[own * per_line + part][s];
    total = square_root(total);
    total = total < (T)least_norm ? (T)least_norm : total;
    length[threadIdx.x] = total;
    if (k0 == 0 && i0 + threadIdx.x < N) norm[i0 + threadIdx.x] = total;
  }
  __syncthreads();
  for (int at = (int)threadIdx.x; at < A::rows * A::anchors; at += A::threads) {
    const int64_t i = i0 + at / A::anchors, k = k0 + at % A::anchors;
    if (i >= N || k >= K) continue;
    T total = 0;
    for (int part = 0; part < A::warps; ++part) total += memory[part * A::rows * A::anchors + at];
    logits[i * K + k] = total / length[at / A::anchors];
  }
}

// grid: parts of the rows times ceil(F / threads); block: threads, a thread per column; shared: 2 KB. dx [N, F], and partial
// [parts, K, F] for the anchors. Reads x and writes dx once for every 32 anchors.
template <class T>
__global__ void __launch_bounds__(AssignmentLaunch::threads, 1)
    assignment_gradient(const T* grad /* [N, K] */, const T* x, const T* w, const T* logits, const T* norm, int64_t N,
                        int64_t F, int64_t K, int64_t parts, T* dx, T* partial) {
  using A = AssignmentLaunch;
  constexpr int rows = A::gradient_rows, anchors = A::anchors;
  __shared__ T slope[rows][anchors], along[rows];
  const int64_t columns = (F + A::threads - 1) / A::threads, part = blockIdx.x / columns;
  const int64_t f = blockIdx.x % columns * A::threads + threadIdx.x;
  const int64_t start = N * part / parts, end = N * (part + 1) / parts;
  for (int64_t k0 = 0; k0 < K; k0 += anchors) {
    T own[anchors], sum[anchors] = {};
    SHAMISA_UNROLL
    for (int k = 0; k < anchors; ++k) own[k] = f < F && k0 + k < K ? w[(k0 + k) * F + f] : T(0);
    for (int64_t i0 = start; i0 < end; i0 += rows) {
      __syncthreads();
      for (int at = (int)threadIdx.x; at < rows * anchors; at += A::threads) {
        const int64_t i = i0 + at / anchors, k = k0 + at % anchors;
        slope[at / anchors][at % anchors] = i < end && k < K ? grad[i * K + k] / norm[i] : T(0);
      }
      if (k0 == 0) {
        for (int r = (int)threadIdx.x / 32; r < rows; r += A::warps) {
          const int64_t i = i0 + r;
          T dot = 0;
          for (int64_t k = lane_of_warp(); i < end && k < K; k += 32)
            dot = fused(grad[i * K + k] / norm[i], logits[i * K + k], dot);
          dot = warp_sum(dot);
          if (lane_of_warp() == 0) along[r] = i < end && !(norm[i] <= (T)least_norm) ? dot / norm[i] : T(0);
        }
      }
      __syncthreads();
      if (f >= F) continue;
      for (int r = 0; r < rows && i0 + r < end; ++r) {
        const int64_t at = (i0 + r) * F + f;
        const T v = x[at];
        T d = k0 == 0 ? -along[r] * v : dx[at];
        SHAMISA_UNROLL
        for (int k = 0; k < anchors; ++k) {
          d = fused(slope[r][k], own[k], d);
          sum[k] = fused(slope[r][k], v, sum[k]);
        }
        dx[at] = d;
      }
    }
    SHAMISA_UNROLL
    for (int k = 0; k < anchors; ++k)
      if (f < F && k0 + k < K) partial[(part * K + k0 + k) * F + f] = sum[k];
  }
}

// grid: ceil(n / threads); block: threads. out [n] = sum over parts of partial [parts, n], in order.
template <class T>
__global__ void __launch_bounds__(AssignmentLaunch::threads)
    assignment_join(const T* partial, int64_t parts, int64_t n, T* out) {
  const int64_t e = (int64_t)blockIdx.x * AssignmentLaunch::threads + threadIdx.x;
  if (e >= n) return;
  T sum = 0;
  SHAMISA_UNROLL
  for (int64_t part = 0; part < parts; ++part) sum += partial[part * n + e];
  out[e] = sum;
}

// ---- codes -----------------------------------------------------------------------------------------------------------
// sum of exp(x) as sum * exp(most); nothing: sum = 0, most = -inf
struct ExpSum {
  double most, sum;
};
SHAMISA_DEVICE double larger(double a, double b) { return a < b ? b : a; }
SHAMISA_DEVICE double below(double x, double most) { return x == -__builtin_inf() ? 0 : exponential(x - most); }
SHAMISA_DEVICE double warp_most(double x) {
  for (int step = 16; step; step /= 2) x = larger(x, __shfl_xor_sync(whole_warp, x, step));
  return x;
}
// n sums at(0) .. at(n - 1) in one, each lane every `step`-th from `start` on; with one exp each
template <class F>
SHAMISA_DEVICE ExpSum sum_of(int64_t start, int64_t n, int64_t step, F at) {
  ExpSum all = {-__builtin_inf(), 0};
  for (int64_t i = start; i < n; i += step) all.most = larger(all.most, at(i).most);
  for (int64_t i = start; i < n; i += step) {
    const ExpSum one = at(i);
    if (one.sum != 0) all.sum += one.sum * below(one.most, all.most);
  }
  return all;
}
SHAMISA_DEVICE double warp_log_sum(ExpSum own) {
  const double most = warp_most(own.most);
  return most + logarithm(warp_sum(own.sum == 0 ? 0 : own.sum * below(own.most, most)));
}

// The codes are exp(u / temperature - a_k - b_n): a and b make the columns, then the rows, sum to one. (The marginals 1 / K
// and 1 / N only shift the logarithms.)
struct Codes {
  int64_t N, K;
  double sharpness;    // 1 / temperature
  double* a;           // [K]
  ExpSum* partial;     // [blocks, K]
  unsigned* finished;  // [1], 0 at the start
};

// grid: ceil(N / code_rows); block: threads; shared: 4.5 KB. One round: b from a (0 when `begin`), then, by way of partial,
// the next a; at the end (out given) the codes instead. All in double, in a fixed order. Reads N K elements of u 2 to 3 times.
template <class T>
__global__ void __launch_bounds__(AssignmentLaunch::threads, 1)
    codes_round(const Codes c, const T* u /* [N, K] */, bool begin, T* out) {
  using A = AssignmentLaunch;
  __shared__ double b[A::code_rows];
  __shared__ ExpSum columns[A::warps][32];
  __shared__ int flag;
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  const int64_t first = (int64_t)blockIdx.x * A::code_rows, last = min_of(first + A::code_rows, c.N);
  const auto scaled = [&](int64_t n, int64_t k) { return (double)u[n * c.K + k] * c.sharpness; };
  for (int64_t n = first + warp; n < last; n += A::warps) {
    double own = 0;
    if (!begin) {
      own = warp_log_sum(sum_of(lane, c.K, 32, [&](int64_t k) { return ExpSum{scaled(n, k) - c.a[k], 1}; }));
    }
    if (lane == 0) b[n - first] = own;
    if (out)
      for (int64_t k = lane; k < c.K; k += 32) out[n * c.K + k] = (T)exponential(scaled(n, k) - c.a[k] - own);
  }
  if (out) return;
  __syncthreads();
  for (int64_t k0 = 0; k0 < c.K; k0 += 32) {
    const int64_t k = k0 + lane;
    columns[warp][lane] =
        sum_of(first + warp, k < c.K ? last : 0, A::warps, [&](int64_t n) { return ExpSum{scaled(n, k) - b[n - first], 1}; });
    __syncthreads();
    if (warp == 0 && k < c.K)
      c.partial[blockIdx.x * c.K + k] = sum_of(0, A::warps, 1, [&](int64_t w) { return columns[w][lane]; });
    __syncthreads();
  }
  if (!last_block(c.finished, &flag)) return;
  for (int64_t k = warp; k < c.K; k += A::warps) {
    const double a = warp_log_sum(sum_of(lane, gridDim.x, 32, [&](int64_t block) { return c.partial[block * c.K + k]; }));
    if (lane == 0) c.a[k] = a;
  }
}

SHAMISA_END
