// Team: what computes one image. On the CPU a team is one thread (ThreadTeam), on CUDA a thread block (BlockTeam). An op is a
// template over the team, written in the verbs below, and so the same source is fast on both and is tested on the CPU.
//
//   each(n, f)            f(i) for i < n, in any order, independent of each other
//   grid(H, W, f)         f(y, x) for every pixel, likewise
//   tiles<32>(H, W, f)    f(y, x, Lanes<N>): N pixels of row y from column x on, computed in a Pack<N>. On the CPU the last
//                         tile of a row overlaps the one before, so f may run twice for a pixel: read and write different
//                         images
//   pieces<N>(n, f)       f(first, count, Lanes<M>): elements first .. first + count - 1, count <= M; M = N on the CPU, 1 on
//                         CUDA
//   scan(columns, steps, f)  f(step, column): for one column the steps run in order (running sums down the columns)
//   split(n, f)           f(i, group) for i < n: item i belongs to one group (CPU: the thread, CUDA: a warp), which has the
//                         verbs each, sum, min, max, serial (code-blocks of a codec) and knows i as item()
//   sum<T>, min<T>, max<T>(n, f)  of f(i), the result known to every thread. Integers, min and max are exact; a float sum
//                         depends on the machine in its last bits, so sum integers where the result decides anything
//   histogram(cells, bins, n, f)  cells[k] = how many i < n have f(i) = k, 0 <= k < bins
//   add(cell, n)          *cell += n from within split (integers)
//   serial(f)             f() once
//   small<T>(n)           n elements of fast memory (CPU: cache, CUDA: shared), for weights, tables, histograms; the same on
//                         every call path of the team, uninitialised, given back when the stage ends. small_bytes in all
//   keep<place>(value)    one copy of a struct in fast memory, the same for the whole team; returns kept<place, T>(), which
//                         finds it again in every function of the op
//   each_words(n, draw, key, f)  f(i, Words): the random words at element i (see philox.h)
//
// Rules: every thread of the team calls every verb, with the same arguments (verbs stand outside conditions that differ
// between threads). Each verb ends with a barrier: what it wrote, global, scratch or small, is visible to the next verb. Verbs
// do not nest, except those of a group inside split. Inside f, write only to memory that no other i reads or writes.
//
// Registers: a thread of a CUDA block has 64, and what it still needs after a step takes one of them, also in the busiest loop
// of that step. So an op keeps what its steps share. A step looks it up at its fixed address and captures the reference [=]:
// that copies the fields it uses, which die with the step.
#pragma once

#include "pack.h"
#include "philox.h"

SHAMISA_BEGIN

constexpr int small_bytes = 32 * 1024;  // of fast memory for one stage
constexpr int kept_bytes = 256;         // the first bytes of it: room for one struct in each of these places
enum Place : int { chain_place, op_place, filter_place, place_count };
constexpr int first_small = place_count * kept_bytes;

// ---- CPU -------------------------------------------------------------------------------------------------------------
#if defined(__CUDACC__)
struct ThreadTeam;  // known by name, for overloads
#else
struct ThreadTeam {
  static constexpr bool vectors = true;  // a loop over neighbours is one of vectors: tables repeat along a row
  unsigned char* fast;                   // [small_bytes], aligned to 64
  int used = first_small;

  SHAMISA_HD explicit ThreadTeam(unsigned char* memory) : fast(memory) {}

  template <class F>
  SHAMISA_HD void each(int n, F f) {
    SHAMISA_INDEPENDENT
    for (int i = 0; i < n; ++i) f(i);
  }
  template <class F>
  SHAMISA_HD void grid(int H, int W, F f) {
    for (int y = 0; y < H; ++y) {
      SHAMISA_INDEPENDENT
      for (int x = 0; x < W; ++x) f(y, x);
    }
  }
  template <int N, class F>
  SHAMISA_HD void tiles(int H, int W, F f) {
    if (W >= N)
      tiles_of<N>(H, W, f);
    else if (W >= 8)
      tiles_of<8>(H, W, f);
    else
      tiles_of<1>(H, W, f);
  }
  template <int N, class F>
  SHAMISA_HD void pieces(int n, F f) {
    for (int first = 0; first < n; first += N) f(first, min_of(N, n - first), Lanes<N>{});
  }
  template <class F>
  SHAMISA_HD void scan(int columns, int steps, F f) {
    for (int step = 0; step < steps; ++step) {
      SHAMISA_INDEPENDENT
      for (int column = 0; column < columns; ++column) f(step, column);
    }
  }
  template <class F>
  SHAMISA_HD void split(int n, F f) {  // i < n: also item()
    for (item_ = 0; item_ < n; ++item_) f(item_, *this);
  }
  template <class T, class F>
  SHAMISA_HD T sum(int n, F f) {
    return reduce<T>(n, f, T(0), [](T a, T b) { return a + b; });
  }
  template <class T, class F>
  SHAMISA_HD T min(int n, F f) {  // n >= 1
    return reduce<T>(n, f, f(0), [](T a, T b) { return min_of(a, b); });
  }
  template <class T, class F>
  SHAMISA_HD T max(int n, F f) {  // n >= 1
    return reduce<T>(n, f, f(0), [](T a, T b) { return max_of(a, b); });
  }
  template <class F>
  SHAMISA_HD void histogram(int* cells, int bins, int n, F f) {
    for (int k = 0; k < bins; ++k) cells[k] = 0;
    for (int i = 0; i < n; ++i) cells[f(i)] += 1;
  }
  template <class T>
  SHAMISA_HD void add(T* cell, T n) {
    *cell += n;
  }
  template <class F>
  SHAMISA_HD void serial(F f) {
    f();
  }
  SHAMISA_HD void sync() {}
  template <class T>
  SHAMISA_HD T* small(int n) {
    T* p = (T*)(fast + used);
    used += (n * (int)sizeof(T) + 63) / 64 * 64;
    return p;
  }
  template <Place place, class T>
  SHAMISA_HD T& kept() {
    static_assert(sizeof(T) <= kept_bytes, "a kept struct has 256 bytes");
    return *(T*)(fast + place * kept_bytes);
  }
  template <Place place, class T>
  SHAMISA_HD T& keep(const T& value) {
    return kept<place, T>() = value;
  }
  template <class F>
  SHAMISA_HD void each_words(int n, uint32_t draw, Key key, F f) {
    words_from(0, n, draw, key, f);
  }

  SHAMISA_HD int item() const { return item_; }

 private:
  int item_ = 0;
  template <int N, class F>
  SHAMISA_HD void tiles_of(int H, int W, F f) {
    for (int y = 0; y < H; ++y) {
      int x = 0;
      for (; x + N <= W; x += N) f(y, x, Lanes<N>{});
      if (x < W) f(y, W - N, Lanes<N>{});
    }
  }
  // 32 running results: a single one would make the loop scalar
  template <class T, class F, class Join>
  SHAMISA_HD T reduce(int n, F f, T start, Join join) {
    T partial[32];
    for (int j = 0; j < 32; ++j) partial[j] = start;
    int i = 0;
    for (; i + 32 <= n; i += 32)
      for (int j = 0; j < 32; ++j) partial[j] = join(partial[j], f(i + j));
    for (; i < n; ++i) partial[0] = join(partial[0], f(i));
    for (int j = 1; j < 32; ++j) partial[0] = join(partial[0], partial[j]);
    return partial[0];
  }
};
#endif

// ---- CUDA, and its emulation -----------------------------------------------------------------------------------------
#if defined(__CUDACC__) || defined(SHAMISA_EMULATE)

// Read anew for each step: else what the compiler derives from it in one step it holds ready for all others.
SHAMISA_DEVICE int thread_index() {
#if defined(__CUDA_ARCH__)
  int i;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(i));
  return i;
#else
  return (int)threadIdx.x;
#endif
}

// the memory of a block
struct BlockMemory {
  SHAMISA_DEVICE static unsigned char* fast() {
    alignas(64) __shared__ unsigned char memory[small_bytes];
    return memory;
  }
  template <Place place, class T>
  SHAMISA_DEVICE static T& kept() {
    static_assert(sizeof(T) <= kept_bytes, "a kept struct has 256 bytes");
    return *(T*)(fast() + place * kept_bytes);
  }
};

// one warp of a block
struct WarpTeam : BlockMemory {
  SHAMISA_DEVICE static int lane() { return thread_index() % 32; }
  SHAMISA_DEVICE static int& item() {  // of split, in no register
    __shared__ int items[32];
    return items[thread_index() / 32];
  }

  template <class F>
  SHAMISA_DEVICE void each(int n, F f) {
    for (int i = lane(); i < n; i += 32) f(i);
    __syncwarp();
  }
  template <class T, class F>
  SHAMISA_DEVICE T sum(int n, F f) {
    T t = 0;
    for (int i = lane(); i < n; i += 32) t = t + f(i);
    return join(t, [](T a, T b) { return a + b; });
  }
  template <class T, class F>
  SHAMISA_DEVICE T min(int n, F f) {  // n >= 1
    T t = f(0);
    for (int i = lane(); i < n; i += 32) t = min_of(t, (T)f(i));
    return join(t, [](T a, T b) { return min_of(a, b); });
  }
  template <class T, class F>
  SHAMISA_DEVICE T max(int n, F f) {  // n >= 1
    T t = f(0);
    for (int i = lane(); i < n; i += 32) t = max_of(t, (T)f(i));
    return join(t, [](T a, T b) { return max_of(a, b); });
  }
  template <class T>
  SHAMISA_DEVICE void add(T* cell, T n) {
    atomicAdd(cell, n);
  }
  template <class F>
  SHAMISA_DEVICE void serial(F f) {
    if (lane() == 0) f();
    __syncwarp();
  }
  template <class T, class Join>
  SHAMISA_DEVICE T join(T t, Join pair) {
    for (int step = 16; step > 0; step /= 2) t = pair(t, __shfl_xor_sync(0xffffffffu, t, step));
    __syncwarp();  // also orders the memory that f read
    return t;
  }
  SHAMISA_DEVICE unsigned total(unsigned n) {  // of all lanes
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_add_sync(0xffffffffu, n);
#else
    return join(n, [](unsigned a, unsigned b) { return a + b; });
#endif
  }
};

// block: a multiple of 32 threads, at most 1024, one-dimensional
struct BlockTeam : BlockMemory {
  static constexpr bool vectors = false;
  int used = first_small;

  template <class F>
  SHAMISA_DEVICE void each(int n, F f) {
#pragma unroll 1
    for (int i = thread_index(); i < n; i += (int)blockDim.x) f(i);
    __syncthreads();
  }
  template <class F>
  SHAMISA_DEVICE void grid(int H, int W, F f) {
    pixels(H, W, f);
    __syncthreads();
  }
  template <int N, class F>
  SHAMISA_DEVICE void tiles(int H, int W, F f) {
    pixels(H, W, [=](int y, int x) { f(y, x, Lanes<1>{}); });
    __syncthreads();
  }
  template <int N, class F>
  SHAMISA_DEVICE void pieces(int n, F f) {
#pragma unroll 1
    for (int i = thread_index(); i < n; i += (int)blockDim.x) f(i, 1, Lanes<1>{});
    __syncthreads();
  }
  template <class F>
  SHAMISA_DEVICE void scan(int columns, int steps, F f) {
#pragma unroll 1
    for (int column = thread_index(); column < columns; column += (int)blockDim.x)
      for (int step = 0; step < steps; ++step) f(step, column);
    __syncthreads();
  }
  template <class F>
  SHAMISA_DEVICE void split(int n, F f) {
    WarpTeam warp;
    if (thread_index() == 0) limit() = n;
    if (warp.lane() == 0) warp.item() = thread_index() / 32;
    __syncthreads();
#pragma unroll 1
    while (warp.item() < limit()) {
      f(warp.item(), warp);
      __syncwarp();
      if (warp.lane() == 0) warp.item() += (int)blockDim.x / 32;
      __syncwarp();
    }
    __syncthreads();
  }
  template <class T, class F>
  SHAMISA_DEVICE T sum(int n, F f) {
    T t = 0;
#pragma unroll 1
    for (int i = thread_index(); i < n; i += (int)blockDim.x) t = t + f(i);
    return join(t, [](T a, T b) { return a + b; });
  }
  template <class T, class F>
  SHAMISA_DEVICE T min(int n, F f) {  // n >= 1
    T t = f(0);
#pragma unroll 1
    for (int i = thread_index(); i < n; i += (int)blockDim.x) t = min_of(t, (T)f(i));
    return join(t, [](T a, T b) { return min_of(a, b); });
  }
  template <class T, class F>
  SHAMISA_DEVICE T max(int n, F f) {  // n >= 1
    T t = f(0);
#pragma unroll 1
    for (int i = thread_index(); i < n; i += (int)blockDim.x) t = max_of(t, (T)f(i));
    return join(t, [](T a, T b) { return max_of(a, b); });
  }
  template <class F>
  SHAMISA_DEVICE void histogram(int* cells, int bins, int n, F f) {
    each(bins, [=](int k) { cells[k] = 0; });
    each(n, [=](int i) { atomicAdd(&cells[f(i)], 1); });
  }
  template <class T>
  SHAMISA_DEVICE void add(T* cell, T n) {
    atomicAdd(cell, n);
  }
  template <class F>
  SHAMISA_DEVICE void serial(F f) {
    if (thread_index() == 0) f();
    __syncthreads();
  }
  SHAMISA_DEVICE void sync() { __syncthreads(); }
  template <class T>
  SHAMISA_DEVICE T* small(int n) {
    T* p = (T*)(fast() + used);
    used += (n * (int)sizeof(T) + 63) / 64 * 64;
    return p;
  }
  template <Place place, class T>
  SHAMISA_DEVICE T& keep(const T& value) {
    serial([&] { kept<place, T>() = value; });
    return kept<place, T>();
  }
  template <class F>
  SHAMISA_DEVICE void each_words(int n, uint32_t draw, Key key, F f) {
#pragma unroll 1
    for (int i = thread_index(); i < n; i += (int)blockDim.x) f(i, philox(key, (uint32_t)i, draw));
    __syncthreads();
  }

 private:
  SHAMISA_DEVICE static double* partial() {
    __shared__ double memory[32];
    return memory;
  }
  SHAMISA_DEVICE static int& limit() {  // of split
    __shared__ int n;
    return n;
  }
  // f(y, x) of this thread; steps instead of a division for each pixel
  template <class F>
  SHAMISA_DEVICE void pixels(int H, int W, F f) {
    if (W <= 0) return;
    const int down = (int)blockDim.x / W, right = (int)blockDim.x % W;
    int y = thread_index() / W, x = thread_index() % W;
#pragma unroll 1
    while (y < H) {
      f(y, x);
      x += right, y += down;
      if (x >= W) x -= W, ++y;
    }
  }
  template <class T, class Join>
  SHAMISA_DEVICE T join(T t, Join pair) {
    static_assert(sizeof(T) <= 8, "a reduction slot has 8 bytes");
    T* slots = (T*)partial();
    WarpTeam warp;
    t = warp.join(t, pair);
    if (warp.lane() == 0) slots[thread_index() / 32] = t;
    __syncthreads();
    t = slots[0];
    for (int i = 1; i < (int)blockDim.x / 32; ++i) t = pair(t, slots[i]);
    __syncthreads();  // the slots are free again
    return t;
  }
};
#endif

SHAMISA_END
