// CPU kernels of transport_graph (see neighbors.cpp for the style).
#include "transport.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "typed.h"

namespace shamisa {
namespace {

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
    wide.pack_rows(lp, nullptr, N, K, a, b, packed_log.data());
    wide.pack_rows(p.data(), nullptr, N, K, a, b, packed_p.data());
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
        kernels().relation.shrink(&best);
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
    kernels().relation.shrink(&best);
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
  const double span = span_of(low, high);
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
  const double share = 1 / (span_of(low, high) * (double)K);
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

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) {
  m.impl("transport_graph", TORCH_BOX(&shamisa::transport_graph));
  m.impl("transport_graph_backward", TORCH_BOX(&shamisa::transport_graph_backward));
}
