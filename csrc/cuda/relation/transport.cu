// transport_graph and its backward for CUDA tensors. Nothing waits for the device.
#include "../scratch.cuh"
#include "transport_backward.cuh"

namespace shamisa {
namespace {

// log_p [N, K] -> weight [M], index [2, M], extreme [2, 2]
std::tuple<Tensor, Tensor, Tensor> transport_graph(Tensor log_p, int64_t edges, bool per_row, bool diagonal) {
  STD_TORCH_CHECK(log_p.dim() == 2 && log_p.size(1) > 0, "log_p must be [N, K] with K >= 1, got ", shape_of(log_p));
  const int64_t N = log_p.size(0), K = log_p.size(1), per = diagonal ? N : N - 1;
  STD_TORCH_CHECK(N >= 1 && N <= transport_nodes, "log_p must be [N, K] with 1 <= N <= ", transport_nodes, ", got N = ", N);
  const int64_t kept = edges < per ? edges : per, M = N * kept;
  const int64_t groups = per_row ? N : 1, units = transport_units((int)N), segments = transport_segments((int)N);
  const OnDevice device(log_p);
  const ScalarType type = compute_type(log_p);
  const Tensor x = dense(log_p, type);
  const Tensor weight = make({M}, type, x), index = make({2, M}, ScalarType::Long, x);
  const Tensor extreme = make({2, 2}, ScalarType::Long, x);
  const int64_t blocks = std::min(units, multiprocessors(x) * TransportLaunch::resident);
  TransportArrays g = {};
  g.N = (int)N, g.K = (int)K, g.edges = per_row ? kept : M;
  g.per_row = per_row, g.diagonal = diagonal, g.wide = type == ScalarType::Double;
  g.extreme = data<int64_t>(extreme);
  Scratch scratch;
  scratch.add(&g.log_p, N * K), scratch.add(&g.p, N * K);
  scratch.add(&g.key, N * N <= TransportLaunch::stored ? N * N : 0);
  scratch.add(&g.histogram, groups * TransportLaunch::bins), scratch.add(&g.cut, groups), scratch.add(&g.range, blocks);
  scratch.add(&g.before, N * 2), scratch.add(&g.count, N * segments * 2), scratch.add(&g.at, M);
  scratch.add(&g.finished, 1), scratch.add(&g.ends, 2);
  scratch.make_on(x);
  constexpr int threads = TransportLaunch::threads;
  with_type(type, [&](auto t) {
    using T = decltype(t);
    SHAMISA_RUN(transport_begin<T>, std::min(blocks_for(N * K, threads), blocks), threads, device.stream(), g, read<T>(x));
    SHAMISA_RUN(transport_scores, blocks, threads, device.stream(), g);
    if (M == 0) return 0;
    const auto select = [&](auto stored) {
      constexpr bool s = decltype(stored)::value;
      for (int level = 0; level < TransportLaunch::levels; ++level) {
        if (level > 0) SHAMISA_RUN(transport_digit<s>, blocks, threads, device.stream(), g, level);
        if (per_row) SHAMISA_RUN(transport_advance, blocks_for(N, TransportLaunch::warps), threads, device.stream(), g, level);
      }
      SHAMISA_RUN(transport_count<s>, blocks, threads, device.stream(), g);
      SHAMISA_RUN(transport_collect<s>, blocks, threads, device.stream(), g);
    };
    g.key ? select(std::true_type{}) : select(std::false_type{});
    SHAMISA_RUN(transport_weights<T>, blocks_for(M, TransportLaunch::warps), threads, device.stream(), g, M, data<T>(weight),
                data<int64_t>(index));
    return 0;
  });
  return {weight, index, extreme};
}

// grad [M], log_p [N, K], weight [M], index [2, M], extreme [2, 2] -> [N, K]
Tensor transport_graph_backward(Tensor grad, Tensor log_p, Tensor weight, Tensor index, Tensor extreme) {
  STD_TORCH_CHECK(log_p.dim() == 2, "log_p must be [N, K], got ", shape_of(log_p));
  const int64_t N = log_p.size(0), K = log_p.size(1), M = weight.numel();
  check_shape(grad, {M}, "grad");
  check_shape(weight, {M}, "weight");
  check_shape(index, {2, M}, "index");
  check_shape(extreme, {2, 2}, "extreme");
  check_device(log_p, {&grad, &weight, &index, &extreme});
  const OnDevice device(log_p);
  const ScalarType type = compute_type(log_p);
  const Tensor x = dense(log_p, type), slope = dense(grad, type), w = dense(weight, type);
  const Tensor edge = dense(index, ScalarType::Long), ends = dense(extreme, ScalarType::Long);
  STD_TORCH_CHECK(M < (1LL << 31), "too many edges: ", M);
  const Tensor out = make({N, K}, type, x);
  using Launch = TransportBackwardLaunch;
  with_type(type, [&](auto t) {
    using T = decltype(t);
    EdgePair* pair;
    double *value, *p;
    Scratch scratch;
    scratch.add(&pair, M), scratch.add(&value, M), scratch.add(&p, N * K);
    scratch.make_on(x);
    SHAMISA_RUN(transport_pack<T>, blocks_for(std::max(M, N * K), Launch::threads), Launch::threads, device.stream(),
                read<int64_t>(edge), read<T>(slope), read<T>(x), N, K, M, pair, value, p);
    const TransportSlopes<T> g = {read<T>(x), p, pair, value, read<T>(w), read<int64_t>(ends), N, K, M};
    SHAMISA_RUN(transport_gradient<T>, N, Launch::threads, device.stream(), g, data<T>(out));
    return 0;
  });
  return back(out, log_p.scalar_type());
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("transport_graph", TORCH_BOX(&shamisa::transport_graph));
  m.impl("transport_graph_backward", TORCH_BOX(&shamisa::transport_graph_backward));
}
