// Kernels of resize_bicubic: weights, then the pass along the rows, then the pass along the columns.
#pragma once

#include "../resize/bicubic.h"
#include "launch.cuh"

namespace shamisa {
namespace bicubic {

struct ResizeLaunch {
  static constexpr int threads = 128;
};

// [out], [out], [out, most]; a thread for each output sample
__global__ void resize_weights(Line line, int* first, int* count, int32_t* weight) {
  const int o = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (o < line.out) weigh(line, o, &first[o], &count[o], &weight[(int64_t)o * line.most]);
}

// source -> between [rows, 3, width]; blockIdx.x is the row
__global__ void resize_along(Resize r, Taps taps, uint8_t* SHAMISA_RESTRICT between) {
  const int x = (int)(blockIdx.y * blockDim.x + threadIdx.x);
  if (x >= r.width) return;
  const uint8_t* source = r.source + (int64_t)blockIdx.x * r.stride[1] + taps.first[x] * r.stride[2];
  const int32_t* weight = taps.weight + (int64_t)x * taps.most;
  const int count = taps.count[x];
  int32_t sum[3] = {1 << (bits - 1), 1 << (bits - 1), 1 << (bits - 1)};
  for (int k = 0; k < count; ++k, source += r.stride[2]) SHAMISA_UNROLL
  for (int c = 0; c < 3; ++c) sum[c] += source[c * r.stride[0]] * weight[k];
  SHAMISA_UNROLL
  for (int c = 0; c < 3; ++c) between[((int64_t)blockIdx.x * 3 + c) * r.width + x] = to_byte(sum[c]);
}

// between [rows, 3, width] -> out [3, height, width]; blockIdx.x is the row of out
__global__ void resize_across(Resize r, Taps taps, const uint8_t* SHAMISA_RESTRICT between) {
  const int x = (int)(blockIdx.y * blockDim.x + threadIdx.x), y = (int)blockIdx.x;
  if (x >= r.width) return;
  const int64_t row = (int64_t)3 * r.width;
  const uint8_t* source = between + taps.first[y] * row + x;
  const int32_t* weight = taps.weight + (int64_t)y * taps.most;
  const int count = taps.count[y];
  int32_t sum[3] = {1 << (bits - 1), 1 << (bits - 1), 1 << (bits - 1)};
  for (int k = 0; k < count; ++k, source += row) SHAMISA_UNROLL
  for (int c = 0; c < 3; ++c) sum[c] += source[(int64_t)c * r.width] * weight[k];
  SHAMISA_UNROLL
  for (int c = 0; c < 3; ++c) r.out[((int64_t)c * r.height + y) * r.width + x] = to_byte(sum[c]);
}

}  // namespace bicubic
}  // namespace shamisa
