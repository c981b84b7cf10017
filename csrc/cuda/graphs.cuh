// Merging of edges, and the graphs that follow from the metadata, on CUDA, without torch.
#pragma once

#include "../relation/batch.h"
#include "tile.cuh"

SHAMISA_BEGIN

struct GraphLaunch {
  static constexpr int threads = 256;
  static constexpr int scan_threads = 1024;
  static constexpr int cut_threads = 512;
  static constexpr int row_threads = 64;  // there are few rows
  static constexpr int bins = 256;
};

// ---- merging ---------------------------------------------------------------------------------------------------------
// grid: ceil(M / threads); block: threads. key [M] = i nodes + j for i < j, else nodes^2: sorted last, and dropped. Indices
// outside 0..nodes-1 cannot be reported without waiting for the device; they are dropped too. K: int32_t or int64_t.
template <class K>
__global__ void __launch_bounds__(GraphLaunch::threads) merge_keys(const int64_t* index, int64_t M, int64_t nodes, K* key) {
  const int64_t e = (int64_t)blockIdx.x * GraphLaunch::threads + threadIdx.x;
  if (e >= M) return;
  const int64_t i = index[e], j = index[M + e];
  key[e] = (K)(i >= 0 && i < j && j < nodes ? i * nodes + j : nodes * nodes);
}

// the exclusive sum of n over the block, and its sum in *total; slots: shared [32]
SHAMISA_DEVICE int block_scan(int n, int* slots, int* total) {
  const int upto = warp_scan(n), warp = (int)threadIdx.x / 32;
  __syncthreads();
  if (lane_of_warp() == 31) slots[warp] = upto;
  __syncthreads();
  int before = 0, sum = 0;
  for (int w = 0; w < (int)blockDim.x / 32; ++w) {
    before += w < warp ? slots[w] : 0;
    sum += slots[w];
  }
  *total = sum;
  return before + upto - n;
}

// whether e begins a run of equal keys that are not dropped
template <class K>
SHAMISA_DEVICE bool begins_run(const K* key, int64_t M, int64_t e, K dropped) {
  return e < M && key[e] != dropped && (e == 0 || key[e] != key[e - 1]);
}

// grid: ceil(M / scan_threads); block: scan_threads; shared: 128 bytes. runs [grid]: how many runs of keys begin in a block.
template <class K>
__global__ void __launch_bounds__(GraphLaunch::scan_threads)
    merge_count(const K* key /* [M] sorted */, int64_t M, K dropped, int* runs) {
  __shared__ int slots[32];
  const int64_t e = (int64_t)blockIdx.x * GraphLaunch::scan_threads + threadIdx.x;
  int total;
  block_scan(begins_run(key, M, e, dropped), slots, &total);
  if (threadIdx.x == 0) runs[blockIdx.x] = total;
}

// grid and block as merge_count. The thread at the beginning of a run adds the weights of the run, in the order of the input,
// and writes its edge; a run is a few edges long. order [M] is where each sorted key comes from. Places behind the last run
// become edge (0, 0) with weight 0. Reads runs [grid] in every block.
template <class T, class K>
__global__ void __launch_bounds__(GraphLaunch::scan_threads)
    merge_write(const K* key, const int64_t* order, const T* weight, const int* runs, int64_t M, int64_t nodes, T* merged,
                int64_t* index, int64_t* position) {
  __shared__ int slots[32], counts[2];
  const K dropped = (K)(nodes * nodes);
  int before = 0, all = 0, total;  // runs that begin in earlier blocks, and in all
  for (int b = (int)threadIdx.x; b < (int)gridDim.x; b += GraphLaunch::scan_threads) {
    before += b < (int)blockIdx.x ? runs[b] : 0;
    all += runs[b];
  }
  if (threadIdx.x < 2) counts[threadIdx.x] = 0;
  __syncthreads();
  if (before) atomicAdd(counts, before);
  if (all) atomicAdd(counts + 1, all);
  __syncthreads();
  before = counts[0], all = counts[1];
  const int64_t e = (int64_t)blockIdx.x * GraphLaunch::scan_threads + threadIdx.x;
  const bool first = begins_run(key, M, e, dropped);
  const int64_t slot = (int64_t)before + block_scan(first, slots, &total) + first - 1;  // of the run that e is in
  if (e >= M) return;
  if (e >= all) {
    merged[e] = 0;
    index[e] = index[M + e] = 0;
  }
  position[order[e]] = key[e] == dropped ? -1 : slot;
  if (!first) return;
  T sum = 0;
  for (int64_t other = e; other < M && key[other] == key[e]; ++other) sum += weight[order[other]];
  merged[slot] = sum;
  index[slot] = (int64_t)key[e] / nodes;
  index[M + slot] = (int64_t)key[e] % nodes;
}

// grid: ceil(M / threads); block: threads
template <class T>
__global__ void __launch_bounds__(GraphLaunch::threads)
    merge_gather(const T* grad, const int64_t* position, int64_t M, int64_t merged, T* out) {
  const int64_t e = (int64_t)blockIdx.x * GraphLaunch::threads + threadIdx.x;
  if (e >= M) return;
  const int64_t at = position[e];
  out[e] = at >= 0 && at < merged ? grad[at] : T(0);
}

// ---- metadata --------------------------------------------------------------------------------------------------------
template <class T>
SHAMISA_DEVICE T decayed(T gap, Decay decay) {
  return decay == Decay::exponential ? exponential(decay_exponent(gap)) : reciprocal_decay(gap);
}

// grid: ceil(M / threads) for M = B pairs C L; block: threads
template <class T>
__global__ void __launch_bounds__(GraphLaunch::threads)
    structural_edges(BatchShape s, ViewClasses classes, int64_t pairs, T* weight, int64_t* index) {
  const int64_t e = (int64_t)blockIdx.x * GraphLaunch::threads + threadIdx.x, images = s.images(), M = s.B * pairs * images;
  if (e >= M) return;
  const int64_t image = e % images, b = e / images / pairs;
  int pair = (int)(e / images % pairs), v = 0;
  for (; pair >= classes.members(v) - 1; ++v) pair -= classes.members(v) - 1;
  weight[e] = 1;
  index[e] = s.node(b, v, 0, 0) + image;
  index[M + e] = s.node(b, classes.mate(v, pair), 0, 0) + image;
}

// grid: ceil(M / threads) for M = B V C L; block: threads
template <class T>
__global__ void __launch_bounds__(GraphLaunch::threads)
    ref_dist_edges(BatchShape s, const T* severity /* [B, C, L] */, Decay decay, T* weight, int64_t* index) {
  const int64_t e = (int64_t)blockIdx.x * GraphLaunch::threads + threadIdx.x, M = s.distorted(), images = s.images();
  if (e >= M) return;
  weight[e] = decayed(severity[e / (s.V * images) * images + e % images], decay);
  index[e] = e / images;
  index[M + e] = s.references() + e;
}

// grid: ceil(M / threads) for M = R (R - 1); block: threads
template <class T>
__global__ void __launch_bounds__(GraphLaunch::threads) ref_ref_edges(int64_t R, T* weight, int64_t* index) {
  const int64_t e = (int64_t)blockIdx.x * GraphLaunch::threads + threadIdx.x, M = R * (R - 1);
  if (e >= M) return;
  const int64_t i = e / (R - 1), j = e % (R - 1);
  weight[e] = 1;
  index[e] = i;
  index[M + e] = j + (j >= i);
}

// ---- dist_dist -------------------------------------------------------------------------------------------------------
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

// A gap as a number that ascends with it. NaN comes first, so that it is kept and shows, as on the CPU
template <class T>
SHAMISA_DEVICE typename BitsOf<T>::type gap_key(T a, T b) {
  const T gap = severity_gap(a, b);
  typename BitsOf<T>::type bits;
  __builtin_memcpy(&bits, &gap, sizeof(T));
  return gap != gap ? 0 : (bits & ~typename BitsOf<T>::type(0) >> 1) + 1;
}

// The cut of a group (the batch, or a sample): gaps before it are kept, of those equal to it the first `ties` pairs
template <class T>
struct GapCut {
  typename BitsOf<T>::type key;
  int64_t ties;
};

// grid: groups; block: cut_threads; shared: 4 KB. The cut of the group's pairs, by digits of 8 bits: the C L^2 gaps of a
// sample stand for V^2 pairs each (V (V - 1) for l = l'). Then start [B V C L, 2]: the pairs of earlier rows of the group that
// lie before the cut, and those equal to it.
template <class T>
__global__ void __launch_bounds__(GraphLaunch::cut_threads, 1)
    dist_dist_cut(BatchShape s, const T* severity, int64_t samples /* of a group */, int64_t kept /* of a group */,
                  GapCut<T>* cut, int64_t* start) {
  using Bits = typename BitsOf<T>::type;
  __shared__ unsigned bins[2][GraphLaunch::bins];  // gaps between levels, of a level to itself: 32 bits are counted fast
  __shared__ GapCut<T> found;
  __shared__ int64_t slots[2][32];
  const int L = (int)s.L, gaps = (int)(samples * s.C) * L * L, rows = (int)(samples * s.V * s.C) * L;
  const T* lambda = severity + blockIdx.x * samples * s.C * L;
  if (threadIdx.x == 0) found = {0, kept};
  for (int shift = 8 * (int)sizeof(T) - 8; shift >= 0; shift -= 8) {
    if (threadIdx.x < GraphLaunch::bins) bins[0][threadIdx.x] = bins[1][threadIdx.x] = 0;
    __syncthreads();
    for (int g = (int)threadIdx.x; g < gaps; g += GraphLaunch::cut_threads) {
      const int a = g / L % L, b = g % L;
      const T* line = lambda + g / (L * L) * L;
      const Bits key = gap_key(line[a], line[b]);
      if (shift == 8 * (int)sizeof(T) - 8 || key >> (shift + 8) == found.key >> (shift + 8))
        atomicAdd(&bins[a == b][key >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      unsigned long long n[8];
      for (int b = 0; b < 8; ++b)
        n[b] = (unsigned long long)s.V * (s.V * bins[0][8 * threadIdx.x + b] + (s.V - 1) * bins[1][8 * threadIdx.x + b]);
      const Digit digit = find_digit(n, (unsigned long long)found.ties);
      __syncwarp();
      if (threadIdx.x == 0) found = {found.key | (Bits)digit.value << shift, found.ties - (int64_t)digit.before};
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) cut[blockIdx.x] = found;
  int64_t* out = start + 2 * (int64_t)blockIdx.x * rows;
  int64_t sum[2] = {0, 0};
  for (int r0 = 0; r0 < rows; r0 += GraphLaunch::cut_threads) {
    const int r = r0 + (int)threadIdx.x, C = (int)s.C;
    int64_t own[2] = {0, 0}, upto[2];
    if (r < rows) {
      const T* line = lambda + (r / L / C / (int)s.V * C + r / L % C) * L;
      const int l = r % L;
      for (int other = 0; other < L; ++other) {
        const Bits key = gap_key(line[l], line[other]);
        const int64_t pairs = other == l ? s.V - 1 : s.V;
        own[0] += key < found.key ? pairs : 0;
        own[1] += key == found.key ? pairs : 0;
      }
    }
    __syncthreads();
    SHAMISA_UNROLL
    for (int kind = 0; kind < 2; ++kind) {
      upto[kind] = warp_scan(own[kind]);
      if (lane_of_warp() == 31) slots[kind][threadIdx.x / 32] = upto[kind];
    }
    __syncthreads();
    SHAMISA_UNROLL
    for (int kind = 0; kind < 2; ++kind) {
      for (int w = 0; w < (int)threadIdx.x / 32; ++w) upto[kind] += slots[kind][w];
      if (r < rows) out[r * 2 + kind] = sum[kind] + upto[kind] - own[kind];
      for (int w = 0; w < GraphLaunch::cut_threads / 32; ++w) sum[kind] += slots[kind][w];
    }
  }
}

// grid: ceil(B V C L / row_threads); block: row_threads, a thread per row i. Its kept pairs, in the order of j.
template <class T>
__global__ void __launch_bounds__(GraphLaunch::row_threads)
    dist_dist_edges(BatchShape s, const T* severity, const GapCut<T>* cuts, const int64_t* start, int64_t samples, int64_t kept,
                    Decay decay, int64_t M, T* weight, int64_t* index) {
  const int r = (int)blockIdx.x * GraphLaunch::row_threads + (int)threadIdx.x;
  if (r >= s.distorted()) return;
  const int C = (int)s.C, L = (int)s.L, l = r % L, c = r / L % C, v = r / L / C % (int)s.V;
  const int64_t b = r / L / C / (int)s.V, group = b / samples;
  const GapCut<T> cut = cuts[group];
  const T* line = severity + (b * s.C + c) * L;
  int64_t before = start[2 * (int64_t)r], ties = start[2 * (int64_t)r + 1];
  for (int w = 0; w < s.V; ++w)
    for (int other = 0; other < L; ++other) {
      const auto key = gap_key(line[l], line[other]);
      if ((w == v && other == l) || key > cut.key) continue;
      const bool tie = key == cut.key;
      if (!tie || ties < cut.ties) {
        const int64_t e = group * kept + before + min_of(ties, cut.ties);
        weight[e] = decayed(severity_gap(line[l], line[other]), decay);
        index[e] = s.references() + r;
        index[M + e] = s.node(b, w, c, other);
      }
      tie ? ++ties : ++before;
    }
}

SHAMISA_END
