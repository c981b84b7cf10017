// What the native tests run: one batch per distortion and size, with a few parameters and strange inputs.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "../../csrc/cpu/levels.h"
#include "../../csrc/distort/catalogue.h"

// the lowest level of this build
inline const shamisa::Kernels& lowest() { return *shamisa::all_kernels()[0]; }

inline float random_float(uint64_t& state) {  // splitmix64, top 24 bits
  state += 0x9E3779B97F4A7C15ull;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return (float)((z ^ (z >> 31)) >> 40) * 5.9604644775390625e-8f;
}

// smooth with some detail, so that codecs have something to code
inline std::vector<float> test_image(int H, int W, uint64_t seed) {
  std::vector<float> image(3 * (size_t)H * W);
  const float fx = 0.03f + 0.2f * random_float(seed), fy = 0.03f + 0.2f * random_float(seed);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < H; ++y)
      for (int x = 0; x < W; ++x) {
        const float wave = (float)((int)(fx * x * 8 + fy * y * 5 + 3 * c) % 9) / 9.f;
        image[((size_t)c * H + y) * W + x] = 0.8f * wave + 0.2f * random_float(seed);
      }
  return image;
}

struct BatchCase {
  int H, W, D;
  std::vector<float> source;  // [S, 3, H, W]
  std::vector<int64_t> index, opcode, key;
  std::vector<float> value;
  // how the bytes of source are read, and what is written
  shamisa::DType source_type = shamisa::DType::f32, out_type = shamisa::DType::f32;
  bool channels_last = false, normalize = false;

  int64_t N() const { return (int64_t)index.size(); }
  int64_t samples() const { return N() * 3 * H * W; }
  // pointers into this object; out: where the results go
  shamisa::Batch batch(float* out) const {
    shamisa::Batch b{};
    b.source = source.data(), b.source_type = source_type;
    b.S = (int64_t)source.size() / (3ll * H * W), b.N = N(), b.D = D, b.H = H, b.W = W;
    b.source_stride[0] = 3ll * H * W, b.source_stride[1] = channels_last ? 1 : (int64_t)H * W;
    b.source_stride[2] = channels_last ? 3 * W : W, b.source_stride[3] = channels_last ? 3 : 1;
    b.index = index.data(), b.opcode = opcode.data(), b.value = value.data(), b.key = key.data();
    b.out = out, b.out_type = out_type, b.channels_last = channels_last, b.normalize = normalize;
    for (int k = 0; k < 3; ++k) b.mean[k] = 0.4f + 0.05f * (float)k, b.std[k] = 0.2f + 0.01f * (float)k;
    return b;
  }
};

// one distortion at its limits and between them, then chains of everything that the size allows,
// in several types and layouts, and a long chain of pointwise stages
inline std::vector<BatchCase> batch_cases(bool large) {
  std::vector<std::vector<int>> sizes = {{1, 1}, {1, 50}, {50, 1}, {5, 7}, {37, 41}, {48, 65}, {64, 64}};
  if (large) sizes.push_back({224, 224});
  std::vector<BatchCase> cases;
  for (const auto& size : sizes) {
    const int H = size[0], W = size[1];
    std::vector<int> usable;
    BatchCase chains{H, W, 4, {}, {}, {}, {}, {}};
    for (int s = 0; s < 2; ++s) {
      const auto image = test_image(H, W, 7 + s);
      chains.source.insert(chains.source.end(), image.begin(), image.end());
    }
    for (int code = 0; code < shamisa::opcode_count; ++code) {
      const shamisa::Row row = shamisa::row_of(code);
      if (H < row.min_size || W < row.min_size) continue;
      usable.push_back(code);
      BatchCase c{H, W, 1, chains.source, {}, {}, {}, {}};
      const float at[] = {0.f, 0.02f, 0.4f, 1.f};
      for (int i = 0; i < 4; ++i) {
        const float low = row.low, high = row.high > 100 ? 100 : row.high;
        c.index.push_back(i % 2);
        c.opcode.push_back(code);
        c.value.push_back(low + at[i] * (high - low));
        c.key.push_back(-1234567891011ll * (i + 1) + code);
      }
      cases.push_back(c);
    }
    uint64_t seed = 99;
    for (int n = 0; n < 6; ++n) {
      chains.index.push_back(n % 2);
      for (int d = 0; d < chains.D; ++d) {
        const int code = usable[(size_t)(random_float(seed) * usable.size())];
        const shamisa::Row row = shamisa::row_of(code);
        chains.opcode.push_back(n == 0 || d == n % 3 ? -1 : code);
        chains.value.push_back(row.low + random_float(seed) * ((row.high > 50 ? 50 : row.high) - row.low));
        chains.key.push_back((int64_t)(random_float(seed) * 1e15f));
      }
    }
    cases.push_back(chains);
    using shamisa::DType;
    chains.channels_last = chains.normalize = true;
    chains.source_type = DType::u8, chains.out_type = DType::f16;
    cases.push_back(chains);
    chains.channels_last = false;
    chains.source_type = DType::bf16, chains.out_type = DType::bf16;
    cases.push_back(chains);
    chains.channels_last = true, chains.normalize = false;
    chains.source_type = DType::f16, chains.out_type = DType::u8;
    cases.push_back(chains);
  }
  // pointwise stages beyond the longest run
  BatchCase deep{5, 7, 70, test_image(5, 7, 1), {0}, {}, {}, {}};
  const int pointwise[] = {shamisa::op_white_noise, shamisa::op_darken, shamisa::op_color_noise, shamisa::op_brighten};
  for (int d = 0; d < deep.D; ++d) {
    deep.opcode.push_back(d == 67 ? shamisa::op_quantization : pointwise[d % 4]);
    deep.value.push_back(0.01f + 0.001f * (float)d);
    deep.key.push_back(d * 1000003ll);
  }
  cases.push_back(deep);
  return cases;
}

inline std::vector<float> run_on(const shamisa::Kernels& kernels, const BatchCase& c) {
  std::vector<float> out(c.samples(), -1.f);
  const shamisa::Batch batch = c.batch(out.data());
  bool present[shamisa::opcode_count];
  for (bool& p : present) p = true;
  const size_t bytes = (size_t)kernels.distort.bytes(c.H, c.W, present);
  unsigned char* memory = (unsigned char*)std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  for (int64_t n = 0; n < c.N(); ++n) kernels.distort.image(batch, n, memory);
  std::free(memory);
  return out;
}
