// The distort op for CUDA tensors: checks, memory, launch. Nothing waits for the device.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include "../host/distort.h"
#include "distort_kernel.cuh"

namespace shamisa {

using torch::stable::Tensor;

// source [S, 3, H, W], index [N], opcode, value, key [N, D] -> [N, 3, H, W]; see shamisa/ops.py
static Tensor distort(Tensor source, Tensor index, Tensor opcode, Tensor value, Tensor key,
                      std::optional<std::vector<double>> mean, std::optional<std::vector<double>> std,
                      torch::headeronly::ScalarType dtype, bool channels_last) {
  STD_TORCH_CHECK(source.is_cuda(), "index, opcode, value and key must be on the device of source");
  const int device = source.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  BatchTensors tensors(source, index, opcode, value, key, mean, std, dtype, channels_last);
  const Batch& batch = tensors.batch();
  if (batch.N > 0) {
    int processors = 0, resident = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, distort_images, DistortLaunch::threads, 0));
    const int64_t bytes = distort_bytes(batch.H, batch.W);
    const int64_t blocks = distort_blocks(batch.N, (int64_t)processors * std::max(resident, 1), bytes);
    // freed when this function returns; the caching allocator reuses it in the order of the stream
    const Tensor memory = torch::stable::empty({blocks * bytes + (int64_t)sizeof(unsigned long long)},
                                               torch::headeronly::ScalarType::Byte, std::nullopt, source.device());
    unsigned char* const rooms = (unsigned char*)memory.data_ptr();
    unsigned long long* const taken = (unsigned long long*)(rooms + blocks * bytes);
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    STD_CUDA_CHECK(cudaMemsetAsync(taken, 0, sizeof(*taken), (cudaStream_t)stream));
    SHAMISA_LAUNCH(distort_images, (unsigned)blocks, DistortLaunch::threads, (cudaStream_t)stream, batch, rooms, bytes, taken);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return tensors.out();
}

}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CUDA, m) { m.impl("distort", TORCH_BOX(&shamisa::distort)); }
