// The gradient of the transport graph's weights on CUDA, without torch: every node gathers its edges, nothing is scattered.
#pragma once

#include "transport.cuh"

SHAMISA_BEGIN

struct TransportBackwardLaunch {
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int columns = 4;  // anchors of a lane at a time; more of them than 32 columns: the edges are read again
  static constexpr int ahead = 4;    // edges of a lane that are read at once
};

struct EdgePair {
  int32_t i, j;
};

// grid: ceil(M / threads); block: threads. The ends of the M edges in 8 bytes, their gradients in double. Indices outside
// 0..N-1 cannot be reported without waiting for the device: their gradient becomes NaN.
template <class T>
__global__ void __launch_bounds__(TransportBackwardLaunch::threads)
    transport_pack(const int64_t* index, const T* grad, int64_t N, int64_t M, EdgePair* pair, double* value) {
  const int64_t e = (int64_t)blockIdx.x * TransportBackwardLaunch::threads + threadIdx.x;
  if (e >= M) return;
  const int64_t i = index[e], j = index[M + e];
  const bool good = i >= 0 && i < N && j >= 0 && j < N;
  pair[e] = good ? EdgePair{(int32_t)i, (int32_t)j} : EdgePair{0, 0};
  value[e] = good ? (double)grad[e] : not_a_number();
}

template <class T>
SHAMISA_DEVICE double warp_score_of(const T* log_p, int64_t K, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t k = lane_of_warp(); k < K; k += 32)
    sum = fused((double)log_p[i * K + k], exponential((double)log_p[j * K + k]), sum);
  return warp_sum(sum) / (double)K;
}

// grid: ceil(N / warps); block: threads, a warp per node; no shared memory. out_n = (sum of value p_j over edges (n, j) + p_n
// times the sum of value log p_i over edges (i, n)) / (span K), in the order of the edges, the extremes last. Every warp reads
// all M pairs (8 bytes each) from the cache, and K elements of T for each edge of its node.
template <class T>
__global__ void __launch_bounds__(TransportBackwardLaunch::threads)
    transport_gradient(const T* log_p, const EdgePair* pair, const double* value, const T* weight, const int64_t* extreme,
                       int64_t N, int64_t K, int64_t M, T* out) {
  constexpr int columns = TransportBackwardLaunch::columns, ahead = TransportBackwardLaunch::ahead;
  const int64_t n = (int64_t)blockIdx.x * TransportBackwardLaunch::warps + threadIdx.x / 32;
  if (n >= N) return;
  const int lane = lane_of_warp();
  int64_t end[4];  // low i, high i, low j, high j
  bool good = true;
  for (int s = 0; s < 4; ++s) {
    end[s] = extreme[s];
    if (end[s] < 0 || end[s] >= N) end[s] = 0, good = false;
  }
  const double bad = good ? 0 : not_a_number();
  const double low = warp_score_of(log_p, K, end[0], end[2]) + bad, high = warp_score_of(log_p, K, end[1], end[3]);
  const double share = 1 / (span_of(low, high) * (double)K);
  double to_low = 0, to_high = 0;  // what reaches the extremes' scores
  if (n == end[0] || n == end[1] || n == end[2] || n == end[3]) {
    for (int64_t e = lane; e < M; e += 32) {
      to_low -= value[e];
      to_high = fused(-value[e], (double)weight[e], to_high);
    }
    to_low = warp_sum(to_low);
    to_high = warp_sum(to_high);
    if (!(high - low >= flat_range))
      to_high = high - low < flat_range ? 0 : not_a_number();  // clamped: the maximum has no part
    to_low -= to_high;
  }
  for (int64_t k0 = 0; k0 < K; k0 += 32 * columns) {
    double from[columns] = {}, to[columns] = {};
    const auto add = [&](int64_t other, double v, bool first) {
      SHAMISA_UNROLL
      for (int c = 0; c < columns; ++c) {
        const int64_t k = k0 + 32 * c + lane;
        if (k >= K) continue;
        const double x = (double)log_p[other * K + k];
        if (first)
          from[c] = fused(v, exponential(x), from[c]);
        else
          to[c] = fused(v, x, to[c]);
      }
    };
    for (int64_t e0 = 0; e0 < M; e0 += 32 * ahead) {
      EdgePair edge[ahead];
      SHAMISA_UNROLL
      for (int u = 0; u < ahead; ++u) {
        const int64_t e = e0 + 32 * u + lane;
        edge[u] = e < M ? pair[e] : EdgePair{-1, -1};
      }
      SHAMISA_UNROLL
      for (int u = 0; u < ahead; ++u) {
        const unsigned firsts = __ballot_sync(whole_warp, edge[u].i == n), seconds = __ballot_sync(whole_warp, edge[u].j == n);
        for (unsigned bits = firsts | seconds; bits; bits &= bits - 1) {
          const int s = lowest_bit(bits);
          const double v = value[e0 + 32 * u + s];
          const EdgePair other = pair[e0 + 32 * u + s];
          if (firsts >> s & 1) add(other.j, v, true);
          if (seconds >> s & 1) add(other.i, v, false);
        }
      }
    }
    for (int s = 0; s < 2; ++s) {
      const double v = s ? to_high : to_low;
      if (n == end[s]) add(end[2 + s], v, true);
      if (n == end[2 + s]) add(end[s], v, false);
    }
    SHAMISA_UNROLL
    for (int c = 0; c < columns; ++c) {
      const int64_t k = k0 + 32 * c + lane;
      if (k < K) out[n * K + k] = (T)(fused(to[c], exponential((double)log_p[n * K + k]), from[c]) * share);
    }
  }
}

SHAMISA_END
