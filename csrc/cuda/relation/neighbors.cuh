// The k nearest rows of every row on CUDA, without torch. As csrc/cpu/relation/neighbors.h:
//
// 1. Squared distances |x_i|^2 + |x_j|^2 - 2 x_i . x_j of all pairs, into a matrix of bounded size: whole and by symmetry, or
//    panel of rows after panel of rows. x is h less a common center: distances stay, but the products, and with them the
//    rounding, shrink to the spread of the rows.
// 2. Each row keeps its k + margin smallest, ties to the smaller j; NaN never.
// 3. Where that cannot be shown to be exact enough, those few are measured again by their differences, and in double where
//    two are close: that decides the order.
// 4. A row for which even the choice is in doubt (a tight cluster far from the center) is measured against all that could be
//    nearer. A block a row is launched for that whether or not there is any such row: the host need not know.
#pragma once

#include "incidence.cuh"
#include "neighbors_refine.cuh"

SHAMISA_BEGIN

// grid: ceil(N k / NeighborLaunch::threads); block: NeighborLaunch::threads. mutual [N, k]: whether row i is also a neighbour
// of its neighbour
__global__ void __launch_bounds__(NeighborLaunch::threads)
    neighbor_mutual(const int64_t* neighbor, int64_t N, int64_t k, bool* mutual) {
  const int64_t e = (int64_t)blockIdx.x * NeighborLaunch::threads + threadIdx.x;
  if (e >= N * k) return;
  mutual[e] = way_back(neighbor, k, e / k, e % k) >= 0;
}

// The edges of the gradient in h: from each row to its neighbours, with the value distance_slope.
template <class T>
struct NeighborEdges {
  const T *grad, *distance;  // [N, k]
  const int64_t* neighbor;   // [N, k]
  int64_t N, k;

  int64_t count() const { return N * k; }
  SHAMISA_DEVICE void visit(int64_t) const {}
  SHAMISA_DEVICE EdgeEnds ends(int64_t e) const { return EdgeEnds((uint32_t)e / (uint32_t)k, neighbor[e], N); }
  SHAMISA_DEVICE T value(int64_t e) const { return distance_slope(grad[e], distance[e]); }
};

SHAMISA_END
