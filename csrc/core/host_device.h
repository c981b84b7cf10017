// What separates the compilers: g++ or clang++ on the host, nvcc, and g++ again under the emulator of tests/native.
//
// Everything in csrc/core, csrc/distort and csrc/relation is written once and compiled by all of them. The CPU compiles it
// once per x86-64 level into a namespace of its own (SHAMISA_LEVEL = v2, v3, v4, or any elsewhere), so that no inline function
// of a higher level can be picked by the linker for a lower one. For the same reason these headers use no std templates.
#pragma once

#include <stdint.h>

#ifndef SHAMISA_LEVEL
#define SHAMISA_LEVEL any
#endif

// opens and closes namespace shamisa::LEVEL; names are reached as shamisa::name inside one translation unit
#define SHAMISA_BEGIN \
  namespace shamisa { \
  inline namespace SHAMISA_LEVEL {
#define SHAMISA_END \
  }                 \
  }

// SHAMISA_DEVICE: a function of CUDA kernels and of their emulation only
#if defined(__CUDACC__)
#define SHAMISA_DEVICE __device__ __forceinline__
#else
#define SHAMISA_DEVICE inline
#endif

#if defined(__CUDACC__)
// SHAMISA_HD: a small function for both sides. SHAMISA_OP: a template over a Team (uses barriers, so device only) that calls
// no other. Not inlined: what one of them holds ready for its loops would take registers from the loops of all others.
#define SHAMISA_HD __host__ __device__ __forceinline__
#define SHAMISA_OP __device__ __noinline__
// SHAMISA_STEP: what calls ops, or a part of one; inlined, because a caller's registers are spilled around a call. A call of
// its own on the host, where the compiler loses vector loops in long functions.
#define SHAMISA_STEP __device__ __forceinline__
#define SHAMISA_INDEPENDENT
#define SHAMISA_RESTRICT __restrict__
#elif defined(__GNUC__)
#if defined(SHAMISA_SANITIZE)  // minutes to compile flattened
#define SHAMISA_HD inline
#define SHAMISA_OP inline
#define SHAMISA_STEP inline
#else
#define SHAMISA_HD inline __attribute__((always_inline))
// flatten: one lambda that is not inlined would silently cost a loop its vectorisation
#define SHAMISA_OP inline __attribute__((flatten, noinline))
#define SHAMISA_STEP SHAMISA_OP
#endif
#if defined(__clang__)
#define SHAMISA_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SHAMISA_INDEPENDENT _Pragma("GCC ivdep")
#endif
#define SHAMISA_RESTRICT __restrict__
#else
#define SHAMISA_HD inline
#define SHAMISA_OP inline
#define SHAMISA_STEP inline
#define SHAMISA_INDEPENDENT
#define SHAMISA_RESTRICT __restrict
#endif

SHAMISA_BEGIN
// x; on a GPU the compiler does not know that, and computes anew in each turn of a loop what it would else hold in registers
SHAMISA_HD int anew(int x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}
SHAMISA_END

// widest float vector that pays: 256 bit for v3 and v4 (512 bit gained nothing when measured), else 128 bit
#if defined(__AVX2__)
#define SHAMISA_VECTOR 8
#else
#define SHAMISA_VECTOR 4
#endif
// the same where a tile of sums fills the registers (products of matrices): there 512 bit doubles the rate
#if defined(__AVX512F__)
#define SHAMISA_WIDE 16
#else
#define SHAMISA_WIDE SHAMISA_VECTOR
#endif
