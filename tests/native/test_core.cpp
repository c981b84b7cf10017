// The core without torch: random words, elementary functions, conversions, every distortion on every level of this machine.
#include "../../csrc/core/image.h"
#include "../../csrc/core/philox.h"
#include "../../csrc/cpu/levels.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "cases.h"
#include "check.h"

using namespace shamisa;

static void test_philox() {  // known answers of Random123
  const struct {
    uint64_t key;
    uint32_t counter[4], words[4];
  } known[] = {
      {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {~0ull, {~0u, ~0u, ~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {0x299f31d0a4093822ull,
       {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const auto& k : known)
    for (const Kernels* const* level = all_kernels(); *level; ++level) {
      if (!runs_here(**level)) continue;
      uint32_t words[4];
      (*level)->distort.philox(k.key, k.counter, words);
      CHECK(std::memcmp(words, k.words, sizeof words) == 0, "level %s", (*level)->level);
    }
}

static void test_functions() {
  double log_error = 0, wave_error = 0, root_error = 0, encode_error = 0, decode_error = 0;
  for (int i = 1; i <= 1 << 16; ++i) {
    const float u = (float)i / (1 << 16);
    if (u < 1) log_error = std::fmax(log_error, std::fabs(log_of(u) / std::log((double)u) - 1));
    float s, c;
    sincos_turn(u, s, c);
    const double angle = 2 * M_PI * (double)u;
    wave_error = std::fmax(wave_error, std::fmax(std::fabs(s - std::sin(angle)), std::fabs(c - std::cos(angle))));
    root_error = std::fmax(root_error, std::fabs(cube_root(u) / std::cbrt((double)u) - 1));
    const double linear = u > 0.04045 ? std::pow((u + 0.055) / 1.055, 2.4) : u / 12.92;
    decode_error = std::fmax(decode_error, std::fabs(linear_of_srgb(u) - linear));
    const double encoded = u > 0.0031308 ? 1.055 * std::pow((double)u, 1 / 2.4) - 0.055 : 12.92 * u;
    encode_error = std::fmax(encode_error, std::fabs(srgb_of_linear(u) - encoded));
  }
  CHECK(log_error < 3e-7, "%g", log_error);
  CHECK(wave_error < 3e-7, "%g", wave_error);
  CHECK(root_error < 3e-7, "%g", root_error);
  CHECK(decode_error < 2e-6, "%g", decode_error);
  CHECK(encode_error < 6e-7, "%g", encode_error);
  CHECK(log_of(1.f) == 0.f, "the smallest noise would not be 0");
  for (double x = 0.001; x < 40; x *= 1.3) {
    CHECK(std::fabs(log_of(x) - std::log(x)) < 1e-13 * (1 + std::fabs(std::log(x))), "log %g", x);
    CHECK(std::fabs(power(x, 0.6) / std::pow(x, 0.6) - 1) < 1e-13, "power %g", x);
    CHECK(std::fabs(exp_of(-x) / std::exp(-x) - 1) < 1e-13, "exp %g", -x);
  }
  CHECK(round_even(2.5f) == 2.f && round_even(3.5f) == 4.f && round_even(-2.5f) == -2.f, "ties");
  CHECK(floor_int(-0.5f) == -1 && floor_int(-2.f) == -2 && floor_int(2.9f) == 2, "floor");
  CHECK(clamp01(NAN) == 0.f && clamp01(INFINITY) == 1.f && clamp01(-1.f) == 0.f, "clamp01");
}

static void test_conversions() {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = float_of_half((uint16_t)h), b = float_of_bfloat((uint16_t)h);
    if (std::isnan(f))
      CHECK(std::isnan(float_of_half(half_of_float(f))), "half %x", h);
    else
      CHECK(half_of_float(f) == h, "half %x", h);
    if (!std::isnan(b)) CHECK(bfloat_of_float(b) == h, "bfloat %x", h);
    // halfway to the next number goes to the even one
    if (h < 0x7bff) {
      const float middle = (f + float_of_half((uint16_t)(h + 1))) / 2;
      CHECK(half_of_float(middle) == h + (h & 1), "half tie %x", h);
    }
  }
  for (int i = 0; i < 256; ++i) CHECK(U8::write(U8::read((uint8_t)i)) == i, "byte %d", i);
}

// every level gives the same bits, all of them in [0, 1]
static void test_levels() {
  for (const BatchCase& c : batch_cases(false)) {
    const std::vector<float> first = run_on(lowest(), c);
    bool inside = true;
    for (float x : first) inside &= x >= 0 && x <= 1;
    const char* name = c.D == 1 ? name_of((int)c.opcode[0]) : "chains";
    CHECK(inside || c.normalize || c.out_type != DType::f32, "%s %d x %d leaves [0, 1]", name, c.H, c.W);
    for (const Kernels* const* level = all_kernels() + 1; *level; ++level) {
      if (!runs_here(**level)) continue;
      const std::vector<float> other = run_on(**level, c);
      CHECK(std::memcmp(first.data(), other.data(), first.size() * 4) == 0, "%s %d x %d differs between %s and %s", name, c.H,
            c.W, lowest().level, (*level)->level);
    }
  }
}

// Whatever the plan says, a kernel reads and writes what is its own (the sanitizers look) and leaves every sample in [0, 1].
static void test_nonsense() {
  const int64_t wild[] = {-1, -2, 26, INT64_MAX, INT64_MIN, (int64_t)1 << 32, 255};
  const float strange[] = {NAN, INFINITY, -INFINITY, -1.f, 3e38f, 1e-42f, 0.5f, 47.5f, 1e9f};
  uint64_t seed = 3;
  const auto below = [&](int n) { return (int)(random_float(seed) * (float)n); };
  for (const auto& size : {std::vector<int>{1, 1}, {5, 7}, {37, 41}, {50, 66}}) {
    const int H = size[0], W = size[1];
    BatchCase c{H, W, 3, test_image(H, W, 5), {}, {}, {}, {}};
    for (int i = 0; i < 9; ++i) c.source[(size_t)below((int)c.source.size())] = strange[i];
    for (int n = 0; n < 60; ++n) {
      c.index.push_back(below(4) ? 0 : wild[below(7)]);
      for (int d = 0; d < c.D; ++d) {
        c.opcode.push_back(below(4) ? below(opcode_count) : wild[below(7)]);
        c.value.push_back(strange[below(9)]);
        c.key.push_back((int64_t)((uint64_t)wild[below(7)] * (uint64_t)below(1000)));
      }
    }
    const std::vector<float> first = run_on(lowest(), c);
    for (size_t i = 0; i < first.size(); ++i)
      if (!(first[i] >= 0 && first[i] <= 1)) CHECK(false, "%d x %d, image %zu: %g", H, W, i / c.source.size(), first[i]);
    for (const Kernels* const* level = all_kernels() + 1; *level; ++level)
      if (runs_here(**level))
        CHECK(std::memcmp(first.data(), run_on(**level, c).data(), first.size() * 4) == 0, "%d x %d, %s", H, W,
              (*level)->level);
  }
}

int main() {
  test_philox();
  test_functions();
  test_conversions();
  test_levels();
  test_nonsense();
  return report("core");
}
