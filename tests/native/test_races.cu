// The race detector finds what it should: kernels with one mistake each, and without it.
#include "emulator.h"
// after it, so that the words of the emulator stand
#include <vector>

#include "../../csrc/cuda/relation/tile.cuh"
#include "check.h"

using namespace shamisa;

enum Mistake { none, no_block_barrier, no_warp_barrier, no_atomic, no_fence, no_beginning };

// every thread reads what a thread of another warp, then what another lane has written; blocks count themselves
template <Mistake mistake>
__global__ void exchange(int* counted, unsigned* finished, int* out) {
  __shared__ int value[64], late;
  __shared__ int flag;
  const int me = (int)threadIdx.x, lane = me % 32;
  if (me == 0 && (mistake != no_beginning || blockIdx.x == 0)) late = (int)blockIdx.x;
  value[me] = me;
  if (mistake != no_block_barrier) __syncthreads();
  const int other = value[(me + 32) % 64];
  __syncthreads();
  value[me] = other;
  if (mistake != no_warp_barrier)
    __syncwarp();
  else
    __shfl_xor_sync(0xffffffffu, other, 1);  // the lanes meet, but their memory has no order
  out[blockIdx.x * 64 + me] = value[me / 32 * 32 + 31 - lane] + late;
  if (me == 0) mistake == no_atomic ? * counted += 1 : atomicAdd(counted, 1);
  if (mistake == no_fence) {
    __syncthreads();
    if (me == 0) flag = atomicAdd(finished, 1u) == gridDim.x - 1;
    __syncthreads();
  } else {
    last_block(finished, &flag);
  }
  if (flag && blockIdx.x > 0) out[me] += out[64 + me];
}

template <Mistake mistake>
static size_t races_of() {
  std::vector<int> out(192), counted(1);
  std::vector<unsigned> finished(1);
  const size_t before = races::count();
  SHAMISA_LAUNCH(exchange<mistake>, 3, 64, 0, counted.data(), finished.data(), out.data());
  return races::count() - before;
}

int main() {
  CHECK(races_of<none>() == 0, "a kernel without a race");
  CHECK(races_of<no_block_barrier>() > 0, "between warps");
  CHECK(races_of<no_warp_barrier>() > 0, "between lanes");
  CHECK(races_of<no_atomic>() > 0, "between blocks");
  CHECK(races_of<no_fence>() > 0, "the last block without fences");
  CHECK(races_of<no_beginning>() > 0, "shared memory that nobody wrote");
  std::printf("races: %d checks, %d failed\n", checks, failures);
  return failures != 0;
}
