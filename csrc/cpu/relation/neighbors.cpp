// CPU kernels of knn_graph. As all relation ops of this folder (schemas: shamisa/ops.py; what they compute:
// shamisa/reference/relations.py):
//
// Thin: tensors become pointers, loops run on torch's threads, the arithmetic stands in the header of the same name, compiled
// per x86-64 level. Results do not depend on the number of threads: each output is written by one task, and choices follow a
// total order.
#include "neighbors.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "laplacian.h"
#include "typed.h"

namespace shamisa {
namespace {

// Rows of h [N, F] -> distance and neighbor [N, k], except where doubt [N] says so, and norm [N], their squared distances
// from the center: `around` [F], or else one chosen here.
template <class T>
void nearest(const T* h, int64_t N, int64_t F, int64_t k, const T* around, T* norm, T* distance, int64_t* neighbor,
             uint8_t* doubt) {
  const TypedRelationKernels<T>& run = typed<T>();
  const int candidates = (int)(k + neighbor_margin < N - 1 ? k + neighbor_margin : N - 1);
  const int64_t panels = (N + run.panel_rows - 1) / run.panel_rows;
  const int stride = 1 + (candidates + list_lanes - 1) / list_lanes * list_lanes;
  const Tensor packed = make({panels * run.panel_rows * F}, type_of<T>);
  std::vector<T> center(F), key(N * stride);
  std::vector<RowOf<T>> row(N * stride);
  const Neighbors<T> g = {h,    N,          F,          (int)k, candidates, stride, center.data(), data<T>(packed),
                          norm, key.data(), row.data(), doubt};
  if (around)
    std::copy_n(around, F, center.data());
  else
    parallel(F, center_rows, [&](int64_t a, int64_t b) { run.neighbors_center(g, a, b); });
  parallel(panels, run.panel_rows * F, [&](int64_t a, int64_t b) { run.pack_rows(g.h, g.center, N, F, a, b, g.packed); });
  parallel(N, F, [&](int64_t a, int64_t b) { run.neighbors_begin(g, a, b); });
  // Groups of blocks meet, as large as the threads allow: a block that meets many in turn stays in the cache.
  const int64_t blocks = blocks_of(N), per = std::max<int64_t>(1, blocks / (4 * torch::stable::get_num_threads()));
  const int64_t groups = (blocks + per - 1) / per;
  for (int64_t round = -1; round < rounds_of(groups); ++round)
    parallel(round < 0 ? groups : pairs_of(groups), per * per * block_rows * block_rows * F, [&](int64_t a, int64_t b) {
      const Tensor scratch = make({block_rows * block_rows}, type_of<T>);
      for (int64_t pair = a; pair < b; ++pair) {
        int64_t one = pair, two = pair;
        if (round >= 0 && !meeting(groups, round, pair, &one, &two)) continue;
        for (int64_t x = one * per; x < blocks && x < (one + 1) * per; ++x)
          for (int64_t y = one == two ? x : two * per; y < blocks && y < (two + 1) * per; ++y)
            run.neighbors_pair(g, x, y, data<T>(scratch));
      }
    });
  parallel(N, candidates * F, [&](int64_t a, int64_t b) {
    std::vector<double> exact(candidates);
    run.neighbors_finish(g, a, b, distance, neighbor, exact.data());
  });
}

// The rows in doubt, each against all others, unless one before it settles them: the k nearest of a row that is within 1.5 d
// of row i, whose own k-th neighbour is d away, are within 4 d of row i. Those few rows, seen from row i, are a problem of
// their own: there the distances are no longer small against the norms. Such problems may cost an eighth of what measuring
// all rows would, and what they save: a row of a product's distances costs about an eighth of a row of differences. The rows
// next to the center come first: far out, the surroundings of a row are large.
template <class T>
void settle(const T* h, int64_t N, int64_t F, int64_t k, const T* norm, T* distance, int64_t* neighbor, uint8_t* doubt) {
  const int candidates = (int)std::min(k + neighbor_margin, N - 1);
  const int stride = 1 + (candidates + list_lanes - 1) / list_lanes * list_lanes;
  std::vector<T> squared(N), key(stride), inner_distance, inner_norm;
  std::vector<RowOf<T>> row(stride);
  std::vector<double> exact(candidates);
  std::vector<int64_t> ball, inner, inner_neighbor;
  std::vector<uint8_t> inner_doubt;
  int64_t credit = N * N / 8;  // in distances measured
  std::vector<int64_t> order;
  for (int64_t i = 0; i < N; ++i)
    if (doubt[i]) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return std::tie(norm[a], a) < std::tie(norm[b], b); });
  for (const int64_t i : order) {
    if (!doubt[i]) continue;
    const Neighbors<T> g = {
        h,    N, F, (int)k, candidates, stride, nullptr, nullptr, nullptr, key.data() - i * stride, row.data() - i * stride,
        doubt};
    parallel(N, F, [&](int64_t a, int64_t b) { typed<T>().distances(g, i, a, b, squared.data()); });
    typed<T>().neighbors_row(g, i, squared.data(), distance, neighbor, exact.data());
    doubt[i] = 0;
    squared[i] = 0;
    const double d = (double)distance[i * k + k - 1] * 1.001, near = 1.5 * d, far = 4 * d;
    ball.clear(), inner.clear();
    for (int64_t j = 0; j < N; ++j) {
      if (!((double)squared[j] <= far * far)) continue;
      if (doubt[j] && (double)squared[j] <= near * near) inner.push_back((int64_t)ball.size());
      ball.push_back(j);
    }
    const int64_t m = (int64_t)ball.size();
    const int64_t cost = m * m / 8;
    if (m <= k || cost > credit || cost > (int64_t)inner.size() * N) continue;
    credit -= cost;
    const Tensor near_rows = make({m, F}, type_of<T>);
    parallel(m, F, [&](int64_t a, int64_t b) {
      for (int64_t r = a; r < b; ++r) std::copy_n(h + ball[r] * F, F, data<T>(near_rows) + r * F);
    });
    inner_norm.resize(m), inner_distance.resize(m * k), inner_neighbor.resize(m * k), inner_doubt.resize(m);
    nearest<T>(read<T>(near_rows), m, F, k, h + i * F, inner_norm.data(), inner_distance.data(), inner_neighbor.data(),
               inner_doubt.data());
    for (const int64_t r : inner) {
      if (inner_doubt[r]) continue;
      doubt[ball[r]] = 0;
      credit += N;
      std::copy_n(inner_distance.data() + r * k, k, distance + ball[r] * k);
      for (int64_t c = 0; c < k; ++c) neighbor[ball[r] * k + c] = ball[inner_neighbor[r * k + c]];
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> knn_graph(Tensor h, int64_t k) {
  STD_TORCH_CHECK(h.dim() == 2 && h.size(0) > k && k >= 1, "h must be [N, F] with N > k = ", k, ", got ", shape_of(h));
  const int64_t N = h.size(0), F = h.size(1);
  const Tensor x = dense(h, compute_type(h));
  const Tensor distance = make({N, k}, compute_type(h)), neighbor = make({N, k}, ScalarType::Long);
  const Tensor mutual = make({N, k}, ScalarType::Bool);
  with_type(compute_type(h), [&](auto t) {
    using T = decltype(t);
    std::vector<uint8_t> doubt(N);
    std::vector<T> norm(N);
    nearest<T>(read<T>(x), N, F, k, nullptr, norm.data(), data<T>(distance), data<int64_t>(neighbor), doubt.data());
    settle<T>(read<T>(x), N, F, k, norm.data(), data<T>(distance), data<int64_t>(neighbor), doubt.data());
    parallel(N, k * k, [&](int64_t a, int64_t b) {
      for (int64_t e = a * k; e < b * k; ++e) data<bool>(mutual)[e] = way_back(read<int64_t>(neighbor), k, e / k, e % k) >= 0;
    });
    return 0;
  });
  return {distance, neighbor, mutual};
}

Tensor knn_graph_backward(Tensor grad, Tensor h, Tensor distance, Tensor neighbor) {
  check_matrix(h, "h", "[N, F]");
  check_matrix(neighbor, "neighbor", "[N, k]");
  check_shape(neighbor, {h.size(0), neighbor.size(1)}, "neighbor");
  check_shape(grad, {h.size(0), neighbor.size(1)}, "grad");
  check_shape(distance, {h.size(0), neighbor.size(1)}, "distance");
  const ScalarType type = compute_type(h);
  const Tensor x = dense(h, type), d = dense(distance, type), g = dense(grad, type), to = dense(neighbor, ScalarType::Long);
  const int64_t N = h.size(0), k = neighbor.size(1);
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const int64_t* j = read<int64_t>(to);
    const T *length = read<T>(d), *slope = read<T>(g);
    check_index(j, N * k, N, "neighbor");
    const auto value = [=](int64_t e) { return distance_slope(slope[e], length[e]); };
    std::vector<T> values(N * k);  // the two directions of a mutual pair as one edge, at the smaller row
    parallel(N, k * k, [&](int64_t a, int64_t b) {
      for (int64_t e = a * k; e < b * k; ++e) {
        const int64_t other = way_back(j, k, e / k, e % k);
        values[e] = other < 0 ? value(e) : e < other ? value(e) + value(other) : T(0);
      }
    });
    const T* v = values.data();
    return back(
        apply_laplacian<T>(
            x, N * k, [=](int64_t e) { return e / k; }, [=](int64_t e) { return j[e]; }, [=](int64_t e) { return v[e]; }),
        h.scalar_type());
  });
}

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) {
  m.impl("knn_graph", TORCH_BOX(&shamisa::knn_graph));
  m.impl("knn_graph_backward", TORCH_BOX(&shamisa::knn_graph_backward));
}
