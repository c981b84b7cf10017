// ms per 224 x 224 image and distortion at the middle of its range, one thread, every level of this machine.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "cases.h"

using namespace shamisa;

// the five levels' middle one, where a row's range says nothing of how it is used
static float usual_value(int code) {
  static const float values[opcode_count] = {1.f, 4.f, 4.f,  6.f,   6.f, .1f,  3.f, 45.f, 24.f, .003f, .001f, .01f, .01f,
                                             .4f, .2f, -.1f, .115f, .2f, 60.f, .1f, 13.f, 6.f,  3.f,   -.3f,  .3f,  .2f};
  return values[code];
}

int main(int argc, char** argv) {
  const int size = argc > 1 ? std::atoi(argv[1]) : 224, repeats = argc > 2 ? std::atoi(argv[2]) : 15;
  const std::vector<float> image = test_image(size, size, 3);
  std::printf("%-24s", "ms, median");
  for (const Kernels* const* level = all_kernels(); *level; ++level)
    if (runs_here(**level)) std::printf("%10s", (*level)->level);
  std::printf("\n");
  for (int code = -1; code < opcode_count; ++code) {
    if (code >= 0 && (!row_of(code).native || size < row_of(code).min_size)) continue;
    std::printf("%-24s", code < 0 ? "(entry and exit)" : name_of(code));
    for (const Kernels* const* level = all_kernels(); *level; ++level) {
      if (!runs_here(**level)) continue;
      BatchCase c{size, size, 1, image, {0}, {code}, {5}, {code < 0 ? 0.f : usual_value(code)}};
      std::vector<float> out(c.samples());
      const Batch batch = c.batch(out.data());
      bool present[opcode_count];
      for (bool& p : present) p = true;
      const size_t bytes = ((size_t)(*level)->distort_bytes(size, size, present) + 63) / 64 * 64;
      unsigned char* memory = (unsigned char*)std::aligned_alloc(64, bytes);
      std::vector<double> times;
      for (int r = 0; r < repeats + 2; ++r) {
        const auto start = std::chrono::steady_clock::now();
        (*level)->distort(batch, 0, memory);
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
      }
      std::free(memory);
      times.erase(times.begin(), times.begin() + 2);
      std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
      std::printf("%10.3f", times[repeats / 2]);
    }
    std::printf("\n");
  }
  return 0;
}
