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

// In floating images of T, at[p] from the first sample of each: the last wrong sample of the first image with too many, or 0.
template <class T, class Read>
inline float worst_sample(const T* image, int64_t images, int64_t stride, const int64_t (&at)[range_places], Read read) {
  for (int64_t s = 0; s < images; ++s, image += stride) {
    float worst = 0.f;
    int outside = 0;
    for (int64_t place : at) {
      const float x = read(image[place]);
      const bool wrong = (x > range_high && x <= range_end) || (x < range_low && x >= -range_end);
      outside += wrong ? 1 : 0;
      worst = wrong ? x : worst;
    }
    if (outside > range_most_outside) return worst;
  }
  return 0.f;
}

// Empty, or what is wrong. Looks at 16 samples of each image, so that it costs next to nothing; what is clamped on purpose (an
// overshoot of a filter, a few wild samples) passes.
inline std::string fault_of_range(const Batch& batch) {
  if (batch.source_type == DType::u8) return "";
  const auto& stride = batch.source_stride;
  int64_t at[range_places];
  for (int p = 0; p < range_places; ++p) {
    const Place place = range_place(p, batch.H, batch.W);
    at[p] = place.channel * stride[1] + place.row * stride[2] + place.column * stride[3];
  }
  const auto look = [&](auto* image, auto read) { return worst_sample(image, batch.S, stride[0], at, read); };
  float worst = 0.f;
  switch (batch.source_type) {
    case DType::f16: worst = look((const uint16_t*)batch.source, float_of_half); break;
    case DType::bf16: worst = look((const uint16_t*)batch.source, float_of_bfloat); break;
    case DType::f32: worst = look((const float*)batch.source, [](float x) { return x; }); break;
    default: worst = look((const double*)batch.source, [](double x) { return (float)x; });
  }
  if (worst == 0.f) return "";
  std::ostringstream text;
  text << "floating images must lie in 0..1, got " << worst
       << " among others: divide what is in 0..255 by 255, or pass uint8; undo a normalisation";
  return text.str();
}

}  // namespace shamisa
