// What the CPU kernels of the ops share: tensors as pointers, types, loops on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

namespace shamisa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
constexpr ScalarType type_of = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline Tensor dense(const Tensor& x, ScalarType type) {
  const Tensor y = x.scalar_type() == type ? x : torch::stable::to(x, type);
  return torch::stable::contiguous(y);
}
inline Tensor back(const Tensor& x, ScalarType type) { return x.scalar_type() == type ? x : torch::stable::to(x, type); }
inline Tensor make(std::initializer_list<int64_t> size, ScalarType type) {
  return torch::stable::empty({size.begin(), size.size()}, type);
}
template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}
template <class T>
const T* read(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// f(T{}) with T = float or double
template <class F>
auto with_type(ScalarType type, F f) {
  return type == ScalarType::Double ? f(double{}) : f(float{});
}

constexpr int64_t work = 1 << 15;  // multiplications worth a thread
template <class F>
void parallel(int64_t n, int64_t cost, F f) {
  if (n > 0) torch::stable::parallel_for(0, n, cost < work ? work / (cost > 0 ? cost : 1) + 1 : 1, f);
}

inline void check_index(const int64_t* index, int64_t M, int64_t N, const char* name) {
  bool good = true;
  for (int64_t e = 0; e < M; ++e) good &= index[e] >= 0 && index[e] < N;
  STD_TORCH_CHECK(good, name, " must be in 0..", N - 1);
}

}  // namespace shamisa
