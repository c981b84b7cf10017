// Merging of edges on CUDA, without torch.
#pragma once

#include "../warp.cuh"

SHAMISA_BEGIN

struct MergeLaunch {
  static constexpr int threads = 256;
  static constexpr int scan_threads = 1024;
};

// grid: ceil(M / threads); block: threads. key [M] = i nodes + j for i < j, else nodes^2: sorted last, and dropped. Indices
// outside 0..nodes-1 cannot be reported without waiting for the device; they are dropped too. K: int32_t or int64_t.
template <class K>
__global__ void __launch_bounds__(MergeLaunch::threads) merge_keys(const int64_t* index, int64_t M, int64_t nodes, K* key) {
  const int64_t e = (int64_t)blockIdx.x * MergeLaunch::threads + threadIdx.x;
  if (e >= M) return;
  const int64_t i = index[e], j = index[M + e];
  key[e] = (K)(i >= 0 && i < j && j < nodes ? i * nodes + j : nodes * nodes);
}

// the exclusive sum of n over the block, and its sum in *total; slots: shared [32]
SHAMISA_DEVICE int block_scan(int n, int* slots, int* total) {
  const int upto = warp_scan(n), warp = (int)threadIdx.x / 32;
  __syncthreads();
  if (lane_of_warp() == 31) slots[warp] = upto;
  __syncthreads();
  int before = 0, sum = 0;
  for (int w = 0; w < (int)blockDim.x / 32; ++w) {
    before += w < warp ? slots[w] : 0;
    sum += slots[w];
  }
  *total = sum;
  return before + upto - n;
}

// whether e begins a run of equal keys that are not dropped
template <class K>
SHAMISA_DEVICE bool begins_run(const K* key, int64_t M, int64_t e, K dropped) {
  return e < M && key[e] != dropped && (e == 0 || key[e] != key[e - 1]);
}

// grid: ceil(M / scan_threads); block: scan_threads; shared: 128 bytes. runs [grid]: how many runs of keys begin in a block.
template <class K>
__global__ void __launch_bounds__(MergeLaunch::scan_threads)
    merge_count(const K* key /* [M] sorted */, int64_t M, K dropped, int* runs) {
  __shared__ int slots[32];
  const int64_t e = (int64_t)blockIdx.x * MergeLaunch::scan_threads + threadIdx.x;
  int total;
  block_scan(begins_run(key, M, e, dropped), slots, &total);
  if (threadIdx.x == 0) runs[blockIdx.x] = total;
}

// grid and block as merge_count. The thread at the beginning of a run adds the weights of the run, in the order of the input,
// and writes its edge; a run is a few edges long. order [M] is where each sorted key comes from. Places behind the last run
// become edge (0, 0) with weight 0. Reads runs [grid] in every block.
template <class T, class K>
__global__ void __launch_bounds__(MergeLaunch::scan_threads)
    merge_write(const K* key, const int64_t* order, const T* weight, const int* runs, int64_t M, int64_t nodes, T* merged,
                int64_t* index, int64_t* position) {
  __shared__ int slots[32], counts[2];
  const K dropped = (K)(nodes * nodes);
  int before = 0, all = 0, total;  // runs that begin in earlier blocks, and in all
  for (int b = (int)threadIdx.x; b < (int)gridDim.x; b += MergeLaunch::scan_threads) {
    before += b < (int)blockIdx.x ? runs[b] : 0;
    all += runs[b];
  }
  if (threadIdx.x < 2) counts[threadIdx.x] = 0;
  __syncthreads();
  if (before) atomicAdd(counts, before);
  if (all) atomicAdd(counts + 1, all);
  __syncthreads();
  before = counts[0], all = counts[1];
  const int64_t e = (int64_t)blockIdx.x * MergeLaunch::scan_threads + threadIdx.x;
  const bool first = begins_run(key, M, e, dropped);
  const int64_t slot = (int64_t)before + block_scan(first, slots, &total) + first - 1;  // of the run that e is in
  if (e >= M) return;
  if (e >= all) {
    merged[e] = 0;
    index[e] = index[M + e] = 0;
  }
  position[order[e]] = key[e] == dropped ? -1 : slot;
  if (!first) return;
  T sum = 0;
  for (int64_t other = e; other < M && key[other] == key[e]; ++other) sum += weight[order[other]];
  merged[slot] = sum;
  index[slot] = (int64_t)key[e] / nodes;
  index[M + slot] = (int64_t)key[e] % nodes;
}

// grid: ceil(M / threads); block: threads
template <class T>
__global__ void __launch_bounds__(MergeLaunch::threads)
    merge_gather(const T* grad, const int64_t* position, int64_t M, int64_t merged, T* out) {
  const int64_t e = (int64_t)blockIdx.x * MergeLaunch::threads + threadIdx.x;
  if (e >= M) return;
  const int64_t at = position[e];
  out[e] = at >= 0 && at < merged ? grad[at] : T(0);
}

SHAMISA_END
