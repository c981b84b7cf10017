// What the kernels must know of the table in shamisa/distortions.py, from which catalogue.py makes catalogue_rows.h in the
// folder of the build. Op codes, limits and every switch over the distortions come from there.
#pragma once

#include <catalogue_rows.h>

#include "../core/math.h"

SHAMISA_BEGIN

enum Opcode : int {
#define SHAMISA_ROW(name, low, high, discrete, min_size, middle) op_##name,
  SHAMISA_DISTORTIONS(SHAMISA_ROW)
#undef SHAMISA_ROW
      opcode_count
};

struct Row {
  float low, high;  // limits of the parameter
  bool discrete;    // it is rounded
  int min_size;     // smallest height and width
};

// a switch and not an array, which device code could not index
SHAMISA_HD Row row_of(int opcode) {
  switch (opcode) {
#define SHAMISA_ROW(name, low, high, discrete, min_size, middle) \
  case op_##name: return {(float)low, (float)high, discrete != 0, min_size};
    SHAMISA_DISTORTIONS(SHAMISA_ROW)
#undef SHAMISA_ROW
  }
  return {0.f, 0.f, false, 0};
}

inline const char* name_of(int opcode) {
  switch (opcode) {
#define SHAMISA_ROW(name, low, high, discrete, min_size, middle) \
  case op_##name: return #name;
    SHAMISA_DISTORTIONS(SHAMISA_ROW)
#undef SHAMISA_ROW
  }
  return nullptr;
}

// the parameter at the middle of the five levels
inline float middle_of(int opcode) {
  switch (opcode) {
#define SHAMISA_ROW(name, low, high, discrete, min_size, middle) \
  case op_##name: return (float)middle;
    SHAMISA_DISTORTIONS(SHAMISA_ROW)
#undef SHAMISA_ROW
  }
  return 0.f;
}

// the parameter as a kernel uses it: inside the limits (NaN counts as low), rounded half to even where it is discrete
SHAMISA_HD float parameter(const Row& row, float value) {
  value = value > row.low ? value : row.low;
  value = value < row.high ? value : row.high;
  return row.discrete ? round_even(value) : value;
}

SHAMISA_END
