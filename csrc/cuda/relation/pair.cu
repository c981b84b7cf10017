// pair_cost and its backward for CUDA tensors. Nothing waits for the device.
#include "pair.cuh"

#include "laplacian.cuh"

namespace shamisa {
namespace {

// z [N, E], weight [M], index [2, M] -> cost [], squared [M]
std::tuple<Tensor, Tensor> pair_cost(Tensor z, Tensor weight, Tensor index) {
  STD_TORCH_CHECK(z.dim() == 2, "z must be [N, E], got ", shape_of(z));
  const int64_t N = z.size(0), E = z.size(1), M = weight.numel();
  check_shape(weight, {M}, "weight");
  check_shape(index, {2, M}, "index");
  check_device(z, {&weight, &index});
  const OnDevice device(z);
  const ScalarType type = compute_type(z);
  const Tensor x = dense(z, type), w = dense(weight, type), edge = dense(index, ScalarType::Long);
  const Tensor cost = make({}, type, z), squared = make({M}, type, z);
  const int64_t blocks = blocks_for(M, PairLaunch::edges);
  const Tensor partial = make({blocks}, ScalarType::Double, z);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto width) {
      SHAMISA_RUN((pair_squared<T, decltype(width)::value>), blocks, PairLaunch::threads, device.stream(), read<T>(x), N, E,
                  read<T>(w), read<int64_t>(edge), M, data<T>(squared), data<double>(partial));
    };
    wide_rows(read<T>(x), E) ? run(std::integral_constant<int, wide<T>>{}) : run(std::integral_constant<int, 1>{});
    SHAMISA_RUN(pair_total<T>, (int64_t)1, PairLaunch::sum_threads, device.stream(), read<double>(partial), blocks,
                (double)N * (double)E, data<T>(cost));
    return 0;
  });
  return {cost, squared};
}

// grad [] of cost -> [N, E] of z, [M] of weight
std::tuple<Tensor, Tensor> pair_cost_backward(Tensor grad, Tensor z, Tensor weight, Tensor index, Tensor squared) {
  STD_TORCH_CHECK(z.dim() == 2, "z must be [N, E], got ", shape_of(z));
  const int64_t N = z.size(0), E = z.size(1), M = weight.numel();
  STD_TORCH_CHECK(grad.numel() == 1, "grad must be a scalar, got ", shape_of(grad));
  check_shape(weight, {M}, "weight");
  check_shape(squared, {M}, "squared");
  check_shape(index, {2, M}, "index");
  check_device(z, {&grad, &weight, &index, &squared});
  const OnDevice device(z);
  const ScalarType type = compute_type(z);
  const Tensor x = dense(z, type), w = dense(weight, type), s = dense(squared, type), edge = dense(index, ScalarType::Long);
  const Tensor g = dense(grad, ScalarType::Double), dw = make({M}, type, z);
  const Tensor dz = with_type(type, [&](auto t) {
    using T = decltype(t);
    const PairEdges<T> edges = {read<double>(g), (double)N * (double)E, read<T>(w), read<T>(s), read<int64_t>(edge), N, M,
                                data<T>(dw)};
    return apply_laplacian<T>(x, edges, device.stream());
  });
  return {back(dz, z.scalar_type()), back(dw, weight.scalar_type())};
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("pair_cost", TORCH_BOX(&shamisa::pair_cost));
  m.impl("pair_cost_backward", TORCH_BOX(&shamisa::pair_cost_backward));
}
