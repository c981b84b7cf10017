// What the CPU kernels of the ops share beside host/tensors.h: memory, loops on torch's threads, checks of indices.
#pragma once

#include "../host/tensors.h"

namespace shamisa {

inline Tensor make(std::initializer_list<int64_t> size, ScalarType type) {
  return torch::stable::empty({size.begin(), size.size()}, type);
}
inline int64_t units(int64_t n, int64_t size) { return (n + size - 1) / size; }  // of that size, that hold n
constexpr int64_t work = 1 << 15;                                                // multiplications worth a thread
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
