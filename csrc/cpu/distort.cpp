// The distort op for CPU tensors: checks, memory, threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <memory>
#include <new>

#include "../host/distort.h"
#include "../host/range.h"
#include "levels.h"

namespace shamisa {

using torch::stable::Tensor;

// The memory of a call: its output, and DistortKernels::bytes(H, W, ops that occur) for each thread that has an image to work
// on (at 224 x 224 up to 3.4 MB), whatever the number and length of the chains. A thread keeps its memory for its next call,
// up to kept_bytes.
struct ThreadMemory {
  static constexpr int64_t kept_bytes = 64 << 20;
  std::unique_ptr<unsigned char[]> memory;
  int64_t size = 0;

  unsigned char* at_least(int64_t bytes) {  // aligned to 64; nullptr: there is not as much
    if (size < bytes) {
      release();  // first, so that both are never held
      memory.reset(new (std::nothrow) unsigned char[bytes + 64]);
      if (!memory) return nullptr;
      size = bytes;
    }
    return (unsigned char*)(((uintptr_t)memory.get() + 63) / 64 * 64);
  }
  void release() { memory.reset(), size = 0; }
};

// source [S, 3, H, W], index [N], opcode, value, key [N, D] -> [N, 3, H, W]; see shamisa/ops.py
static Tensor distort(Tensor source, Tensor index, Tensor opcode, Tensor value, Tensor key,
                      std::optional<std::vector<double>> mean, std::optional<std::vector<double>> std,
                      torch::headeronly::ScalarType dtype, bool channels_last) {
  BatchTensors tensors(source, index, opcode, value, key, mean, std, dtype, channels_last);
  Batch batch = tensors.batch();
  bool present[opcode_count];
  check_contents(batch, present);
  const std::string fault = fault_of_range(batch);
  STD_TORCH_CHECK(fault.empty(), fault);
  if (batch.N > 0) {
    const DistortKernels& level = kernels().distort;
    const int64_t bytes = level.bytes(batch.H, batch.W, present);
    const int64_t workers = std::min<int64_t>(batch.N, torch::stable::get_num_threads());
    std::atomic<bool> failed{false};
    std::atomic<int64_t> next{0};  // chains differ in length, so threads take images one by one
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      static thread_local ThreadMemory own;
      unsigned char* memory = own.at_least(bytes);
      if (!memory) {
        failed = true;
        return;
      }
      for (int64_t worker = begin; worker < end; ++worker)
        for (int64_t n; (n = next++) < batch.N;) level.image(batch, n, memory);
      if (own.size > ThreadMemory::kept_bytes) own.release();
    });
    STD_TORCH_CHECK(!failed, "out of memory: images of ", batch.H, " x ", batch.W, " need ", bytes, " bytes per thread");
  }
  return tensors.out();
}

}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) { m.impl("distort", TORCH_BOX(&shamisa::distort)); }
