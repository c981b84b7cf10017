// merge_edges with its backward for CUDA tensors. Nothing waits for the device.
#include "merge.cuh"

#include "../tensors.cuh"

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
    SHAMISA_RUN(merge_keys<K>, blocks_for(M, MergeLaunch::threads), MergeLaunch::threads, device.stream(), read<int64_t>(edge),
                M, nodes, data<K>(key));
    const auto [sorted, order] = stable_sort(key);
    const int64_t blocks = blocks_for(M, MergeLaunch::scan_threads);
    const Tensor runs = make({blocks}, ScalarType::Int, w);
    SHAMISA_RUN(merge_count<K>, blocks, MergeLaunch::scan_threads, device.stream(), read<K>(sorted), M, (K)(nodes * nodes),
                data<int>(runs));
    const K* keys = read<K>(sorted);
    const int64_t* from = read<int64_t>(order);
    with_type(type, [&](auto t) {
      using T = decltype(t);
      SHAMISA_RUN((merge_write<T, K>), blocks, MergeLaunch::scan_threads, device.stream(), keys, from, read<T>(w),
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
    SHAMISA_RUN(merge_gather<T>, blocks_for(M, MergeLaunch::threads), MergeLaunch::threads, device.stream(), read<T>(g),
                read<int64_t>(at), M, grad.numel(), data<T>(out));
    return 0;
  });
  return back(out, grad.scalar_type());
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("merge_edges", TORCH_BOX(&shamisa::merge_edges));
  m.impl("merge_edges_backward", TORCH_BOX(&shamisa::merge_edges_backward));
}
