// The distort op on CUDA, without torch: a block is a team, resident blocks take image after image.
#pragma once

#include "../distort/chain.h"
#include "launch.cuh"

SHAMISA_BEGIN

// other choices, for benchmarks/variants.py to compare
#if !defined(SHAMISA_DISTORT_THREADS)
#define SHAMISA_DISTORT_THREADS 512
#endif
#if !defined(SHAMISA_DISTORT_BLOCKS)
#define SHAMISA_DISTORT_BLOCKS 2
#endif
#if !defined(SHAMISA_DISTORT_MEMORY)
#define SHAMISA_DISTORT_MEMORY (1ll << 30)
#endif

struct DistortLaunch {
  static constexpr int threads = SHAMISA_DISTORT_THREADS;
  static constexpr int blocks_per_sm = SHAMISA_DISTORT_BLOCKS;     // caps the registers: 64 without spills (registers.py)
  static constexpr int64_t memory_bytes = SHAMISA_DISTORT_MEMORY;  // of all blocks; an image that needs more gets it, alone
  static_assert(threads % 32 == 0, "a BlockTeam is whole warps");
};

// grid: at most N; block: DistortLaunch::threads; shared: small_bytes + reductions, static. One block per image at a time;
// block k begins with image k and then takes the next that nobody has, because some chains take many times as long as others,
// in its own [bytes] of memory. taken: of images beyond the first gridDim, 0 at the start. Reads each source once, writes each
// output once.
__global__ void __launch_bounds__(DistortLaunch::threads, DistortLaunch::blocks_per_sm)
    distort_images(const __grid_constant__ Batch batch, unsigned char* memory, int64_t bytes, unsigned long long* taken) {
  __shared__ int64_t n;  // see team.h on registers
  if (threadIdx.x == 0) n = blockIdx.x;
  __syncthreads();
  while (n < batch.N) {
    BlockTeam team;
    run_chain(team, batch, n, memory + (int64_t)blockIdx.x * bytes);
    __syncthreads();
    if (threadIdx.x == 0) n = (int64_t)(gridDim.x + atomicAdd(taken, 1ull));
    __syncthreads();
  }
}

// bytes of memory per block, aligned to 64: the op codes are on the device, so any op may occur
inline int64_t distort_bytes(int H, int W) {
  return team_bytes(H, W, [](int) { return true; });
}
// blocks to launch where `resident` fit on the device: fewer when the images are large, so that memory stays bounded
inline int64_t distort_blocks(int64_t N, int64_t resident, int64_t bytes) {
  return max_of<int64_t>(1, min_of(min_of(N, resident), DistortLaunch::memory_bytes / bytes));
}

SHAMISA_END
