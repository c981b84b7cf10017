// CPU kernels of merging (see neighbors.cpp for the style).
#include "merge.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../tensors.h"

namespace shamisa {
namespace {

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
  m.impl("merge_edges", TORCH_BOX(&shamisa::merge_edges));
  m.impl("merge_edges_backward", TORCH_BOX(&shamisa::merge_edges_backward));
}
