// The graphs of the metadata for CUDA tensors. Nothing waits for the device.
#include "metadata.cuh"

#include "../../host/metadata.h"
#include "../scratch.cuh"

namespace shamisa {
namespace {

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
    SHAMISA_RUN(structural_edges<T>, blocks_for(M, MetadataLaunch::threads), MetadataLaunch::threads, device.stream(), s, of,
                pairs, data<T>(w), data<int64_t>(edge));
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
    SHAMISA_RUN(ref_dist_edges<T>, blocks_for(s.distorted(), MetadataLaunch::threads), MetadataLaunch::threads, device.stream(),
                s, read<T>(lambda), kind, data<T>(w), data<int64_t>(edge));
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
    SHAMISA_RUN(ref_ref_edges<T>, blocks_for(M, MetadataLaunch::threads), MetadataLaunch::threads, device.stream(), R,
                data<T>(w), data<int64_t>(edge));
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
    SHAMISA_RUN(dist_dist_cut<T>, of.groups, MetadataLaunch::cut_threads, device.stream(), s, read<T>(lambda), of.samples,
                of.kept, cut, start);
    SHAMISA_RUN(dist_dist_edges<T>, blocks_for(s.distorted(), MetadataLaunch::row_threads), MetadataLaunch::row_threads,
                device.stream(), s, read<T>(lambda), cut, start, of.samples, of.kept, kind, M, data<T>(w), data<int64_t>(edge));
    return 0;
  });
  return {weight, index};
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("structural_graph", TORCH_BOX(&shamisa::structural_graph));
  m.impl("ref_dist_graph", TORCH_BOX(&shamisa::ref_dist_graph));
  m.impl("ref_ref_graph", TORCH_BOX(&shamisa::ref_ref_graph));
  m.impl("dist_dist_graph", TORCH_BOX(&shamisa::dist_dist_graph));
}
