// The table round(256 log2 Gamma(i / 4)), made by the compiler in fixed point: one definition for host and device, no libm.
#pragma once

#include "../core/math.h"

SHAMISA_BEGIN

struct LogGamma {
  static constexpr int size = 4 * 64 * 64 + 65;  // the largest argument: 4 (ones + zeros of a code block) + MEMORY of the model
  int32_t value[size];

  constexpr LogGamma() : value() {
    // log2(n), 46 fractional bits: of odd n from its neighbours, log2(n) = (log2(n - 1) + log2(n + 1)) / 2 + atanh(1 / m) / ln
    // 2 with m = 2 n^2 - 1
    constexpr int64_t one = (int64_t)1 << 46, inverse_ln2 = 1663314137230540311;  // 60 fractional bits
    int64_t log[size + 1] = {};
    for (int n = 2; n <= size; ++n) {
      log[n] = n % 2 ? 0 : log[n / 2] + one;
      if (n % 2 == 0) continue;
      const int64_t m = 2 * (int64_t)n * n - 1;
      int64_t term = inverse_ln2 / m, sum = 0;
      for (int k = 1; term > 0; k += 2, term /= m * m) sum += term / k;
      log[n] = (log[n - 1] + log[(n + 1) / 2] + one) / 2 + (sum >> 14);
    }
    // Gamma(x + 1) = x Gamma(x), from Gamma(1/4), Gamma(1/2), Gamma(3/4), Gamma(1)
    int64_t gamma[4] = {130760868798931, 58106854322620, 20637211935141, 0};
    for (int i = 1; i < size; ++i) {
      int64_t& g = gamma[(i - 1) % 4];
      value[i] = (int32_t)((g + ((int64_t)1 << 37)) >> 38);
      g += log[i] - 2 * one;
    }
  }
};

#if defined(__CUDACC__)
static __device__ const LogGamma log_gamma_device;
#endif
static constexpr LogGamma log_gamma_host;

SHAMISA_HD int log_gamma(int i) {
#if defined(__CUDA_ARCH__)
  return __ldg(log_gamma_device.value + i);
#else
  return log_gamma_host.value[i];
#endif
}

SHAMISA_END
