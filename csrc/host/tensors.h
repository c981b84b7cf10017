// What the launchers of the relation ops share on every device: tensors as pointers, types, checks of shapes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <string>

namespace shamisa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
constexpr ScalarType type_of = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

// float64 stays float64, every other floating type is computed in float32
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
// x of this type, contiguous; x itself where it is that already
inline Tensor dense(const Tensor& x, ScalarType type) {
  return torch::stable::contiguous(x.scalar_type() == type ? x : torch::stable::to(x, type));
}
inline Tensor back(const Tensor& x, ScalarType type) { return x.scalar_type() == type ? x : torch::stable::to(x, type); }
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

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}
inline void check_shape(const Tensor& t, std::initializer_list<int64_t> size, const char* name) {
  bool good = t.dim() == (int64_t)size.size();
  std::string expected;
  int64_t d = 0;
  for (const int64_t n : size) {
    good = good && t.size(d) == n;
    expected += (d++ ? ", " : "") + std::to_string(n);
  }
  STD_TORCH_CHECK(good, name, " must be [", expected, "], got ", shape_of(t));
}
// a matrix, with the letters of its sides
inline void check_matrix(const Tensor& t, const char* name, const char* letters) {
  STD_TORCH_CHECK(t.dim() == 2, name, " must be ", letters, ", got ", shape_of(t));
}

}  // namespace shamisa
