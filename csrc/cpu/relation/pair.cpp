// CPU kernels of pair_cost (see neighbors.cpp for the style).
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "laplacian.h"

namespace shamisa {
namespace {

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
  m.impl("pair_cost", TORCH_BOX(&shamisa::pair_cost));
  m.impl("pair_cost_backward", TORCH_BOX(&shamisa::pair_cost_backward));
}
