// What the launchers of the relation ops share: device and stream, tensors, checks, registration.
//
// The same source becomes the CUDA kernels of the ops in torch.ops.shamisa (nvcc) or, under the emulator, CPU kernels of ops
// of the same names in torch.ops.shamisa_emulated, so that tests run launchers and kernels whole without a GPU.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../host/tensors.h"
#include "launch.cuh"

// at file scope: SHAMISA_DEVICE_OPS(m) { m.impl("name", TORCH_BOX(&shamisa::name)); }
#if defined(SHAMISA_EMULATE)
#define SHAMISA_DEVICE_OPS(m) STABLE_TORCH_LIBRARY_IMPL(shamisa_emulated, CPU, m)
#else
#define SHAMISA_DEVICE_OPS(m) STABLE_TORCH_LIBRARY_IMPL(shamisa, CUDA, m)
#endif

// SHAMISA_LAUNCH and the check that it was accepted; no blocks, no launch
#if defined(SHAMISA_EMULATE)
#define SHAMISA_CHECK_LAUNCH() (void)0
#else
#include <torch/csrc/stable/macros.h>  // torch before 2.12 does not bring it along
#define SHAMISA_CHECK_LAUNCH() STD_CUDA_KERNEL_LAUNCH_CHECK()
#endif
#define SHAMISA_RUN(kernel, blocks, threads, stream, ...)          \
  do {                                                             \
    const dim3 grid_ = shamisa::grid_of(blocks);                   \
    if (grid_.x > 0 && grid_.y > 0 && grid_.z > 0) {               \
      SHAMISA_LAUNCH(kernel, grid_, threads, stream, __VA_ARGS__); \
      SHAMISA_CHECK_LAUNCH();                                      \
    }                                                              \
  } while (0)

namespace shamisa {

inline dim3 grid_of(dim3 blocks) { return blocks; }
inline dim3 grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks >= 0 && blocks <= 0x7fffffff, "too large for one launch: ", blocks, " blocks");
  return dim3((unsigned)blocks);
}
// blocks of `each` items that hold n
inline int64_t blocks_for(int64_t n, int64_t each) { return (n + each - 1) / each; }

// makes the device of x current while it lives, and knows its current stream
class OnDevice {
 public:
#if defined(SHAMISA_EMULATE)
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }
  cudaStream_t stream() const { return (cudaStream_t)stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
#endif
};

// uninitialised, on the device of `like`, from torch's caching allocator: freed in the order of the stream
inline Tensor make(std::initializer_list<int64_t> size, ScalarType type, const Tensor& like) {
  return torch::stable::empty({size.begin(), size.size()}, type, std::nullopt, like.device());
}
// whether rows of D elements of T, starting at p, can be read 16 bytes at a time
template <class T>
bool wide_rows(const T* p, int64_t D) {
  return (uintptr_t)p % 16 == 0 && D * (int64_t)sizeof(T) % 16 == 0;
}

// Every tensor on the device of the first: a pointer of another device would be read as if it were of this one
inline void check_device(const Tensor& first, std::initializer_list<const Tensor*> others) {
  for (const Tensor* t : others)
    STD_TORCH_CHECK(t->is_cuda() == first.is_cuda() && t->get_device_index() == first.get_device_index(),
                    "all tensors of one op must be on one device");
}
inline void clear(void* p, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
#if defined(SHAMISA_EMULATE)
  (void)stream;
  std::memset(p, 0, (size_t)bytes);
#else
  STD_CUDA_CHECK(cudaMemsetAsync(p, 0, (size_t)bytes, stream));
#endif
}

}  // namespace shamisa
