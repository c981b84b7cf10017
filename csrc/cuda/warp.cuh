// Small device functions that several kernels share: vectors, fused arithmetic, sums over a warp, asynchronous copies.
#pragma once

#include "../core/math.h"
#include "launch.cuh"

SHAMISA_BEGIN

constexpr unsigned whole_warp = 0xffffffffu;

// W elements that are loaded and stored at once; rows must be aligned to their size
template <class T, int W>
struct alignas(sizeof(T) * W) Vector {
  T v[W];
};
template <class T>
constexpr int wide = 16 / (int)sizeof(T);  // elements of the widest load

// rounded once (the compiler contracts nothing in this project)
SHAMISA_DEVICE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
SHAMISA_DEVICE double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

SHAMISA_DEVICE int lane_of_warp() { return (int)threadIdx.x % 32; }

// the same value in every lane, in an order that depends on nothing
template <class T>
SHAMISA_DEVICE T warp_sum(T t) {
  SHAMISA_UNROLL
  for (int step = 16; step > 0; step /= 2) t += __shfl_xor_sync(whole_warp, t, step);
  return t;
}
// the sum of t over this lane and those before it
template <class T>
SHAMISA_DEVICE T warp_scan(T t) {
  const int lane = lane_of_warp();
  SHAMISA_UNROLL
  for (int step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(whole_warp, t, step);
    if (lane >= step) t += other;
  }
  return t;
}
// Sum over a block of whole warps; slots: shared [32]. The slots are free again after the next barrier.
template <class T>
SHAMISA_DEVICE T block_sum(T t, T* slots) {
  t = warp_sum(t);
  if (lane_of_warp() == 0) slots[threadIdx.x / 32] = t;
  __syncthreads();
  t = slots[0];
  for (int i = 1; i < (int)blockDim.x / 32; ++i) t += slots[i];
  return t;
}

SHAMISA_DEVICE double not_a_number() { return __builtin_nan(""); }

// Copies to shared memory that run while the threads compute. bytes: 4, 8 or 16; with `real` false zeros are written and
// `from` is not read. commit closes a group; wait<n> leaves at most n groups on their way (a barrier then shows the rest to
// the block). Before Ampere a copy is done when the call returns.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define SHAMISA_COPIES_ASYNC
#endif
template <int bytes>
SHAMISA_DEVICE void copy_async(void* to, const void* from, bool real) {
#if defined(SHAMISA_COPIES_ASYNC)
  const unsigned shared = (unsigned)__cvta_generic_to_shared(to);
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(real ? 16 : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from), "n"(bytes), "r"(real ? bytes : 0)
                 : "memory");
#elif defined(__CUDA_ARCH__)
  using Piece = Vector<unsigned, bytes / 4>;
  *(Piece*)to = real ? *(const Piece*)from : Piece{};
#else
  for (int i = 0; i < bytes; ++i) ((unsigned char*)to)[i] = real ? ((const unsigned char*)from)[i] : 0;
#endif
}
SHAMISA_DEVICE void copy_commit() {
#if defined(SHAMISA_COPIES_ASYNC)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int groups>
SHAMISA_DEVICE void copy_wait() {
#if defined(SHAMISA_COPIES_ASYNC)
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

SHAMISA_END
