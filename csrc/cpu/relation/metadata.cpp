// CPU kernels of the metadata graphs (see neighbors.cpp for the style).
#include "metadata.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../../host/metadata.h"
#include "../tensors.h"

namespace shamisa {
namespace {

Tensor ones(int64_t M, ScalarType type) {
  const Tensor weight = make({M}, type);
  with_type(type, [&](auto t) { return std::fill_n(data<decltype(t)>(weight), M, decltype(t)(1)) != nullptr; });
  return weight;
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

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) {
  m.impl("structural_graph", TORCH_BOX(&shamisa::structural_graph));
  m.impl("ref_dist_graph", TORCH_BOX(&shamisa::ref_dist_graph));
  m.impl("ref_ref_graph", TORCH_BOX(&shamisa::ref_ref_graph));
  m.impl("dist_dist_graph", TORCH_BOX(&shamisa::dist_dist_graph));
}
