// The graphs that follow from the metadata on CUDA, without torch.
#pragma once

#include "../../relation/metadata.h"
#include "tile.cuh"

SHAMISA_BEGIN

struct MetadataLaunch {
  static constexpr int threads = 256;
  static constexpr int cut_threads = 512;
  static constexpr int row_threads = 64;  // there are few rows
  static constexpr int bins = 256;
};

// grid: ceil(M / threads) for M = B pairs C L; block: threads
template <class T>
__global__ void __launch_bounds__(MetadataLaunch::threads)
    structural_edges(BatchShape s, ViewClasses classes, int64_t pairs, T* weight, int64_t* index) {
  const int64_t e = (int64_t)blockIdx.x * MetadataLaunch::threads + threadIdx.x, images = s.images(), M = s.B * pairs * images;
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
__global__ void __launch_bounds__(MetadataLaunch::threads)
    ref_dist_edges(BatchShape s, const T* severity /* [B, C, L] */, Decay decay, T* weight, int64_t* index) {
  const int64_t e = (int64_t)blockIdx.x * MetadataLaunch::threads + threadIdx.x, M = s.distorted(), images = s.images();
  if (e >= M) return;
  weight[e] = decayed(severity[e / (s.V * images) * images + e % images], decay);
  index[e] = e / images;
  index[M + e] = s.references() + e;
}

// grid: ceil(M / threads) for M = R (R - 1); block: threads
template <class T>
__global__ void __launch_bounds__(MetadataLaunch::threads) ref_ref_edges(int64_t R, T* weight, int64_t* index) {
  const int64_t e = (int64_t)blockIdx.x * MetadataLaunch::threads + threadIdx.x, M = R * (R - 1);
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
__global__ void __launch_bounds__(MetadataLaunch::cut_threads, 1)
    dist_dist_cut(BatchShape s, const T* severity, int64_t samples /* of a group */, int64_t kept /* of a group */,
                  GapCut<T>* cut, int64_t* start) {
  using Bits = typename BitsOf<T>::type;
  __shared__ unsigned bins[2][MetadataLaunch::bins];  // gaps between levels, of a level to itself: 32 bits are counted fast
  __shared__ GapCut<T> found;
  __shared__ int64_t slots[2][32];
  const int L = (int)s.L, gaps = (int)(samples * s.C) * L * L, rows = (int)(samples * s.V * s.C) * L;
  const T* lambda = severity + blockIdx.x * samples * s.C * L;
  if (threadIdx.x == 0) found = {0, kept};
  for (int shift = 8 * (int)sizeof(T) - 8; shift >= 0; shift -= 8) {
    if (threadIdx.x < MetadataLaunch::bins) bins[0][threadIdx.x] = bins[1][threadIdx.x] = 0;
    __syncthreads();
    for (int g = (int)threadIdx.x; g < gaps; g += MetadataLaunch::cut_threads) {
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
  for (int r0 = 0; r0 < rows; r0 += MetadataLaunch::cut_threads) {
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
      for (int w = 0; w < MetadataLaunch::cut_threads / 32; ++w) sum[kind] += slots[kind][w];
    }
  }
}

// grid: ceil(B V C L / row_threads); block: row_threads, a thread per row i. Its kept pairs, in the order of j.
template <class T>
__global__ void __launch_bounds__(MetadataLaunch::row_threads)
    dist_dist_edges(BatchShape s, const T* severity, const GapCut<T>* cuts, const int64_t* start, int64_t samples, int64_t kept,
                    Decay decay, int64_t M, T* weight, int64_t* index) {
  const int r = (int)blockIdx.x * MetadataLaunch::row_threads + (int)threadIdx.x;
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
