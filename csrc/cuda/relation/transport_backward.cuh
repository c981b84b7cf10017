// The gradient of the transport graph's weights on CUDA, without torch: every node gathers its edges, nothing is scattered.
#pragma once

#include "transport.cuh"

SHAMISA_BEGIN

struct TransportBackwardLaunch {
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int columns = 2;  // anchors of a lane at a time; where there are more than 64, the edges are read again
  static constexpr int ahead = 4;    // edges of a lane that are read at once
};

struct EdgePair {
  int32_t i, j;
};

// grid: ceil(max(M, N K) / threads); block: threads. The ends of the M edges in 8 bytes, their gradients in double, and p =
// exp(log_p). Indices outside 0..N-1 cannot be reported without waiting for the device: their gradient becomes NaN.
template <class T>
__global__ void __launch_bounds__(TransportBackwardLaunch::threads)
    transport_pack(const int64_t* index, const T* grad, const T* log_p, int64_t N, int64_t K, int64_t M, EdgePair* pair,
                   double* value, double* p) {
  const int64_t e = (int64_t)blockIdx.x * TransportBackwardLaunch::threads + threadIdx.x;
  if (e < N * K) p[e] = exponential((double)log_p[e]);
  if (e >= M) return;
  const int64_t i = index[e], j = index[M + e];
  const bool good = i >= 0 && i < N && j >= 0 && j < N;
  pair[e] = good ? EdgePair{(int32_t)i, (int32_t)j} : EdgePair{0, 0};
  value[e] = good ? (double)grad[e] : not_a_number();
}

template <class T>
struct TransportSlopes {
  const T* log_p;          // [N, K]
  const double* p;         // [N, K]
  const EdgePair* pair;    // [M]
  const double* value;     // [M]
  const T* weight;         // [M]
  const int64_t* extreme;  // [2, 2]
  int64_t N, K, M;
};

template <class T>
SHAMISA_DEVICE double warp_score(const TransportSlopes<T>& g, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t k = lane_of_warp(); k < g.K; k += 32) sum = fused((double)g.log_p[i * g.K + k], g.p[j * g.K + k], sum);
  return warp_sum(sum) / (double)g.K;
}

// grid: N, a block per node; block: threads; shared: 17 KB. out_n = (sum of value p_j over edges (n, j) + p_n times the sum of
// value log p_i over edges (i, n)) / (span K). Each warp looks through its own part of the edges and sums in their order; the
// warps' sums are added in order, the extremes last. Reads all M pairs (8 bytes each, from the cache), and K elements for each
// edge of the node.
template <class T>
__global__ void __launch_bounds__(TransportBackwardLaunch::threads) transport_gradient(const TransportSlopes<T> g, T* out) {
  using Launch = TransportBackwardLaunch;
  constexpr int columns = Launch::columns, ahead = Launch::ahead;
  __shared__ int32_t found[Launch::warps][2][32 * ahead];  // edges (n, .), and (., n)
  __shared__ double partial[Launch::warps][2][32 * columns];
  __shared__ double slots[32];
  const int64_t n = blockIdx.x, K = g.K, M = g.M;
  const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
  int64_t end[4];  // low i, high i, low j, high j
  bool good = true;
  SHAMISA_UNROLL
  for (int s = 0; s < 4; ++s) {
    end[s] = g.extreme[s];
    if (end[s] < 0 || end[s] >= g.N) end[s] = 0, good = false;
  }
  const double low = good ? warp_score(g, end[0], end[2]) : not_a_number(), high = warp_score(g, end[1], end[3]);
  const double share = 1 / (span_of(low, high) * (double)K);
  double to_low = 0, to_high = 0;  // what reaches the extremes' scores
  if (n == end[0] || n == end[1] || n == end[2] || n == end[3]) {
    for (int64_t e = threadIdx.x; e < M; e += Launch::threads) {
      to_low -= g.value[e];
      to_high = fused(-g.value[e], (double)g.weight[e], to_high);
    }
    to_low = block_sum(to_low, slots);
    __syncthreads();
    to_high = block_sum(to_high, slots);
    if (!(high - low >= flat_score))
      to_high = high - low < flat_score ? 0 : not_a_number();  // clamped: the maximum has no part
    to_low -= to_high;
  }
  const int64_t part = (M + Launch::warps - 1) / Launch::warps, first = warp * part, last = min_of(first + part, M);
  for (int64_t k0 = 0; k0 < K; k0 += 32 * columns) {
    double sum[2][columns] = {};  // of value p_j, of value log p_i
    const auto add = [&](int kind, int64_t other, double v) {
      SHAMISA_UNROLL
      for (int c = 0; c < columns; ++c) {
        const int64_t k = k0 + 32 * c + lane;
        if (k < K) sum[kind][c] = fused(v, kind ? (double)g.log_p[other * K + k] : g.p[other * K + k], sum[kind][c]);
      }
    };
    for (int64_t e0 = first; e0 < last; e0 += 32 * ahead) {
      EdgePair edge[ahead];
      SHAMISA_UNROLL
      for (int u = 0; u < ahead; ++u) {
        const int64_t e = e0 + 32 * u + lane;
        edge[u] = e < last ? g.pair[e] : EdgePair{-1, -1};
      }
      int count[2] = {0, 0};
      SHAMISA_UNROLL
      for (int u = 0; u < ahead; ++u) {
        SHAMISA_UNROLL
        for (int kind = 0; kind < 2; ++kind) {
          const bool mine = (kind ? edge[u].j : edge[u].i) == n;
          const unsigned hits = __ballot_sync(whole_warp, mine);
          if (mine) found[warp][kind][count[kind] + count_bits(hits & ((1u << lane) - 1))] = (int32_t)(e0 + 32 * u) + lane;
          count[kind] += count_bits(hits);
        }
      }
      __syncwarp();
      SHAMISA_UNROLL
      for (int kind = 0; kind < 2; ++kind)
        for (int at = 0; at < count[kind]; at += 4) {  // four at once, so that their loads overlap
          double v[4];
          int64_t other[4];
          SHAMISA_UNROLL
          for (int u = 0; u < 4; ++u) {
            const int32_t e = found[warp][kind][at + u < count[kind] ? at + u : at];
            other[u] = kind ? g.pair[e].i : g.pair[e].j;
            v[u] = g.value[e];
          }
          SHAMISA_UNROLL
          for (int u = 0; u < 4; ++u)
            if (at + u < count[kind]) add(kind, other[u], v[u]);
        }
      __syncwarp();
    }
    __syncthreads();  // the sums of the columns before have been read
    SHAMISA_UNROLL
    for (int kind = 0; kind < 2; ++kind) {
      SHAMISA_UNROLL
      for (int c = 0; c < columns; ++c) partial[warp][kind][32 * c + lane] = sum[kind][c];
    }
    __syncthreads();
    if (warp > 0) continue;
    SHAMISA_UNROLL
    for (int kind = 0; kind < 2; ++kind) {
      SHAMISA_UNROLL
      for (int c = 0; c < columns; ++c)
        for (int w = 1; w < Launch::warps; ++w) sum[kind][c] += partial[w][kind][32 * c + lane];
    }
    SHAMISA_UNROLL
    for (int s = 0; s < 2; ++s) {
      const double v = s ? to_high : to_low;
      if (n == end[s]) add(0, end[2 + s], v);
      if (n == end[2 + s]) add(1, end[s], v);
    }
    SHAMISA_UNROLL
    for (int c = 0; c < columns; ++c) {
      const int64_t k = k0 + 32 * c + lane;
      if (k < K) out[n * K + k] = (T)(fused(sum[1][c], g.p[n * K + k], sum[0][c]) * share);
    }
  }
}

SHAMISA_END
