// Parts of the relation kernels on CUDA: a tile of a product of rows in registers, the last block of a launch, and functions
// that the host and the device call by different names.
#pragma once

#include "../../relation/libm.h"
#include "../warp.cuh"

SHAMISA_BEGIN

SHAMISA_DEVICE int count_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}
SHAMISA_DEVICE int lowest_bit(uint32_t bits) {  // bits != 0
#if defined(__CUDA_ARCH__)
  return __ffs((int)bits) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// 64 x 64 elements of a product A B^T, 8 x 4 of them per thread. T is float or double.
template <class T>
struct Tile {
  static constexpr int size = 64, depth = 16, threads = 128;
  struct alignas(16) Memory {
    T a[depth][size + 16 / sizeof(T)], b[depth][size + 16 / sizeof(T)];
  };
  T sum[8][4];

  // where sum[r][c] lies in the tile
  static SHAMISA_DEVICE int row(int r) { return (int)threadIdx.x / 16 * 8 + r; }
  static SHAMISA_DEVICE int column(int c) { return (int)threadIdx.x % 16 + 16 * c; }

  // sum = the product over depth [first, last). a(row, d) and b(row, d) give the elements, 0 for rows outside. a_deep:
  // neighbours in depth are neighbours in memory, else neighbours in rows are. All threads of a block of `threads` call it.
  template <bool a_deep, bool b_deep, class A, class B>
  SHAMISA_DEVICE void product(Memory& memory, int first, int last, A a, B b) {
    SHAMISA_UNROLL
    for (int r = 0; r < 8; ++r) {
      SHAMISA_UNROLL
      for (int c = 0; c < 4; ++c) sum[r][c] = 0;
    }
    T next_a[8], next_b[8];
    fetch<a_deep>(next_a, first, last, a);
    fetch<b_deep>(next_b, first, last, b);
    for (int d = first; d < last; d += depth) {
      __syncthreads();  // what was there has been read
      SHAMISA_UNROLL
      for (int s = 0; s < 8; ++s) {
        memory.a[depth_of<a_deep>(s)][row_of<a_deep>(s)] = next_a[s];
        memory.b[depth_of<b_deep>(s)][row_of<b_deep>(s)] = next_b[s];
      }
      __syncthreads();
      fetch<a_deep>(next_a, d + depth, last, a);
      fetch<b_deep>(next_b, d + depth, last, b);
      SHAMISA_UNROLL
      for (int k = 0; k < depth; ++k) {
        T x[8], y[4];
        SHAMISA_UNROLL
        for (int r = 0; r < 8; ++r) x[r] = memory.a[k][row(r)];
        SHAMISA_UNROLL
        for (int c = 0; c < 4; ++c) y[c] = memory.b[k][column(c)];
        SHAMISA_UNROLL
        for (int r = 0; r < 8; ++r) {
          SHAMISA_UNROLL
          for (int c = 0; c < 4; ++c) sum[r][c] = fused(x[r], y[c], sum[r][c]);
        }
      }
    }
  }

 private:
  template <bool deep>
  static SHAMISA_DEVICE int row_of(int s) {
    return deep ? (int)threadIdx.x / depth + threads / depth * s : (int)threadIdx.x % size;
  }
  template <bool deep>
  static SHAMISA_DEVICE int depth_of(int s) {
    return deep ? (int)threadIdx.x % depth : (int)threadIdx.x / size + threads / size * s;
  }
  template <bool deep, class F>
  static SHAMISA_DEVICE void fetch(T (&next)[8], int d, int last, F f) {
    SHAMISA_UNROLL
    for (int s = 0; s < 8; ++s) next[s] = d + depth_of<deep>(s) < last ? f(row_of<deep>(s), d + depth_of<deep>(s)) : T(0);
  }
};

// A digit of 256, found by a warp from how often each occurs, n[b] times digit 8 lane + b: the first with which `wanted` are
// reached, else the last; and how many come before it. The same in every lane.
struct Digit {
  uint32_t value;
  unsigned long long before;
};
SHAMISA_DEVICE Digit find_digit(const unsigned long long (&n)[8], unsigned long long wanted) {
  unsigned long long own = 0;
  SHAMISA_UNROLL
  for (int b = 0; b < 8; ++b) own += n[b];
  unsigned long long before = warp_scan(own) - own;
  const unsigned reached = __ballot_sync(whole_warp, before + own >= wanted);
  const int lane = reached ? lowest_bit(reached) : 31;
  int value = 0;
  SHAMISA_UNROLL
  for (int b = 0; b < 7; ++b) {
    if (value == b && before + n[b] < wanted) {
      before += n[b];
      ++value;
    }
  }
  return {(uint32_t)(8 * lane + __shfl_sync(whole_warp, value, lane)), __shfl_sync(whole_warp, before, lane)};
}

// True in every thread of the block that comes here last; that block sees what all blocks wrote before. finished: 0 when the
// kernel starts, and again when it ends. flag: shared.
SHAMISA_DEVICE bool last_block(unsigned* finished, int* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *flag = atomicAdd(finished, 1u) == gridDim.x - 1;
    __threadfence();  // what comes after the count stays after it
    if (*flag) *finished = 0;
  }
  __syncthreads();
  __threadfence();
  return *flag;
}

SHAMISA_END
