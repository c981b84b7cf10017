// The kernels of one x86-64 level, and the choice among those that were built. *_level.cpp is compiled once per level with
// SHAMISA_LEVEL = v2, v3, v4 (elsewhere once, as any) and defines kernels_LEVEL; everything else is compiled once, for any CPU.
#pragma once

#include "../distort/batch.h"

namespace shamisa {

struct Kernels {
  const char* level;
  // bytes of memory that one team needs for H x W images when the op codes with present[code] may occur
  int64_t (*distort_bytes)(int H, int W, const bool* present);
  // image n of the batch; memory of that size, aligned to 64
  void (*distort)(const Batch& batch, int64_t n, unsigned char* memory);
  // one distortion of image [3, H, W], in place; value is clamped as in a chain
  void (*apply)(int opcode, float* image, int H, int W, float value, uint64_t key, unsigned char* memory);
  // four random words
  void (*philox)(uint64_t key, const uint32_t* counter, uint32_t* words);
};

const Kernels* const* all_kernels();  // those built, lowest level first, nullptr at the end
bool runs_here(const Kernels&);       // whether this CPU has the instructions
// The highest level that runs here, or the one that SHAMISA_ISA names; throws std::runtime_error when that cannot be had.
const Kernels& kernels();

}  // namespace shamisa
