// Whether floating images are in 0..1. Those in 0..255 would be clamped to white without a word.
#pragma once

#include <sstream>
#include <string>

#include "../core/image.h"
#include "../distort/batch.h"

namespace shamisa {

// Sample p of 16 of an image [3, H, W]: the centres of a grid of 4 x 4, the channels in turn. The numbers here are those of
// shamisa/reference/ranges.py.
constexpr int range_places = 16, range_most_outside = 3;
constexpr float range_low = -1.f, range_high = 2.f, range_end = 65535.f;

struct Place {
  int channel, row, column;
};
inline Place range_place(int p, int H, int W) { return {p % 3, (2 * (p / 4) + 1) * H / 8, (2 * (p % 4) + 1) * W / 8}; }

inline float read_sample(DType type, const void* data, int64_t at) {
  switch (type) {
    case DType::u8: return unit_of_byte(((const uint8_t*)data)[at]);
    case DType::f16: return float_of_half(((const uint16_t*)data)[at]);
    case DType::bf16: return float_of_bfloat(((const uint16_t*)data)[at]);
    case DType::f32: return ((const float*)data)[at];
    default: return (float)((const double*)data)[at];
  }
}

// Empty, or what is wrong. Looks at 16 samples of each image, so that it costs next to nothing; what is clamped on purpose (an
// overshoot of a filter, a few wild samples) passes.
inline std::string fault_of_range(const Batch& batch) {
  if (batch.source_type == DType::u8) return "";
  for (int64_t s = 0; s < batch.S; ++s) {
    float worst = 0.f;
    int outside = 0;
    for (int p = 0; p < range_places; ++p) {
      const Place place = range_place(p, batch.H, batch.W);
      const float x = read_sample(batch.source_type, batch.source,
                                  s * batch.source_stride[0] + place.channel * batch.source_stride[1] +
                                      place.row * batch.source_stride[2] + place.column * batch.source_stride[3]);
      const bool wrong = (x > range_high && x <= range_end) || (x < range_low && x >= -range_end);
      outside += wrong ? 1 : 0;
      worst = wrong ? x : worst;
    }
    if (outside > range_most_outside) {
      std::ostringstream text;
      text << "floating images must lie in 0..1, got " << worst
           << " among others: divide what is in 0..255 by 255, or pass uint8; undo a normalisation";
      return text.str();
    }
  }
  return "";
}

}  // namespace shamisa
