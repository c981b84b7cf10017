// A test in 20 lines: CHECK counts, main returns report().
#pragma once

#include <cstdio>

inline int checks = 0, failures = 0;

#define CHECK(condition, ...)                                                       \
  do {                                                                              \
    ++checks;                                                                       \
    if (!(condition)) {                                                             \
      if (++failures <= 20) {                                                       \
        std::fprintf(stderr, "%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
        std::fprintf(stderr, __VA_ARGS__);                                          \
        std::fprintf(stderr, "\n");                                                 \
      }                                                                             \
    }                                                                               \
  } while (0)

inline int report(const char* name) {
#if defined(SHAMISA_RACES)
  CHECK(races::count() == 0, "%zu pairs of accesses without an order", races::count());
#endif
  std::printf("%s: %d checks, %d failed\n", name, checks, failures);
  return failures != 0 || checks == 0;
}
