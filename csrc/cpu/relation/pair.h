// Squared distances along edges. Host code, no torch, no allocation.
#pragma once

#include "product.h"

SHAMISA_BEGIN

// squared [M] for the edges [first, last); edges of one row i in a row go in twos
template <class T>
inline void pair_squared(const T* z, int64_t D, const int64_t* i, const int64_t* j, int64_t first, int64_t last, T* squared) {
  for (int64_t e = first; e < last; ++e) {
    if (i[e] == j[e]) {
      squared[e] = T(0);
    } else if (e + 1 < last && i[e + 1] == i[e] && i[e] != j[e + 1]) {
      squared_distances<T>(z + i[e] * D, z + j[e] * D, z + j[e + 1] * D, D, squared + e);
      ++e;
    } else {
      squared[e] = squared_distance<T>(z + i[e] * D, z + j[e] * D, D);
    }
  }
}

SHAMISA_END
