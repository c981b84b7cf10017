// Edges i < j sorted by (i, j), the weights of equal ones added. Host code, no torch, no allocation.
//
// The edges of a node are brought together by counting, in the order of the input; its other ends are marked in a bitmap,
// which gives them back in order, each once. Time is linear in the edges, and no two weights are added in another order.
#pragma once

#include "../../core/host_device.h"

SHAMISA_BEGIN

struct MergeScratch {
  int64_t* offset;  // [nodes + 1]
  uint32_t* edge;   // [M], the edges i < j, node by node
  uint32_t* slot;   // [nodes], where the edge to node j went, relative to the first of node i
  uint64_t* mark;   // [nodes / 64 + 1]
};

// Returns the number of distinct edges, or -1 when an index is not in 0 .. nodes. The rest of merged and to is zeroed.
template <class T>
inline int64_t merge(const T* weight, const int64_t* i, const int64_t* j, int64_t M, int64_t nodes, MergeScratch to_use,
                     T* merged, int64_t* to_i, int64_t* to_j, int64_t* position) {
  const MergeScratch& s = to_use;
  for (int64_t n = 0; n <= nodes; ++n) s.offset[n] = 0;
  for (int64_t w = 0; w <= nodes / 64; ++w) s.mark[w] = 0;
  for (int64_t e = 0; e < M; ++e) {
    if ((uint64_t)i[e] >= (uint64_t)nodes || (uint64_t)j[e] >= (uint64_t)nodes) return -1;
    s.offset[i[e]] += i[e] < j[e];
  }
  int64_t start = 0;
  for (int64_t n = 0; n <= nodes; ++n) {
    const int64_t count = s.offset[n];
    s.offset[n] = start;
    start += count;
  }
  for (int64_t e = 0; e < M; ++e) {
    if (i[e] < j[e])
      s.edge[s.offset[i[e]]++] = (uint32_t)e;
    else
      position[e] = -1;
  }  // the fill moved every offset to the end of its node
  int64_t used = 0;
  for (int64_t n = 0; n < nodes; ++n) {
    const int64_t first = n ? s.offset[n - 1] : 0, last = s.offset[n];
    int64_t low = nodes / 64, high = 0;  // words with a mark
    for (int64_t k = first; k < last; ++k) {
      const int64_t other = j[s.edge[k]], word = other / 64;
      s.mark[word] |= 1ull << other % 64;
      low = word < low ? word : low;
      high = word > high ? word : high;
    }
    const int64_t begin = used;
    for (int64_t w = low; first < last && w <= high; ++w) {
      for (uint64_t bits = s.mark[w]; bits; bits &= bits - 1) {
        const int64_t other = 64 * w + __builtin_ctzll(bits);
        s.slot[other] = (uint32_t)(used - begin);
        merged[used] = 0;
        to_i[used] = n;
        to_j[used++] = other;
      }
      s.mark[w] = 0;
    }
    for (int64_t k = first; k < last; ++k) {
      const uint32_t e = s.edge[k];
      position[e] = begin + s.slot[j[e]];
      merged[position[e]] += weight[e];
    }
  }
  for (int64_t e = used; e < M; ++e) merged[e] = 0, to_i[e] = 0, to_j[e] = 0;
  return used;
}

// grad of the merged weights -> of the input weights; false when a position is not below `count`
template <class T>
inline bool merge_backward(const T* grad, int64_t count, const int64_t* position, int64_t M, T* out) {
  bool good = true;
  for (int64_t e = 0; e < M; ++e) {
    const bool inside = position[e] < count;
    good &= inside;
    out[e] = position[e] >= 0 && inside ? grad[position[e]] : T(0);
  }
  return good;
}

SHAMISA_END
