// Arguments of the distort op (see shamisa/ops.py): out[n] = chain n of source[index[n]].
//
// Plain data outside the namespaces of the x86-64 levels: it travels between code of different levels.
#pragma once

#include <stdint.h>

namespace shamisa {

enum class DType : int { u8, f16, bf16, f32, f64 };

// The largest image: every int of the kernels (offsets into three planes, into planes padded for a filter or a codec's blocks)
// then stays below 2^31.
constexpr int64_t longest_side = 1 << 15, most_pixels = 1 << 26;

// pointers in the team's memory
struct Batch {
  const void* source;  // [S, 3, H, W] of source_type, any strides
  DType source_type;
  int64_t source_stride[4];  // in elements
  const int64_t* index;      // [N], in 0..S-1
  const int64_t* opcode;     // [N, D], -1: no stage
  const float* value;        // [N, D]
  const int64_t* key;        // [N, D]
  void* out;                 // [N, 3, H, W] of out_type, contiguous or channels_last
  DType out_type;
  bool channels_last, normalize;
  float mean[3], std[3];  // used if normalize
  int64_t S, N;
  int D, H, W;
};

}  // namespace shamisa
