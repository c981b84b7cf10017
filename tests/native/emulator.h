// CUDA kernels on a CPU: enough of the language to run the .cuh files of csrc/cuda unchanged, under the sanitizers too.
//
// A thread of a block is a fiber (ucontext); blocks run one after another. Fibers run until they come to __syncthreads,
// __syncwarp or a shuffle, where they wait for the threads that must also come there. A __shared__ variable is static, and
// filled with rubbish before every block. What this cannot show: races between blocks or within a phase, memory models,
// launch limits, speed. A barrier that some threads never reach is reported.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define SHAMISA_EMULATE
#define __global__ static
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SHAMISA_FIBER_LEAVE(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SHAMISA_FIBER_ENTER(saved, bottom, size) __sanitizer_finish_switch_fiber(saved, bottom, size)
#define SHAMISA_FIBER_CLEAN(stack, size) __asan_unpoison_memory_region(stack, size)
#else
#define SHAMISA_FIBER_LEAVE(save, bottom, size) (void)(save), (void)(bottom), (void)(size)
#define SHAMISA_FIBER_ENTER(saved, bottom, size) (void)(saved), (void)(bottom), (void)(size)
#define SHAMISA_FIBER_CLEAN(stack, size) (void)(stack), (void)(size)
#endif

struct EmulatedIndex {
  unsigned x = 0, y = 0, z = 0;
};
inline EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t stack_bytes = 512 * 1024;
enum State { ready, at_block_barrier, at_warp_barrier, finished };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state = finished;
  void* fake_stack = nullptr;  // of AddressSanitizer
};

struct Machine {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  void* scheduler_fake = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  std::function<void()> body;
  unsigned current = 0;
  uint64_t slots[1024];  // a shuffle's value of each thread
};
inline Machine machine;

inline void leave(State state) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = state;
  // a finished fiber gives up its fake stack
  SHAMISA_FIBER_LEAVE(state == finished ? nullptr : &fiber.fake_stack, machine.scheduler_bottom, machine.scheduler_size);
  swapcontext(&fiber.context, &machine.scheduler);
  SHAMISA_FIBER_ENTER(fiber.fake_stack, &machine.scheduler_bottom, &machine.scheduler_size);
}

inline void fiber_main() {
  SHAMISA_FIBER_ENTER(nullptr, &machine.scheduler_bottom, &machine.scheduler_size);
  machine.body();
  leave(finished);
}

inline void resume(unsigned thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.current = thread;
  threadIdx.x = thread;
  fiber.state = ready;
  SHAMISA_FIBER_LEAVE(&machine.scheduler_fake, fiber.stack.data(), stack_bytes);
  swapcontext(&machine.scheduler, &fiber.context);
  SHAMISA_FIBER_ENTER(machine.scheduler_fake, nullptr, nullptr);
}

[[noreturn]] inline void stuck(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u)\n", what, blockIdx.x);
  std::abort();
}

// all threads of one block, from barrier to barrier
inline void run_block(unsigned threads) {
  for (Fiber& fiber : machine.fibers) {
    fiber.stack.resize(stack_bytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    // AddressSanitizer's swapcontext would clean the whole stack at every switch if it knew its size
    fiber.context.uc_stack.ss_size = 0;
    SHAMISA_FIBER_CLEAN(fiber.stack.data(), stack_bytes);
    fiber.state = ready;
  }
  for (;;) {
    for (unsigned first = 0; first < threads; first += 32) {
      // a warp goes on by itself as long as its threads meet at warp barriers
      for (;;) {
        for (unsigned t = first; t < first + 32; ++t)
          if (machine.fibers[t].state == ready) resume(t);
        unsigned waiting = 0;
        for (unsigned t = first; t < first + 32; ++t) waiting += machine.fibers[t].state == at_warp_barrier;
        if (waiting == 0) break;
        if (waiting != 32) stuck("a warp barrier that not all threads of the warp reach");
        for (unsigned t = first; t < first + 32; ++t) machine.fibers[t].state = ready;
      }
    }
    unsigned waiting = 0;
    for (unsigned t = 0; t < threads; ++t) waiting += machine.fibers[t].state == at_block_barrier;
    if (waiting == 0) return;
    if (waiting != threads) stuck("__syncthreads that not all threads reach");
    for (unsigned t = 0; t < threads; ++t) machine.fibers[t].state = ready;
  }
}

template <class F>
void launch(F body, unsigned blocks, unsigned threads) {
  if (threads == 0 || threads % 32 || threads > 1024) stuck("a block must be 1 to 32 whole warps");
  machine.body = body;
  machine.fibers.resize(threads);
  gridDim.x = blocks;
  blockDim.x = threads;
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    run_block(threads);
  }
}

template <class T>
T exchange(T value, unsigned from) {
  static_assert(sizeof(T) <= 8, "as on CUDA");
  const unsigned me = threadIdx.x, warp = me & ~31u;
  std::memcpy(&machine.slots[me], &value, sizeof(T));
  leave(at_warp_barrier);
  std::memcpy(&value, &machine.slots[warp + from % 32], sizeof(T));
  leave(at_warp_barrier);
  return value;
}

}  // namespace emulator

inline void __syncthreads() { emulator::leave(emulator::at_block_barrier); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::leave(emulator::at_warp_barrier); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, (threadIdx.x & 31) ^ (unsigned)mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const unsigned lane = threadIdx.x & 31;
  return emulator::exchange(value, lane + (unsigned)delta < 32 ? lane + (unsigned)delta : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const unsigned lane = threadIdx.x & 31;
  return emulator::exchange(value, lane >= (unsigned)delta ? lane - (unsigned)delta : lane);
}
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::exchange(value, (unsigned)from);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  emulator::machine.slots[threadIdx.x] = predicate != 0;
  emulator::leave(emulator::at_warp_barrier);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    bits |= (unsigned)(emulator::machine.slots[(threadIdx.x & ~31u) + lane] & 1) << lane;
  emulator::leave(emulator::at_warp_barrier);
  return bits;
}
template <class T>
T atomicAdd(T* cell, T n) {
  const T before = *cell;
  *cell += n;
  return before;
}
template <class T>
T atomicMax(T* cell, T n) {
  const T before = *cell;
  if (before < n) *cell = n;
  return before;
}
template <class T>
T atomicMin(T* cell, T n) {
  const T before = *cell;
  if (n < before) *cell = n;
  return before;
}
template <class T>
T atomicOr(T* cell, T n) {
  const T before = *cell;
  *cell |= n;
  return before;
}
inline void __threadfence_block() {}
inline void __threadfence() {}
