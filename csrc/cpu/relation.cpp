// CPU kernels of the relation ops (schemas: shamisa/ops.py; what they compute: shamisa/reference/relations.py).
//
// Thin: tensors become pointers, loops run on torch's threads, the arithmetic is csrc/relation compiled per x86-64 level.
// Results do not depend on the number of threads: each output is written by one task, and choices follow a total order.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../relation/graph.h"
#include "../relation/neighbors.h"
#include "../relation/transport.h"
#include "levels.h"
#include "tensors.h"

namespace shamisa {

#if defined(SHAMISA_X86)
extern const RelationKernels relation_v2, relation_v3, relation_v4;
#else
extern const RelationKernels relation_any;
#endif

namespace {

const RelationKernels& level() {
#if defined(SHAMISA_X86)
  static const char name = shamisa::kernels().level[1];
  return name == '4' ? relation_v4 : name == '3' ? relation_v3 : relation_v2;
#else
  return relation_any;
#endif
}

template <class T>
const TypedRelationKernels<T>& typed();
template <>
const TypedRelationKernels<float>& typed<float>() {
  return level().f32;
}
template <>
const TypedRelationKernels<double>& typed<double>() {
  return level().f64;
}

// ---- neighbours ------------------------------------------------------------------------------------------------------
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
  parallel(panels, run.panel_rows * F, [&](int64_t a, int64_t b) { run.pack(g.h, g.center, N, F, a, b, g.packed); });
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

// out [N, D] = Laplacian of the edges i(e), j(e), value(e) applied to x [N, D]
template <class T, class I, class J, class Value>
Tensor apply_laplacian(const Tensor& x, int64_t M, I i, J j, Value value) {
  const int64_t N = x.size(0), D = x.size(1);
  const Tensor offset = make({N + 1}, ScalarType::Long), other = make({2 * M}, ScalarType::Int),
               weight = make({2 * M}, type_of<T>);
  const Incidence<T> edges = {data<int64_t>(offset), data<int32_t>(other), data<T>(weight)};
  build_incidence<T>(N, M, i, j, value, edges);
  const Tensor out = make({N, D}, type_of<T>);
  const int64_t columns = strip_columns<T>(N);
  parallel((D + columns - 1) / columns, (2 * M + N) * columns, [&](int64_t a, int64_t b) {
    std::vector<T> strip(N * columns);
    for (int64_t c = a * columns; c < D && c < b * columns; c += columns)
      typed<T>().laplacian(read<T>(x), N, D, edges, c, D - c < columns ? D - c : columns, columns, strip.data(), data<T>(out));
  });
  return out;
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
    const auto value = [=](int64_t e) { return length[e] > 0 ? slope[e] / length[e] : length[e] == 0 ? T(0) : length[e]; };
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

// ---- transport -------------------------------------------------------------------------------------------------------
std::vector<double> probabilities(const double* log_p, int64_t n) {
  std::vector<double> p(n);
  parallel(n, 20, [&](int64_t a, int64_t b) {
    for (int64_t e = a; e < b; ++e) p[e] = std::exp(log_p[e]);
  });
  return p;
}

std::tuple<Tensor, Tensor, Tensor> transport_graph(Tensor log_p, int64_t edges, bool per_row, bool diagonal) {
  check_matrix(log_p, "log_p", "[N, K]");
  const int64_t N = log_p.size(0), K = log_p.size(1), per = diagonal ? N : N - 1;
  STD_TORCH_CHECK(N >= 1 && N <= transport_nodes, "log_p must be [N, K] with 1 <= N <= ", transport_nodes, ", got N = ", N);
  const int64_t row_edges = edges < per ? edges : per;
  const int64_t M = per_row ? N * row_edges : edges < per ? edges * N : N * per;
  const Tensor x = dense(log_p, ScalarType::Double);
  const double* lp = read<double>(x);
  const std::vector<double> p = probabilities(lp, N * K);
  const TypedRelationKernels<double>& wide = typed<double>();
  const int64_t panels = (N + wide.panel_rows - 1) / wide.panel_rows, stride = panels * wide.panel_rows;
  std::vector<double> packed_log(stride * K), packed_p(stride * K);
  parallel(panels, wide.panel_rows * K, [&](int64_t a, int64_t b) {
    wide.pack(lp, nullptr, N, K, a, b, packed_log.data());
    wide.pack(p.data(), nullptr, N, K, a, b, packed_p.data());
  });

  const Tensor weight = make({M}, compute_type(log_p)), index = make({2, M}, ScalarType::Long);
  const Tensor extreme = make({2, 2}, ScalarType::Long);
  int64_t *to_i = data<int64_t>(index), *to_j = to_i + M;
  const Transport g = {packed_log.data(), packed_p.data(), N, K, per_row ? row_edges : 0, diagonal};

  // Each segment of rows collects its own largest scores; the order among all is total, so joining them is exact.
  const int64_t groups = (N + segment_rows - 1) / segment_rows, threads = torch::stable::get_num_threads();
  const int64_t segments = groups < threads ? groups : threads;
  std::vector<Extreme> found(segments);
  std::vector<std::vector<uint64_t>> kept(segments);
  const bool none = M == 0;
  with_type(compute_type(log_p), [&](auto t) {
    using T = decltype(t);
    torch::stable::parallel_for(0, segments, 1, [&](int64_t a, int64_t b) {
      for (int64_t s = a; s < b; ++s) {
        const int64_t first = groups * s / segments * segment_rows, end = groups * (s + 1) / segments * segment_rows;
        std::vector<double> score(wide.tile_rows * stride);
        const int64_t m = none ? 1 : per_row ? row_edges : M, room = m + (m < 4096 ? 4096 : m);
        kept[s].resize(room);
        Smallest best = {kept[s].data(), m, room, 0, -INFINITY};
        found[s] = typed<T>().transport_rows(g, first, end < N ? end : N, score.data(), &best, to_j);
        level().shrink(&best);
        kept[s].resize(none || per_row ? 0 : best.n);
      }
    });
    return 0;
  });
  Extreme range = found[0];
  for (int64_t s = 1; s < segments; ++s) join(&range, found[s]);
  if (per_row) {
    for (int64_t e = 0; e < M; ++e) to_i[e] = e / row_edges;
  } else if (!none) {
    std::vector<uint64_t>& all = kept[0];
    for (int64_t s = 1; s < segments; ++s) all.insert(all.end(), kept[s].begin(), kept[s].end());
    Smallest best = {all.data(), M, (int64_t)all.size(), (int64_t)all.size(), 0};
    level().shrink(&best);
    std::vector<uint32_t> at(M, (uint32_t)(N * N - 1));  // too few: NaN in the scores
    for (int64_t e = 0; e < best.n; ++e) at[e] = (uint32_t)best.v[e];
    std::sort(at.begin(), at.end());
    for (int64_t e = 0; e < M; ++e) to_i[e] = at[e] / N, to_j[e] = at[e] % N;
  }
  // No comparison sees NaN: a row r that holds it makes c_0r the first extreme, so that NaN reaches every weight.
  const double* nan = std::find_if(lp, lp + N * K, [](double v) { return v != v; });
  if (nan != lp + N * K) range.low_at = range.high_at = (nan - lp) / K;
  const int64_t at[2] = {range.low_at, range.high_at};
  for (int s = 0; s < 2; ++s) data<int64_t>(extreme)[s] = at[s] / N, data<int64_t>(extreme)[2 + s] = at[s] % N;
  const double low = transport_score(lp, p.data(), K, at[0] / N, at[0] % N);
  const double high = transport_score(lp, p.data(), K, at[1] / N, at[1] % N);
  const double span = transport_span(low, high);
  with_type(compute_type(log_p), [&](auto t) {
    using T = decltype(t);
    T* w = data<T>(weight);
    parallel(M, K, [&](int64_t a, int64_t b) {
      for (int64_t e = a; e < b; ++e) w[e] = (T)((transport_score(lp, p.data(), K, to_i[e], to_j[e]) - low) / span);
    });
    return 0;
  });
  return {weight, index, extreme};
}

Tensor transport_graph_backward(Tensor grad, Tensor log_p, Tensor weight, Tensor index, Tensor extreme) {
  check_matrix(log_p, "log_p", "[N, K]");
  check_shape(grad, {weight.numel()}, "grad");
  check_shape(weight, {weight.numel()}, "weight");
  check_shape(index, {2, weight.numel()}, "index");
  check_shape(extreme, {2, 2}, "extreme");
  const int64_t N = log_p.size(0), K = log_p.size(1), M = weight.numel();
  const Tensor x = dense(log_p, ScalarType::Double), g = dense(grad, ScalarType::Double), w = dense(weight, ScalarType::Double);
  const Tensor edge = dense(index, ScalarType::Long), ends = dense(extreme, ScalarType::Long);
  const int64_t *i = read<int64_t>(edge), *j = i + M, *at = read<int64_t>(ends);
  check_index(i, 2 * M, N, "index");
  check_index(at, 4, N, "extreme");
  const double *lp = read<double>(x), *slope = read<double>(g), *value = read<double>(w);
  const std::vector<double> p = probabilities(lp, N * K);
  const double low = transport_score(lp, p.data(), K, at[0], at[2]), high = transport_score(lp, p.data(), K, at[1], at[3]);
  const double share = 1 / (transport_span(low, high) * (double)K);
  double sum = 0, to_high = 0;
  for (int64_t e = 0; e < M; ++e) sum += slope[e], to_high -= slope[e] * value[e];
  if (!(high - low >= flat_score))
    to_high = high - low < flat_score ? 0 : NAN;  // a clamped range: the maximum has no part in it
  const Tensor out = make({N, K}, ScalarType::Double);
  double* o = data<double>(out);
  for (int64_t e = 0; e < N * K; ++e) o[e] = 0;
  for (int64_t e = 0; e < M; ++e) transport_edge_backward(lp, p.data(), K, i[e], j[e], slope[e] * share, o);
  transport_edge_backward(lp, p.data(), K, at[0], at[2], (-sum - to_high) * share, o);
  transport_edge_backward(lp, p.data(), K, at[1], at[3], to_high * share, o);
  return back(out, log_p.scalar_type());
}

// ---- pair cost -------------------------------------------------------------------------------------------------------
void check_edges(const Tensor& z, const Tensor& weight, const Tensor& index) {
  check_matrix(z, "z", "[N, E]");
  check_shape(weight, {weight.numel()}, "weight");
  check_shape(index, {2, weight.numel()}, "index");
}

std::tuple<Tensor, Tensor> pair_cost(Tensor z, Tensor weight, Tensor index) {
  check_edges(z, weight, index);
  const ScalarType type = compute_type(z);
  const int64_t N = z.size(0), E = z.size(1), M = weight.numel();
  const Tensor x = dense(z, type), w = dense(weight, type), edge = dense(index, ScalarType::Long);
  const Tensor cost = make({}, type), squared = make({M}, type);
  const int64_t *i = read<int64_t>(edge), *j = i + M;
  check_index(i, 2 * M, N, "index");
  with_type(type, [&](auto t) {
    using T = decltype(t);
    T* s = data<T>(squared);
    parallel(M, E, [&](int64_t a, int64_t b) { typed<T>().pair_squared(read<T>(x), E, i, j, a, b, s); });
    double sum = 0;
    for (int64_t e = 0; e < M; ++e) sum += (double)read<T>(w)[e] * (double)s[e];
    *data<T>(cost) = (T)(sum / (double)(N * E));
    return 0;
  });
  return {cost, squared};
}

std::tuple<Tensor, Tensor> pair_cost_backward(Tensor grad, Tensor z, Tensor weight, Tensor index, Tensor squared) {
  check_edges(z, weight, index);
  check_shape(squared, {weight.numel()}, "squared");
  STD_TORCH_CHECK(grad.numel() == 1, "grad must be a scalar, got ", shape_of(grad));
  const ScalarType type = compute_type(z);
  const int64_t N = z.size(0), E = z.size(1), M = weight.numel();
  const Tensor x = dense(z, type), w = dense(weight, type), edge = dense(index, ScalarType::Long), s = dense(squared, type);
  const Tensor g = dense(grad, ScalarType::Double), dw = make({M}, type);
  const int64_t *i = read<int64_t>(edge), *j = i + M;
  check_index(i, 2 * M, N, "index");
  return with_type(type, [&](auto t) -> std::tuple<Tensor, Tensor> {
    using T = decltype(t);
    const T scale = (T)(*read<double>(g) / (double)(N * E));
    const T* v = read<T>(w);
    for (int64_t e = 0; e < M; ++e) data<T>(dw)[e] = scale * read<T>(s)[e];
    const Tensor dz = apply_laplacian<T>(
        x, M, [=](int64_t e) { return i[e]; }, [=](int64_t e) { return j[e]; }, [=](int64_t e) { return 2 * scale * v[e]; });
    return {back(dz, z.scalar_type()), back(dw, weight.scalar_type())};
  });
}

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) {
  m.impl("knn_graph", TORCH_BOX(&shamisa::knn_graph));
  m.impl("knn_graph_backward", TORCH_BOX(&shamisa::knn_graph_backward));
  m.impl("transport_graph", TORCH_BOX(&shamisa::transport_graph));
  m.impl("transport_graph_backward", TORCH_BOX(&shamisa::transport_graph_backward));
  m.impl("pair_cost", TORCH_BOX(&shamisa::pair_cost));
  m.impl("pair_cost_backward", TORCH_BOX(&shamisa::pair_cost_backward));
}
