// Edge lists seen from the nodes, and sums over the edges of a node, on CUDA without torch. As csrc/cpu/relation/incidence.h:
// loops and zeros are left out, the edges of a node stand in the order of the list, and so every run gives the same sums.
//
// count -> scan -> fill -> sort -> sum -> join. Places are taken with integer atomics, in any order, and then sorted.
// Edges come from a source: int64_t count(); void visit(e), once an edge; EdgeEnds ends(e); T value(e).
#pragma once

#include "../warp.cuh"

SHAMISA_BEGIN

struct IncidenceLaunch {
  static constexpr int threads = 256;  // of count and fill: a thread an edge
  static constexpr int scan_threads = 1024;
  static constexpr int sort_threads = 64;  // a block a node, of perhaps 60 edges
  static constexpr int sort_room = 1024;   // edges sorted in shared memory; more are sorted where they lie
  static constexpr int sum_threads = 64;   // x 16 bytes: the columns of a block
  static constexpr int join_threads = 128;
#if defined(SHAMISA_EMULATE)
  static constexpr int share = 32;  // small tests meet several blocks a node too
#else
  static constexpr int share = 128;  // edges of a node that one block sums: a node with many is shared out
#endif
};

// An index outside 0..N-1 cannot be reported without waiting for the device: the edge becomes NaN instead, at nodes that
// exist.
struct EdgeEnds {
  int64_t i, j;
  bool good;
  SHAMISA_DEVICE EdgeEnds(int64_t from, int64_t to, int64_t N) : i(from), j(to) {
    good = i >= 0 && i < N && j >= 0 && j < N;
    if (!good) i = clamp<int64_t>(i, 0, N - 1), j = clamp<int64_t>(j, 0, N - 1);
  }
};

// A node n has the half edges [offset[n], offset[n + 1]), and item[n + 1] - item[n] >= 1 items of work of up to `share` each.
// Item 0 of a node writes its row of `out`, the others rows of `partial`: that of item t of node n is t - n - 1.
template <class T>
struct NodeEdges {
  int64_t N, M;
  int32_t* cursor;  // [N], zeros at first
  int32_t* offset;  // [N + 1]
  int32_t* item;    // [N + 1]
  int32_t* node;    // [N + 2 M / share], of an item
  int32_t* half;    // [2 M], 2 e + (0 at i, 1 at j)
  int32_t* other;   // [2 M]
  T* value;         // [2 M]
  T* edge_value;    // [M], 0 for edges left out
};

// grid: ceil(M / threads); block: IncidenceLaunch::threads. Visits every edge; cursor = number of edges of each node.
template <class T, class Source>
__global__ void __launch_bounds__(IncidenceLaunch::threads) edge_count(const __grid_constant__ Source source, NodeEdges<T> to) {
  const int64_t e = (int64_t)blockIdx.x * IncidenceLaunch::threads + threadIdx.x;
  if (e >= to.M) return;
  source.visit(e);
  const EdgeEnds ends = source.ends(e);
  const T value = !ends.good ? (T)not_a_number() : ends.i == ends.j ? T(0) : source.value(e);
  to.edge_value[e] = value;
  if (value == 0) return;
  atomicAdd(&to.cursor[ends.i], 1);
  atomicAdd(&to.cursor[ends.j], 1);
}

// grid: 1; block: IncidenceLaunch::scan_threads; shared: 256 bytes. offset, item; cursor becomes offset.
template <class T>
__global__ void __launch_bounds__(IncidenceLaunch::scan_threads) edge_scan(NodeEdges<T> to) {
  __shared__ int32_t edges_of[32], items_of[32];  // of the warps
  const int warp = (int)threadIdx.x / 32;
  int32_t edges_before = 0, items_before = 0;
  for (int64_t n0 = 0; n0 < to.N; n0 += IncidenceLaunch::scan_threads) {
    const int64_t n = n0 + threadIdx.x;
    const int32_t degree = n < to.N ? to.cursor[n] : 0;
    const int32_t items = n < to.N ? max_of((degree + IncidenceLaunch::share - 1) / IncidenceLaunch::share, 1) : 0;
    const int32_t edges_upto = warp_scan(degree), items_upto = warp_scan(items);
    if (lane_of_warp() == 31) edges_of[warp] = edges_upto, items_of[warp] = items_upto;
    __syncthreads();
    int32_t edges = edges_before, work = items_before;  // before this warp
    for (int w = 0; w < IncidenceLaunch::scan_threads / 32; ++w) {
      if (w < warp) edges += edges_of[w], work += items_of[w];
      edges_before += edges_of[w], items_before += items_of[w];
    }
    if (n < to.N) {
      to.offset[n] = to.cursor[n] = edges + edges_upto - degree;
      to.item[n] = work + items_upto - items;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) to.offset[to.N] = edges_before, to.item[to.N] = items_before;
}

// grid: ceil(M / threads); block: IncidenceLaunch::threads. half, in any order within a node
template <class T, class Source>
__global__ void __launch_bounds__(IncidenceLaunch::threads) edge_fill(const __grid_constant__ Source source, NodeEdges<T> to) {
  const int64_t e = (int64_t)blockIdx.x * IncidenceLaunch::threads + threadIdx.x;
  if (e >= to.M || to.edge_value[e] == 0) return;
  const EdgeEnds ends = source.ends(e);
  to.half[atomicAdd(&to.cursor[ends.i], 1)] = (int32_t)(2 * e);
  to.half[atomicAdd(&to.cursor[ends.j], 1)] = (int32_t)(2 * e + 1);
}

// v [n] ascending, by all threads of a block. A bitonic network whose exchanges all point upwards: what lies beyond n may be
// thought infinite and never moves. Ends with a barrier.
SHAMISA_DEVICE void block_sort(int32_t* v, int n) {
  const auto exchange = [&](int low, int high) {
    if (high >= n || v[low] <= v[high]) return;
    const int32_t kept = v[low];
    v[low] = v[high];
    v[high] = kept;
  };
  __syncthreads();
  for (int size = 2; size < 2 * n; size *= 2) {
    for (int t = (int)threadIdx.x; t < n; t += (int)blockDim.x) {
      const int run = t / (size / 2) * size, r = t % (size / 2);
      exchange(run + r, run + size - 1 - r);
    }
    __syncthreads();
    for (int stride = size / 4; stride > 0; stride /= 2) {
      for (int t = (int)threadIdx.x; t < n; t += (int)blockDim.x) {
        const int low = t / stride * 2 * stride + t % stride;
        exchange(low, low + stride);
      }
      __syncthreads();
    }
  }
}

// grid: N; block: IncidenceLaunch::sort_threads; shared: 4 KiB. A block a node: half in order, other, value, node.
template <class T, class Source>
__global__ void __launch_bounds__(IncidenceLaunch::sort_threads)
    edge_sort(const __grid_constant__ Source source, NodeEdges<T> to) {
  __shared__ int32_t room[IncidenceLaunch::sort_room];
  const int64_t n = blockIdx.x, first = to.offset[n];
  const int count = (int)(to.offset[n + 1] - first), me = (int)threadIdx.x;
  int32_t* half = to.half + first;
  if (count <= IncidenceLaunch::sort_room) {
    for (int c = me; c < count; c += IncidenceLaunch::sort_threads) room[c] = half[c];
    half = room;
  }
  block_sort(half, count);
  for (int c = me; c < count; c += IncidenceLaunch::sort_threads) {
    const int64_t e = half[c] >> 1;
    const EdgeEnds ends = source.ends(e);
    to.other[first + c] = (int32_t)(half[c] & 1 ? ends.i : ends.j);
    to.value[first + c] = to.edge_value[e];
  }
  for (int64_t t = to.item[n] + me; t < to.item[n + 1]; t += IncidenceLaunch::sort_threads) to.node[t] = (int32_t)n;
}

// Sums over edges of value (x_n - x_other), x [N, D]: the Laplacian of the graph times x.
// grid: (N + 2 M / share, ceil(D / (sum_threads W))); block: IncidenceLaunch::sum_threads; shared: 1.5 KiB. A block an item
// and a stretch of columns, W a thread; blocks of one stretch follow each other, so that its columns stay in the cache.
// Reads a stretch of a row for each edge.
template <class T, int W>
__global__ void __launch_bounds__(IncidenceLaunch::sum_threads)
    edge_sum(NodeEdges<T> from, const T* x, int64_t D, T* out, T* partial) {
  __shared__ int32_t other[IncidenceLaunch::share];
  __shared__ T value[IncidenceLaunch::share];
  const int64_t t = blockIdx.x;
  if (t >= from.item[from.N]) return;
  const int64_t n = from.node[t], piece = t - from.item[n], first = from.offset[n] + piece * IncidenceLaunch::share;
  const int64_t left = from.offset[n + 1] - first;
  const int count = (int)min_of<int64_t>(left, IncidenceLaunch::share);
  for (int c = (int)threadIdx.x; c < count; c += IncidenceLaunch::sum_threads)
    other[c] = from.other[first + c], value[c] = from.value[first + c];
  __syncthreads();
  const int64_t d = ((int64_t)blockIdx.y * IncidenceLaunch::sum_threads + threadIdx.x) * W;
  if (d >= D) return;
  using V = Vector<T, W>;
  const V own = *(const V*)(x + n * D + d);
  V sum;
  SHAMISA_UNROLL
  for (int w = 0; w < W; ++w) sum.v[w] = 0;
  constexpr int ahead = 8;  // loads in flight
  int c = 0;
  for (; c + ahead <= count; c += ahead) {
    V y[ahead];
    SHAMISA_UNROLL
    for (int u = 0; u < ahead; ++u) y[u] = *(const V*)(x + other[c + u] * D + d);
    SHAMISA_UNROLL
    for (int u = 0; u < ahead; ++u) SHAMISA_UNROLL
    for (int w = 0; w < W; ++w) sum.v[w] = fused(value[c + u], own.v[w] - y[u].v[w], sum.v[w]);
  }
  for (; c < count; ++c) {
    const V y = *(const V*)(x + other[c] * D + d);
    SHAMISA_UNROLL
    for (int w = 0; w < W; ++w) sum.v[w] = fused(value[c], own.v[w] - y.v[w], sum.v[w]);
  }
  *(V*)((piece == 0 ? out + n * D : partial + (t - n - 1) * D) + d) = sum;
}

// grid: N; block: IncidenceLaunch::join_threads. Adds the further pieces of a node, in order; most nodes have none.
template <class T>
__global__ void __launch_bounds__(IncidenceLaunch::join_threads)
    edge_join(NodeEdges<T> from, int64_t D, T* out, const T* partial) {
  const int64_t n = blockIdx.x, first = from.item[n] + 1, last = from.item[n + 1];
  if (first == last) return;
  for (int64_t d = threadIdx.x; d < D; d += IncidenceLaunch::join_threads) {
    T sum = out[n * D + d];
    for (int64_t t = first; t < last; ++t) sum += partial[(t - n - 1) * D + d];
    out[n * D + d] = sum;
  }
}

SHAMISA_END
