// The candidates of each row, its smallest keys: step 2 of neighbors.cuh.
#pragma once

#include "neighbors_keys.cuh"

SHAMISA_BEGIN

// What is known of the candidates of each row; two of each, for sorting from one into the other
struct Candidates {
  int capacity;
  int32_t* count;      // [N]
  int32_t* row[2];     // [N, capacity]; `count` of them are set
  double* squared[2];  // [N, capacity]; at first the keys
  double* last;        // [N], the largest key of a candidate
  double* reach;       // [N], where the choice is in doubt: no k-th row is farther (squared); else less than 0
};

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

SHAMISA_END
