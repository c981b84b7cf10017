// The order and the range of the scores of transport, for every device.
#pragma once

#include "../core/math.h"
#include "constants.h"

SHAMISA_BEGIN

// A number that ascends where scores descend; -0 ties with 0. Of NaN no order is asked.
SHAMISA_HD uint32_t key_of(float score) {
  const uint32_t bits = bits_of_float(score + 0.f);
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;  // negative floats descend as they are, the others flipped, before them
}

// what scores are divided by, less the lowest
SHAMISA_HD double span_of(double low, double high) { return high - low < flat_score ? flat_score : high - low; }

SHAMISA_END
