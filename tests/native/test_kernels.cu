// The CUDA kernels against the CPU kernels, bit for bit. Compiled twice: as C++ it runs under the emulator, as CUDA on a GPU
// (returns 77 without one).
#if !defined(__CUDACC__)
#include "emulator.h"
#endif

#include "../../csrc/cuda/distort_kernel.cuh"
// after it, so that the words of the emulator stand
#include <cstring>
#include <vector>

#include "cases.h"
#include "check.h"
#include "device.h"

using namespace shamisa;

static std::vector<float> run_kernel(const BatchCase& c, unsigned blocks, unsigned threads) {
  std::vector<float> out(c.samples(), -1.f);
  DeviceMemory source(c.source.size() * 4, c.source.data()), index(c.index.size() * 8, c.index.data());
  DeviceMemory opcode(c.opcode.size() * 8, c.opcode.data()), value(c.value.size() * 4, c.value.data());
  DeviceMemory key(c.key.size() * 8, c.key.data()), result(out.size() * 4, out.data());
  const int64_t bytes = distort_bytes(c.H, c.W);
  DeviceMemory memory((size_t)bytes * blocks, nullptr);
  const DeviceArray<unsigned long long> taken(1, 0);
  Batch batch = c.batch((float*)result.p);
  batch.source = source.p, batch.index = (const int64_t*)index.p, batch.opcode = (const int64_t*)opcode.p;
  batch.value = (const float*)value.p, batch.key = (const int64_t*)key.p;
  SHAMISA_LAUNCH(distort_images, blocks, threads, 0, batch, (unsigned char*)memory.p, bytes, taken.data());
  const char* error = failure();
  CHECK(error == nullptr, "%s", error);
  fetch(out.data(), result, out.size() * 4);
  return out;
}

int main() {
  if (no_device()) {
    std::printf("no GPU\n");
    return 77;
  }
  // fibers cost more than arithmetic; three warps show what sixteen would
  const unsigned threads = on_gpu ? DistortLaunch::threads : 96;
  for (const BatchCase& c : batch_cases(on_gpu)) {
    const std::vector<float> wanted = run_on(lowest(), c), got = run_kernel(c, 3, threads);
    size_t differ = 0;
    for (size_t i = 0; i < got.size(); ++i) differ += std::memcmp(&got[i], &wanted[i], 4) != 0;
    CHECK(differ == 0, "%s %d x %d: %zu of %zu samples differ", c.D == 1 ? name_of((int)c.opcode[0]) : "chains", c.H, c.W,
          differ, got.size());
  }
  // contents that only the kernel can see: a bad index gives black, a bad op code is left out
  BatchCase bad{4, 5, 1, test_image(4, 5, 1), {7, -1, 0, 0}, {-1, -1, 99, -7}, {0, 0, 0, 0}, {0, 0, 0, 0}};
  const std::vector<float> got = run_kernel(bad, 2, DistortLaunch::threads);
  for (size_t i = 0; i < got.size(); ++i) {
    const size_t pixel = i % bad.source.size();
    CHECK(got[i] == (i < 2 * bad.source.size() ? 0.f : bad.source[pixel]), "sample %zu is %g", i, got[i]);
  }
  return report("kernels");
}
