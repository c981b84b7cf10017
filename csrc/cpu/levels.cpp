#include "levels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace shamisa {

#define SHAMISA_KERNELS(level) {#level, distort_##level, relation_##level, resize_##level}
#if defined(SHAMISA_X86)
static const Kernels levels[] = {SHAMISA_KERNELS(v2), SHAMISA_KERNELS(v3), SHAMISA_KERNELS(v4)};
static const Kernels* const built[] = {&levels[0], &levels[1], &levels[2], nullptr};
#else
static const Kernels levels[] = {SHAMISA_KERNELS(any)};
static const Kernels* const built[] = {&levels[0], nullptr};
#endif

const Kernels* const* all_kernels() { return built; }

bool runs_here(const Kernels& k) {
#if defined(SHAMISA_X86)
  __builtin_cpu_init();
  switch (k.level[1]) {
    case '2': return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    case '3':
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2");
    case '4':
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return k.level != nullptr;
#endif
}

static const Kernels& choose() {
  const char* wanted = std::getenv("SHAMISA_ISA");
  const Kernels* best = nullptr;
  std::string names;
  for (const Kernels* const* k = built; *k; ++k) {
    if (!runs_here(**k)) continue;
    names += (names.empty() ? "" : ", ") + std::string((*k)->level);
    if (!wanted || !*wanted || std::strcmp(wanted, (*k)->level) == 0) best = *k;
  }
  if (!best)
    throw std::runtime_error(wanted && *wanted && !names.empty()
                                 ? "SHAMISA_ISA must be one of " + names + " on this machine, got " + wanted
                                 : "the native kernels need an x86-64-v2 processor");
  return *best;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace shamisa
