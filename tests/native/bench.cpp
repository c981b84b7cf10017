// ms per 224 x 224 image and distortion at the middle of its levels, and per chain of pointwise ones, one thread, every level
// of this machine.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "cases.h"

using namespace shamisa;

// chains of pointwise stages, from bytes to normalised float32
static const std::vector<int> point_chains[] = {
    {op_darken},
    {op_darken, op_linear_contrast_up, op_color_saturation_hsv},
    {op_mean_shift_up, op_linear_contrast_down, op_darken, op_nonlinear_contrast, op_color_saturation_hsv, op_mean_shift_down},
    {op_brighten, op_white_noise, op_linear_contrast_up},
    {op_brighten, op_white_noise, op_linear_contrast_up, op_color_saturation_lab, op_impulse_noise, op_darken},
};

static double median_ms(const Kernels& level, const Batch& batch, int repeats) {
  bool present[opcode_count];
  for (bool& p : present) p = true;
  const size_t bytes = ((size_t)level.distort.bytes(batch.H, batch.W, present) + 63) / 64 * 64;
  unsigned char* memory = (unsigned char*)std::aligned_alloc(64, bytes);
  std::vector<double> times;
  for (int r = 0; r < repeats + 2; ++r) {
    const auto start = std::chrono::steady_clock::now();
    level.distort.image(batch, 0, memory);
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::free(memory);
  times.erase(times.begin(), times.begin() + 2);
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[repeats / 2];
}

static void row(const char* name, const Batch& batch, int repeats) {
  std::printf("%-24s", name);
  for (const Kernels* const* level = all_kernels(); *level; ++level)
    if (runs_here(**level)) std::printf("%10.4f", median_ms(**level, batch, repeats));
  std::printf("\n");
}

int main(int argc, char** argv) {
  const int size = argc > 1 ? std::atoi(argv[1]) : 224, repeats = argc > 2 ? std::atoi(argv[2]) : 15;
  const std::vector<float> image = test_image(size, size, 3);
  std::vector<float> out(image.size());
  std::printf("%-24s", "ms, median");
  for (const Kernels* const* level = all_kernels(); *level; ++level)
    if (runs_here(**level)) std::printf("%10s", (*level)->level);
  std::printf("\n");
  for (int code = -1; code < opcode_count; ++code) {
    if (code >= 0 && size < row_of(code).min_size) continue;
    const BatchCase c{size, size, 1, image, {0}, {code}, {5}, {code < 0 ? 0.f : middle_of(code)}};
    row(code < 0 ? "(entry and exit)" : name_of(code), c.batch(out.data()), repeats);
  }
  std::vector<uint8_t> bytes(image.size());
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = (uint8_t)(255 * image[i]);
  for (const std::vector<int>& chain : point_chains) {
    BatchCase c{size, size, (int)chain.size(), image, {0}, {}, {}, {}};
    for (int code : chain) c.opcode.push_back(code), c.key.push_back(5), c.value.push_back(middle_of(code));
    Batch batch = c.batch(out.data());
    batch.source = bytes.data(), batch.source_type = DType::u8, batch.normalize = true;
    for (int k = 0; k < 3; ++k) batch.mean[k] = 0.45f, batch.std[k] = 0.23f;
    const std::string name = std::string("u8, ") + std::to_string(chain.size()) + " x " + name_of(chain[0]) + ", normalised";
    row(name.c_str(), batch, repeats);
  }
  return 0;
}
