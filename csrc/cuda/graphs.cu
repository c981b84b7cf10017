// merge_edges with its backward, and the graphs of the metadata, for CUDA tensors. Nothing waits for the device.
#include "graphs.cuh"

#include "../host/metadata.h"
#include "scratch.cuh"

namespace shamisa {
namespace {

// keys [M] -> the sorted keys and where each comes from, by torch: equal keys stay in the order of the input
std::tuple<Tensor, Tensor> stable_sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(keys), from(std::optional<bool>(true)), from((int64_t)0), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// weight [M], index [2, M] -> weight [M], index [2, M], position [M]
std::tuple<Tensor, Tensor, Tensor> merge_edges(Tensor weight, Tensor index, int64_t nodes) {
  STD_TORCH_CHECK(weight.dim() == 1, "weight must be [M], got ", shape_of(weight));
  const int64_t M = weight.size(0);
  check_shape(index, {2, M}, "index");
  check_device(weight, {&index});
  STD_TORCH_CHECK(M <= 0x7fffffff, "weight must have fewer than 2^31 edges, got ", M);               // runs are counted in int
  STD_TORCH_CHECK(nodes >= 0 && nodes < 3037000499, "nodes must be in 0..3037000498, got ", nodes);  // nodes^2 < 2^63
  const OnDevice device(weight);
  const ScalarType type = compute_type(weight);
  const Tensor w = dense(weight, type), edge = dense(index, ScalarType::Long);
  const Tensor merged = make({M}, type, w), merged_index = make({2, M}, ScalarType::Long, w);
  const Tensor position = make({M}, ScalarType::Long, w);
  if (M == 0) return {merged, merged_index, position};
  const auto run = [&](auto zero) {
    using K = decltype(zero);
    const Tensor key = make({M}, sizeof(K) == 4 ? ScalarType::Int : ScalarType::Long, w);
    SHAMISA_RUN(merge_keys<K>, blocks_for(M, GraphLaunch::threads), GraphLaunch::threads, device.stream(), read<int64_t>(edge),
                M, nodes, data<K>(key));
    const auto [sorted, order] = stable_sort(key);
    const int64_t blocks = blocks_for(M, GraphLaunch::scan_threads);
    const Tensor runs = make({blocks}, ScalarType::Int, w);
    SHAMISA_RUN(merge_count<K>, blocks, GraphLaunch::scan_threads, device.stream(), read<K>(sorted), M, (K)(nodes * nodes),
                data<int>(runs));
    const K* keys = read<K>(sorted);
    const int64_t* from = read<int64_t>(order);
    with_type(type, [&](auto t) {
      using T = decltype(t);
      SHAMISA_RUN((merge_write<T, K>), blocks, GraphLaunch::scan_threads, device.stream(), keys, from, read<T>(w),
                  read<int>(runs), M, nodes, data<T>(merged), data<int64_t>(merged_index), data<int64_t>(position));
      return 0;
    });
  };
  nodes* nodes <= 0x7fffffff ? run(int32_t{}) : run(int64_t{});
  return {merged, merged_index, position};
}

// grad [M], position [M] -> [M]
Tensor merge_edges_backward(Tensor grad, Tensor position) {
  const int64_t M = position.numel();
  check_shape(grad, {M}, "grad");
  check_device(grad, {&position});
  const OnDevice device(grad);
  const ScalarType type = compute_type(grad);
  const Tensor g = dense(grad, type), at = dense(position, ScalarType::Long), out = make({M}, type, g);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    SHAMISA_RUN(merge_gather<T>, blocks_for(M, GraphLaunch::threads), GraphLaunch::threads, device.stream(), read<T>(g),
                read<int64_t>(at), M, grad.numel(), data<T>(out));
    return 0;
  });
  return back(out, grad.scalar_type());
}

// ---- metadata --------------------------------------------------------------------------------------------------------
using Edges = std::tuple<Tensor, Tensor>;
Edges make_edges(int64_t M, const Tensor& severity) {
  return {make({M}, compute_type(severity), severity), make({2, M}, ScalarType::Long, severity)};
}

Edges structural_graph(Tensor severity, int64_t views, std::string classes) {
  const BatchShape s = batch_of(severity, views);
  const ViewClasses of = view_classes(classes, views);
  const int64_t pairs = of.pairs(), M = s.B * pairs * s.images();
  const OnDevice device(severity);
  const auto [weight, index] = make_edges(M, severity);
  const Tensor &w = weight, &edge = index;
  with_type(compute_type(severity), [&](auto t) {
    using T = decltype(t);
    SHAMISA_RUN(structural_edges<T>, blocks_for(M, GraphLaunch::threads), GraphLaunch::threads, device.stream(), s, of, pairs,
                data<T>(w), data<int64_t>(edge));
    return 0;
  });
  return {weight, index};
}

Edges ref_dist_graph(Tensor severity, int64_t views, std::string decay) {
  const BatchShape s = batch_of(severity, views);
  const Decay kind = decay_of(decay);
  const OnDevice device(severity);
  const Tensor lambda = dense(severity, compute_type(severity));
  const auto [weight, index] = make_edges(s.distorted(), severity);
  const Tensor &w = weight, &edge = index;
  with_type(compute_type(severity), [&](auto t) {
    using T = decltype(t);
    SHAMISA_RUN(ref_dist_edges<T>, blocks_for(s.distorted(), GraphLaunch::threads), GraphLaunch::threads, device.stream(), s,
                read<T>(lambda), kind, data<T>(w), data<int64_t>(edge));
    return 0;
  });
  return {weight, index};
}

Edges ref_ref_graph(Tensor severity, int64_t views) {
  const BatchShape s = batch_of(severity, views);
  const int64_t R = s.references(), M = R * (R - 1);
  const OnDevice device(severity);
  const auto [weight, index] = make_edges(M, severity);
  const Tensor &w = weight, &edge = index;
  with_type(compute_type(severity), [&](auto t) {
    using T = decltype(t);
    SHAMISA_RUN(ref_ref_edges<T>, blocks_for(M, GraphLaunch::threads), GraphLaunch::threads, device.stream(), R, data<T>(w),
                data<int64_t>(edge));
    return 0;
  });
  return {weight, index};
}

Edges dist_dist_graph(Tensor severity, int64_t views, int64_t edges, bool per_sample, std::string decay) {
  const BatchShape s = batch_of(severity, views);
  STD_TORCH_CHECK(s.distorted() < (1LL << 31) && s.B * s.C * s.L * s.L < (1LL << 31), "severity [B, C, L] is too large, got ",
                  shape_of(severity));
  const Decay kind = decay_of(decay);
  const KeptEdges of = kept_edges(s, edges, per_sample);
  const int64_t M = of.count();
  const OnDevice device(severity);
  const Tensor lambda = dense(severity, compute_type(severity));
  const auto [weight, index] = make_edges(M, severity);
  const Tensor &w = weight, &edge = index;
  if (M == 0) return {weight, index};
  with_type(compute_type(severity), [&](auto t) {
    using T = decltype(t);
    Scratch scratch;
    GapCut<T>* cut;
    int64_t* start;
    scratch.add(&cut, of.groups), scratch.add(&start, s.distorted() * 2);
    scratch.make_on(lambda);
    SHAMISA_RUN(dist_dist_cut<T>, of.groups, GraphLaunch::cut_threads, device.stream(), s, read<T>(lambda), of.samples, of.kept,
                cut, start);
    SHAMISA_RUN(dist_dist_edges<T>, blocks_for(s.distorted(), GraphLaunch::row_threads), GraphLaunch::row_threads,
                device.stream(), s, read<T>(lambda), cut, start, of.samples, of.kept, kind, M, data<T>(w), data<int64_t>(edge));
    return 0;
  });
  return {weight, index};
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("merge_edges", TORCH_BOX(&shamisa::merge_edges));
  m.impl("merge_edges_backward", TORCH_BOX(&shamisa::merge_edges_backward));
  m.impl("structural_graph", TORCH_BOX(&shamisa::structural_graph));
  m.impl("ref_dist_graph", TORCH_BOX(&shamisa::ref_dist_graph));
  m.impl("ref_ref_graph", TORCH_BOX(&shamisa::ref_ref_graph));
  m.impl("dist_dist_graph", TORCH_BOX(&shamisa::dist_dist_graph));
}
