// What the look at the range of floating images costs, alone: least of many repeats, images in the cache and from memory.
//   g++ -O2 -std=c++20 -Icsrc benchmarks/range_check.cpp -o range_check && ./range_check
// Beside it stands the cost of a call: python -m pytest benchmarks/test_distortions.py -k darken --benchmark-only
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "host/range.h"

using namespace shamisa;

int main() {
  std::vector<float> other(32 << 20);  // more than a cache holds
  size_t faults = 0;
  const auto once = [&](const Batch& batch) {
    const auto start = std::chrono::steady_clock::now();
    faults += fault_of_range(batch).size();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  };
  for (int size : {64, 224, 512})
    for (int n : {1, 8, 64}) {
      std::vector<float> images((size_t)n * 3 * size * size, .5f);
      Batch batch{};
      batch.source = images.data(), batch.source_type = DType::f32, batch.S = n, batch.H = batch.W = size;
      batch.source_stride[0] = 3ll * size * size, batch.source_stride[1] = (int64_t)size * size;
      batch.source_stride[2] = size, batch.source_stride[3] = 1;
      double cached = 1e9, uncached = 1e9;
      for (int i = 0; i < 300; ++i) cached = std::min(cached, once(batch));
      for (int i = 0; i < 20; ++i) {
        for (float& x : other) x += 1.f;
        uncached = std::min(uncached, once(batch));
      }
      std::printf("%2d images of %3d px: %5.2f us in the cache, %5.2f us from memory\n", n, size, cached, uncached);
    }
  return faults || other[1] < 0.f;  // looked at, so that nothing is left out
}
