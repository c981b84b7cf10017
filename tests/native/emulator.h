// CUDA kernels on a CPU: enough of the language to run the .cuh files of csrc/cuda unchanged, under the sanitizers too.
//
// A thread of a block is a fiber (ucontext); blocks run one after another. Fibers run until they come to __syncthreads,
// __syncwarp or a shuffle, where they wait for the threads that must also come there. Blocks, warps and lanes take their turns
// forwards in some launches and backwards in others: a result that depends on their order differs from run to run. A
// __shared__ variable is static, so it holds what the block before left there. A barrier that some threads never reach is
// reported. Compiled with -fsanitize=thread -DSHAMISA_RACES and linked with races.cpp, so are accesses to memory that nothing
// orders, between threads, warps and blocks. What this cannot show: masks of part of a warp, launch limits, speed.
//
// Include this first: it must come before any header of the C library.
#pragma once

#undef _FORTIFY_SOURCE  // its longjmp takes the switch from fiber to fiber for an error

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if defined(SHAMISA_RACES)
#include "races.h"
#define SHAMISA_TELL(call) races::call
#else
#define SHAMISA_TELL(call) (void)0
#endif

#define SHAMISA_EMULATE
#define __global__ static
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

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

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned columns = 1, unsigned rows = 1, unsigned layers = 1) : x(columns), y(rows), z(layers) {}
};
inline dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim, gridDim;
typedef void* cudaStream_t;

namespace emulator {

constexpr size_t stack_bytes = 512 * 1024;
enum State { ready, at_block_barrier, at_warp_barrier, finished };

struct Fiber {
  ucontext_t context;
  jmp_buf point;
  std::unique_ptr<char[]> stack;  // memory that no thread reaches is never touched
  State state = finished;
  bool started = false;
  unsigned exchanges = 0;
  void* fake_stack = nullptr;  // of AddressSanitizer
};

struct Machine {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  jmp_buf scheduler_point;
  void* scheduler_fake = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  std::function<void()> body;
  unsigned current = 0;
  uint32_t chance = 1;
  bool backwards = false;
  uint64_t slots[2][1024];  // a shuffle's value of each thread; in turns, so that one barrier is enough
};
inline Machine machine;

#if !defined(__SANITIZE_ADDRESS__)
// swapcontext asks the system for the signal mask at every switch; these two do not
inline void leave(State state) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = state;
  if (!_setjmp(fiber.point)) _longjmp(machine.scheduler_point, 1);
}
inline void enter(Fiber& fiber) {
  if (_setjmp(machine.scheduler_point)) return;
  if (fiber.started) _longjmp(fiber.point, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}
#else
inline void leave(State state) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = state;
  // a finished fiber gives up its fake stack
  SHAMISA_FIBER_LEAVE(state == finished ? nullptr : &fiber.fake_stack, machine.scheduler_bottom, machine.scheduler_size);
  swapcontext(&fiber.context, &machine.scheduler);
  SHAMISA_FIBER_ENTER(fiber.fake_stack, &machine.scheduler_bottom, &machine.scheduler_size);
}
inline void enter(Fiber& fiber) {
  SHAMISA_FIBER_LEAVE(&machine.scheduler_fake, fiber.stack.get(), stack_bytes);
  swapcontext(&machine.scheduler, &fiber.context);
  SHAMISA_FIBER_ENTER(machine.scheduler_fake, nullptr, nullptr);
}
#endif

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
  SHAMISA_TELL(enter(thread, fiber.stack.get(), stack_bytes));
  enter(fiber);
  SHAMISA_TELL(leave());
}

[[noreturn]] inline void stuck(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

inline void prepare(Fiber& fiber) {
  if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
  fiber.started = false;
  fiber.exchanges = 0;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  // AddressSanitizer's swapcontext would clean the whole stack at every switch if it knew its size
  fiber.context.uc_stack.ss_size = 0;
  SHAMISA_FIBER_CLEAN(fiber.stack.get(), stack_bytes);
  fiber.state = ready;
}

// all threads of one block, from barrier to barrier
inline void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) prepare(machine.fibers[t]);
  const unsigned last = threads / 32 - 1, lanes = machine.backwards ? 31 : 0;
  for (;;) {
    for (unsigned w = 0; w <= last; ++w) {
      const unsigned first = (machine.backwards ? last - w : w) * 32;
      // a warp goes on by itself as long as its threads meet at warp barriers
      for (;;) {
        for (unsigned lane = 0; lane < 32; ++lane)
          if (machine.fibers[first + (lane ^ lanes)].state == ready) resume(first + (lane ^ lanes));
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
void launch(F body, dim3 blocks, unsigned threads) {
  if (threads == 0 || threads % 32 || threads > 1024) stuck("a block must be 1 to 32 whole warps");
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > 0x7fffffffu || blocks.y > 65535 || blocks.z > 65535)
    stuck("a grid must be 1 to 2^31 - 1, 65535, 65535 blocks");
  machine.body = body;
  if (machine.fibers.size() < threads) machine.fibers.resize(threads);
  gridDim = blocks;
  blockDim = threads;
  machine.chance = machine.chance * 1664525u + 1013904223u;
  machine.backwards = machine.chance >> 31;
  const uint64_t count = (uint64_t)blocks.x * blocks.y * blocks.z;
  SHAMISA_TELL(launch());
  SHAMISA_TELL(ignore(&machine, sizeof(machine)));
  SHAMISA_TELL(ignore(machine.fibers.data(), machine.fibers.size() * sizeof(Fiber)));
  for (const dim3* words : {&threadIdx, &blockIdx, &blockDim, &gridDim}) SHAMISA_TELL(ignore(words, sizeof(dim3))), (void)words;
  for (uint64_t b = 0; b < count; ++b) {
    const uint64_t at = machine.backwards ? count - 1 - b : b;
    blockIdx = dim3((unsigned)(at % blocks.x), (unsigned)(at / blocks.x % blocks.y), (unsigned)(at / blocks.x / blocks.y));
    SHAMISA_TELL(block((uint32_t)at));
    run_block(threads);
  }
}

// value as lane 0 .. 31 of this warp gave it
struct Exchange {
  uint64_t* slots;
  explicit Exchange(uint64_t value) : slots(machine.slots[machine.fibers[threadIdx.x].exchanges++ % 2]) {
    slots[threadIdx.x] = value;
    leave(at_warp_barrier);
    slots += threadIdx.x & ~31u;
  }
  uint64_t operator[](unsigned lane) const { return slots[lane]; }
};
template <class T>
T exchange(T value, unsigned from) {
  static_assert(sizeof(T) <= 8, "as on CUDA");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Exchange(bits)[from % 32];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

// (a shuffle or a vote makes the threads meet too, but orders no memory)
inline void __syncthreads() {
  SHAMISA_TELL(barrier(true));
  emulator::leave(emulator::at_block_barrier);
}
inline void __syncwarp(unsigned = 0xffffffffu) {
  SHAMISA_TELL(barrier(false));
  emulator::leave(emulator::at_warp_barrier);
}
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
  const emulator::Exchange all(predicate != 0);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= (unsigned)all[lane] << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
namespace emulator {
struct Atomic {  // while it lives, one atomic operation
  Atomic() { SHAMISA_TELL(set_atomic(true)); }
  ~Atomic() { SHAMISA_TELL(set_atomic(false)); }
};
}  // namespace emulator
template <class T>
T atomicAdd(T* cell, T n) {
  const emulator::Atomic whole;
  const T before = *cell;
  *cell += n;
  return before;
}
template <class T>
T atomicMax(T* cell, T n) {
  const emulator::Atomic whole;
  const T before = *cell;
  if (before < n) *cell = n;
  return before;
}
template <class T>
T atomicMin(T* cell, T n) {
  const emulator::Atomic whole;
  const T before = *cell;
  if (n < before) *cell = n;
  return before;
}
template <class T>
T atomicCAS(T* cell, T expected, T value) {
  const emulator::Atomic whole;
  const T before = *cell;
  if (before == expected) *cell = value;
  return before;
}
template <class T>
T atomicOr(T* cell, T n) {
  const emulator::Atomic whole;
  const T before = *cell;
  *cell |= n;
  return before;
}
inline void __threadfence_block() {}
inline void __threadfence() { SHAMISA_TELL(fence()); }
