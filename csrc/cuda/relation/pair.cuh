// Pair cost on CUDA, without torch: squared distances along edges, their weighted sum, the edges of its gradient.
#pragma once

#include "incidence.cuh"

SHAMISA_BEGIN

struct PairLaunch {
  static constexpr int threads = 256;       // 8 warps
  static constexpr int edges_per_warp = 8;  // consecutive edges: sorted lists share their row i, which stays in the cache
  static constexpr int edges = threads / 32 * edges_per_warp;
  static constexpr int sum_threads = 1024;
};

// grid: ceil(M / PairLaunch::edges); block: PairLaunch::threads; shared: 256 bytes. A warp takes edge after edge and reads
// its two rows W elements a lane. squared [M]; partial [grid] = sum of weight squared over the edges of the block, in double.
// Reads 2 M E + 3 M, writes M elements.
template <class T, int W>
__global__ void __launch_bounds__(PairLaunch::threads)
    pair_squared(const T* z, int64_t N, int64_t E, const T* weight, const int64_t* index, int64_t M, T* squared,
                 double* partial) {
  __shared__ double slots[32];
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  const int64_t first = (int64_t)blockIdx.x * PairLaunch::edges + warp * PairLaunch::edges_per_warp;
  double cost = 0;  // the same in every lane
  for (int64_t e = first; e < first + PairLaunch::edges_per_warp && e < M; ++e) {
    const EdgeEnds ends(index[e], index[M + e], N);
    T sum = 0;
    if (!ends.good) {
      sum = (T)not_a_number();
    } else if (ends.i != ends.j) {
      const T *a = z + ends.i * E, *b = z + ends.j * E;
      SHAMISA_UNROLL
      for (int64_t d = lane * W; d < E; d += 32 * W) {
        const Vector<T, W> x = *(const Vector<T, W>*)(a + d), y = *(const Vector<T, W>*)(b + d);
        SHAMISA_UNROLL
        for (int u = 0; u < W; ++u) sum = fused(x.v[u] - y.v[u], x.v[u] - y.v[u], sum);
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) squared[e] = sum;
    cost += (double)weight[e] * (double)sum;
  }
  cost = block_sum(lane == 0 ? cost : 0., slots);
  if (threadIdx.x == 0) partial[blockIdx.x] = cost;
}

// grid: 1; block: PairLaunch::sum_threads; shared: 256 bytes. cost = sum of partial [n] / elements
template <class T>
__global__ void __launch_bounds__(PairLaunch::sum_threads)
    pair_total(const double* partial, int64_t n, double elements, T* cost) {
  __shared__ double slots[32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += PairLaunch::sum_threads) sum += partial[i];
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) *cost = (T)(sum / elements);
}

// The edges of the gradient in z, value 2 grad weight / elements; a visit leaves the gradient in weight.
template <class T>
struct PairEdges {
  const double* grad;  // []
  double elements;
  const T *weight, *squared;  // [M]
  const int64_t* index;       // [2, M]
  int64_t N, M;
  T* dw;  // [M]

  int64_t count() const { return M; }
  SHAMISA_DEVICE T scale() const { return (T)(*grad / elements); }
  SHAMISA_DEVICE void visit(int64_t e) const { dw[e] = scale() * squared[e]; }
  SHAMISA_DEVICE EdgeEnds ends(int64_t e) const { return EdgeEnds(index[e], index[M + e], N); }
  SHAMISA_DEVICE T value(int64_t e) const { return 2 * scale() * weight[e]; }
};

SHAMISA_END
