// Squared distances along edges. Host code, no torch, no allocation.
#pragma once

#include "product.h"

SHAMISA_BEGIN

// squared [M] for the edges [first, last)
template <class T>
inline void pair_squared(const T* z, int64_t D, const int64_t* i, const int64_t* j, int64_t first, int64_t last, T* squared) {
  for (int64_t e = first; e < last; ++e) squared[e] = i[e] == j[e] ? T(0) : squared_distance<T>(z + i[e] * D, z + j[e] * D, D);
}

SHAMISA_END
