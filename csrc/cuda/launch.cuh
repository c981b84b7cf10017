// Launching a kernel: on a GPU, or under the emulator of tests/native (which defines SHAMISA_EMULATE and the CUDA words).
//
// blocks is a number or a dim3 of up to (2^31 - 1, 65535, 65535), none of them 0; threads is a number of whole warps. Shared
// memory is static. A kernel template stands in parentheses: SHAMISA_LAUNCH((kernel<float, 4>), ...).
#pragma once

#if defined(SHAMISA_EMULATE)
#define SHAMISA_LAUNCH(kernel, blocks, threads, stream, ...) \
  emulator::launch([&] { kernel(__VA_ARGS__); }, blocks, threads), (void)(stream)
#define SHAMISA_UNROLL  // would take longer to compile than it saves
#else
#include <cuda_runtime.h>
#define SHAMISA_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#define SHAMISA_UNROLL _Pragma("unroll")
#endif
