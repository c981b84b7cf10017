// Resizing by Pillow's bicubic filter for 8-bit samples, rows first, then columns, 8 bits between: the same integers.
//
// Weights are computed in double precision, normalised, and rounded to 22 fractional bits; sums are 32-bit integers that
// start at one half. The CPU transposes a block of rows, so that the pass along the rows works on 16 of them at once.
#pragma once

#include <cstdint>

#include "../core/host_device.h"

namespace shamisa {
namespace bicubic {

constexpr int bits = 32 - 8 - 2;  // of a weight's fraction
constexpr int block = 16;         // rows

// One direction: low..high of a line of `side` samples becomes `out` samples.
struct Line {
  int side, out;
  int most;  // source samples that make one output sample, at most
  double low, scale, support, narrow;

  Line() = default;
  Line(int side_, float low_, float high_, int out_) : side(side_), out(out_), low(low_) {
    scale = (double)(high_ - low_) / out;
    const double wide = scale < 1 ? 1 : scale;
    support = 2 * wide, narrow = 1 / wide;
    const int whole = (int)support;
    most = 2 * (whole + (whole < support)) + 1;
  }
};

// For each output sample of one direction the source samples it is made of.
struct Taps {
  int most;               // per output sample
  const int* first;       // [out]
  const int* count;       // [out]
  const int32_t* weight;  // [out, most]
};

struct Resize {
  const uint8_t* source;  // [3, rows, columns]
  int64_t stride[3];      // of it
  int rows, columns;
  Line row, column;  // what happens to each of them
  uint8_t* out;      // [3, height, width]
  int height, width;
};

// What the CPU works with.
struct Room {
  Taps along, across;  // of the rows, of the columns
  int16_t* turned;     // [columns, 3, block]
  uint8_t* between;    // [rows, 3, width]
  int32_t* sum;        // [3, width]
};

// static: the levels of the CPU kernel must not share functions (csrc/cpu/levels.h)
static SHAMISA_HD double filter(double x) {
  x = x < 0 ? -x : x;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// first, count and weight [most] of output sample o
static SHAMISA_HD void weigh(const Line& line, int o, int* first, int* count, int32_t* weight) {
  const double centre = line.low + (o + 0.5) * line.scale;
  int begin = (int)(centre - line.support + 0.5), end = (int)(centre + line.support + 0.5);
  begin = begin < 0 ? 0 : begin;
  end = end > line.side ? line.side : end;
  double sum = 0;
  for (int i = begin; i < end; ++i) sum += filter((i - centre + 0.5) * line.narrow);
  for (int i = begin; i < end; ++i) {
    const double exact = filter((i - centre + 0.5) * line.narrow);
    const double w = (sum != 0 ? exact / sum : exact) * (1 << bits);
    weight[i - begin] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
  }
  *first = begin;
  *count = end - begin;
}

static SHAMISA_HD uint8_t to_byte(int32_t sum) {
  sum >>= bits;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

}  // namespace bicubic
}  // namespace shamisa
