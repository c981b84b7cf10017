// The kernels of the level in use, by type.
#pragma once

#include "../levels.h"
#include "../tensors.h"

namespace shamisa {

template <class T>
const TypedRelationKernels<T>& typed() {
  if constexpr (sizeof(T) == 8)
    return kernels().relation.f64;
  else
    return kernels().relation.f32;
}

}  // namespace shamisa
