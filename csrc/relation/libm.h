// Functions of the mathematical library, which the host and the device call by different names. Their last bits depend on the
// device.
#pragma once

#include "../core/host_device.h"

SHAMISA_BEGIN

SHAMISA_HD double exponential(double x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  return __builtin_exp(x);
#endif
}
SHAMISA_HD float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  return __builtin_expf(x);
#endif
}
SHAMISA_HD double logarithm(double x) {
#if defined(__CUDA_ARCH__)
  return ::log(x);
#else
  return __builtin_log(x);
#endif
}

SHAMISA_END
