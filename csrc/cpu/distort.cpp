// The distort op for CPU tensors: checks, memory, threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <memory>

#include "../host/batch.h"
#include "levels.h"

namespace shamisa {

using torch::stable::Tensor;

// of the calling thread, kept for its next image
static unsigned char* thread_memory(int64_t bytes) {
  thread_local std::unique_ptr<unsigned char[]> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset();  // first, so that both are never held
    size = 0;
    memory.reset(new unsigned char[bytes + 64]);
    size = bytes;
  }
  return (unsigned char*)(((uintptr_t)memory.get() + 63) / 64 * 64);
}

// source [S, 3, H, W], index [N], opcode, value, key [N, D] -> [N, 3, H, W]; see shamisa/ops.py
static Tensor distort(Tensor source, Tensor index, Tensor opcode, Tensor value, Tensor key,
                      std::optional<std::vector<double>> mean, std::optional<std::vector<double>> std,
                      torch::headeronly::ScalarType dtype, bool channels_last) {
  BatchTensors tensors(source, index, opcode, value, key, mean, std, dtype, channels_last);
  Batch batch = tensors.batch();
  bool present[opcode_count];
  check_contents(batch, present);
  if (batch.N > 0) {
    const Kernels& level = kernels();
    const int64_t bytes = level.distort_bytes(batch.H, batch.W, present);
    const int64_t workers = std::min<int64_t>(batch.N, torch::stable::get_num_threads());
    std::atomic<int64_t> next{0};  // chains differ in length, so threads take images one by one
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      unsigned char* memory = thread_memory(bytes);
      for (int64_t worker = begin; worker < end; ++worker)
        for (int64_t n; (n = next++) < batch.N;) level.distort(batch, n, memory);
    });
  }
  return tensors.out();
}

}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) { m.impl("distort", TORCH_BOX(&shamisa::distort)); }
