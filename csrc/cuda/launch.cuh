// Launching a kernel: on a GPU, or under the emulator of tests/native (which defines SHAMISA_EMULATE and the CUDA words).
#pragma once

#if defined(SHAMISA_EMULATE)
#define SHAMISA_LAUNCH(kernel, blocks, threads, stream, ...) emulator::launch([&] { kernel(__VA_ARGS__); }, blocks, threads)
#else
#include <cuda_runtime.h>
#define SHAMISA_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif
