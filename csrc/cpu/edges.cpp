// CPU kernels of the metadata graphs and of merging (see relation.cpp for the style).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "../host/metadata.h"
#include "../relation/merge.h"
#include "../relation/metadata.h"
#include "tensors.h"

namespace shamisa {
namespace {

Tensor ones(int64_t M, ScalarType type) {
  const Tensor weight = make({M}, type);
  with_type(type, [&](auto t) { return std::fill_n(data<decltype(t)>(weight), M, decltype(t)(1)) != nullptr; });
  return weight;
}

template <class T>
T decayed(T gap, Decay decay) {
  return decay == Decay::exponential ? std::exp(decay_exponent(gap)) : reciprocal_decay(gap);
}

std::tuple<Tensor, Tensor> structural_graph(Tensor severity, int64_t views, std::string classes) {
  const BatchShape s = batch_of(severity, views);
  const ViewClasses of = view_classes(classes, views);
  const int64_t M = s.B * of.pairs() * s.images();
  const Tensor index = make({2, M}, ScalarType::Long);
  structural_edges(s, of, data<int64_t>(index), data<int64_t>(index) + M);
  return {ones(M, compute_type(severity)), index};
}

std::tuple<Tensor, Tensor> ref_dist_graph(Tensor severity, int64_t views, std::string decay) {
  const BatchShape s = batch_of(severity, views);
  const Decay kind = decay_of(decay);
  const ScalarType type = compute_type(severity);
  const int64_t images = severity.numel(), M = s.distorted();
  const Tensor x = dense(severity, type), weight = make({M}, type), index = make({2, M}, ScalarType::Long);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    std::vector<T> table(images);
    for (int64_t n = 0; n < images; ++n) table[n] = decayed(read<T>(x)[n], kind);
    ref_dist_edges(s, table.data(), data<T>(weight), data<int64_t>(index), data<int64_t>(index) + M);
    return 0;
  });
  return {weight, index};
}

std::tuple<Tensor, Tensor> ref_ref_graph(Tensor severity, int64_t views) {
  const BatchShape s = batch_of(severity, views);
  const int64_t R = s.references(), M = R * (R - 1);
  const Tensor index = make({2, M}, ScalarType::Long);
  ref_ref_edges(R, data<int64_t>(index), data<int64_t>(index) + M);
  return {ones(M, compute_type(severity)), index};
}

std::tuple<Tensor, Tensor> dist_dist_graph(Tensor severity, int64_t views, int64_t edges, bool per_sample, std::string decay) {
  const BatchShape s = batch_of(severity, views);
  const Decay kind = decay_of(decay);
  const KeptEdges of = kept_edges(s, edges, per_sample);
  const ScalarType type = compute_type(severity);
  const int64_t images = s.images(), gaps = images * (s.L + 1) / 2, M = of.count();
  const Tensor x = dense(severity, type), weight = make({M}, type), index = make({2, M}, ScalarType::Long);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const T* level = read<T>(x);
    std::vector<Gap<T>> all(s.B * gaps);
    for (int64_t b = 0; b < s.B; ++b) sample_gaps(level + b * images, s, all.data() + b * gaps);
    std::vector<T> table(images * s.L);
    T* w = data<T>(weight);
    int64_t *i = data<int64_t>(index), *j = i + M;
    for (int64_t b0 = 0; b0 < s.B; b0 += of.samples) {
      const auto first = all.begin() + b0 * gaps, last = first + of.samples * gaps;
      std::sort(first, last, [](const Gap<T>& a, const Gap<T>& b) { return a.size < b.size; });
      Kept<T> bound = bound_gaps(all.data() + b0 * gaps, of.samples * gaps, of.kept);
      for (int64_t b = b0; of.kept && b < b0 + of.samples; ++b) {
        const T* own = level + b * images;
        for (int64_t n = 0; n < images; ++n)
          for (int64_t m = 0; m < s.L; ++m) table[n * s.L + m] = decayed(severity_gap(own[n], own[n / s.L * s.L + m]), kind);
        dist_dist_edges(s, b, own, table.data(), &bound, w, i, j);
      }
    }
    return 0;
  });
  return {weight, index};
}

std::tuple<Tensor, Tensor, Tensor> merge_edges(Tensor weight, Tensor index, int64_t nodes) {
  check_shape(weight, {weight.numel()}, "weight");
  check_shape(index, {2, weight.numel()}, "index");
  const ScalarType type = compute_type(weight);
  const int64_t M = weight.numel();
  STD_TORCH_CHECK(M <= UINT32_MAX && nodes <= UINT32_MAX, "merge_edges takes less than 2^32 edges and nodes");
  const Tensor w = dense(weight, type), edge = dense(index, ScalarType::Long);
  const Tensor merged = make({M}, type), to = make({2, M}, ScalarType::Long), position = make({M}, ScalarType::Long);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    std::vector<int64_t> offset(nodes + 1);
    std::vector<uint32_t> at(M), slot(nodes);
    std::vector<uint64_t> mark(nodes / 64 + 1);
    const int64_t* i = read<int64_t>(edge);
    const int64_t used = merge<T>(read<T>(w), i, i + M, M, nodes, {offset.data(), at.data(), slot.data(), mark.data()},
                                  data<T>(merged), data<int64_t>(to), data<int64_t>(to) + M, data<int64_t>(position));
    STD_TORCH_CHECK(used >= 0, "index must be in 0..", nodes - 1);
    return 0;
  });
  return {merged, to, position};
}

Tensor merge_edges_backward(Tensor grad, Tensor position) {
  check_shape(grad, {grad.numel()}, "grad");
  check_shape(position, {position.numel()}, "position");
  const ScalarType type = compute_type(grad);
  const int64_t M = position.numel();
  const Tensor g = dense(grad, type), to = dense(position, ScalarType::Long), out = make({M}, type);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const bool good = merge_backward<T>(read<T>(g), g.numel(), read<int64_t>(to), M, data<T>(out));
    STD_TORCH_CHECK(good, "position must be below ", g.numel());
    return 0;
  });
  return back(out, grad.scalar_type());
}

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) {
  m.impl("structural_graph", TORCH_BOX(&shamisa::structural_graph));
  m.impl("ref_dist_graph", TORCH_BOX(&shamisa::ref_dist_graph));
  m.impl("ref_ref_graph", TORCH_BOX(&shamisa::ref_ref_graph));
  m.impl("dist_dist_graph", TORCH_BOX(&shamisa::dist_dist_graph));
  m.impl("merge_edges", TORCH_BOX(&shamisa::merge_edges));
  m.impl("merge_edges_backward", TORCH_BOX(&shamisa::merge_edges_backward));
}
