// The kernels of one x86-64 level, and the choice among those that were built. *_level.cpp is compiled once per level with
// SHAMISA_LEVEL = v2, v3, v4 (elsewhere once, as any) and defines its part of them; everything else is compiled once, for any
// CPU.
#pragma once

#include "../distort/batch.h"
#include "../resize/bicubic.h"
#include "relation/kernels.h"

namespace shamisa {

struct DistortKernels {
  // bytes of memory that one team needs for H x W images when the op codes with present[code] may occur
  int64_t (*bytes)(int H, int W, const bool* present);
  // image n of the batch; memory of that size, aligned to 64
  void (*image)(const Batch& batch, int64_t n, unsigned char* memory);
  // one distortion of image [3, H, W], in place; value is clamped as in a chain
  void (*apply)(int opcode, float* image, int H, int W, float value, uint64_t key, unsigned char* memory);
  // four random words
  void (*philox)(uint64_t key, const uint32_t* counter, uint32_t* words);
};

struct ResizeKernels {
  void (*bicubic)(const bicubic::Resize& r, const bicubic::Room& room);
};

struct Kernels {
  const char* level;
  const DistortKernels& distort;
  const RelationKernels& relation;
  const ResizeKernels& resize;
};

const Kernels* const* all_kernels();  // those built, lowest level first, nullptr at the end
bool runs_here(const Kernels&);       // whether this CPU has the instructions
// The highest level that runs here, or the one that SHAMISA_ISA names; throws std::runtime_error when that cannot be had.
const Kernels& kernels();

// The parts of the levels; SHAMISA_PART(distort) is distort_v2 where v2 is compiled.
#define SHAMISA_PASTE_(a, b) a##_##b
#define SHAMISA_PASTE(a, b) SHAMISA_PASTE_(a, b)
#define SHAMISA_PART(name) SHAMISA_PASTE(name, SHAMISA_LEVEL)
#if defined(SHAMISA_X86)
extern const DistortKernels distort_v2, distort_v3, distort_v4;
extern const RelationKernels relation_v2, relation_v3, relation_v4;
extern const ResizeKernels resize_v2, resize_v3, resize_v4;
#else
extern const DistortKernels distort_any;
extern const RelationKernels relation_any;
extern const ResizeKernels resize_any;
#endif

}  // namespace shamisa
