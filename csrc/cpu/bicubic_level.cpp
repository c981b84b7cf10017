// The resizing kernel of one x86-64 level: compiled once for each; see levels.h. Nothing here may be shared between levels,
// so no templates of the standard library, and functions of this file alone.
#include <cstddef>

#include "levels.h"

namespace shamisa {
namespace bicubic {
namespace SHAMISA_LEVEL {

static void resize(const Resize& r, const Room& room) {
  const size_t line = (size_t)3 * r.width;
  const int64_t plane = r.stride[0], row = r.stride[1], column = r.stride[2];
  // 1. along the rows
  for (int first = 0; first < r.rows; first += block) {
    const int count = r.rows - first < block ? r.rows - first : block;
    const uint8_t* lines[block];  // the last block is filled with its last row
    for (int i = 0; i < block; ++i) lines[i] = r.source + (first + (i < count ? i : count - 1)) * row;
    for (int x = 0; x < r.columns; ++x)
      for (int c = 0; c < 3; ++c) {
        int16_t* t = &room.turned[((size_t)x * 3 + c) * block];
        for (int i = 0; i < block; ++i) t[i] = lines[i][c * plane + x * column];
      }
    for (int c = 0; c < 3; ++c)
      for (int x = 0; x < r.width; ++x) {
        int32_t sum[block];
        for (int i = 0; i < block; ++i) sum[i] = 1 << (bits - 1);
        const int32_t* w = &room.along.weight[(size_t)x * room.along.most];
        const int16_t* t = &room.turned[((size_t)room.along.first[x] * 3 + c) * block];
        for (int k = 0; k < room.along.count[x]; ++k, t += 3 * block)
          for (int i = 0; i < block; ++i) sum[i] += t[i] * w[k];
        for (int i = 0; i < count; ++i) room.between[(first + i) * line + (size_t)c * r.width + x] = to_byte(sum[i]);
      }
  }
  // 2. along the columns
  int32_t* sum = room.sum;
  for (int y = 0; y < r.height; ++y) {
    for (size_t j = 0; j < line; ++j) sum[j] = 1 << (bits - 1);
    for (int k = 0; k < room.across.count[y]; ++k) {
      const uint8_t* b = &room.between[(room.across.first[y] + k) * line];
      const int32_t w = room.across.weight[(size_t)y * room.across.most + k];
      for (size_t j = 0; j < line; ++j) sum[j] += b[j] * w;
    }
    for (int c = 0; c < 3; ++c)
      for (int x = 0; x < r.width; ++x) r.out[((size_t)c * r.height + y) * r.width + x] = to_byte(sum[(size_t)c * r.width + x]);
  }
}

}  // namespace SHAMISA_LEVEL
}  // namespace bicubic

const ResizeKernels SHAMISA_PART(resize) = {bicubic::SHAMISA_LEVEL::resize};
}  // namespace shamisa
