// Resizing by Pillow's bicubic filter for 8-bit samples, rows first, then columns, 8 bits between: the same integers.
//
// Weights are computed in double precision, normalised, and rounded to 22 fractional bits; sums are 32-bit integers that
// start at one half. A block of rows is transposed, so that the pass along the rows works on 16 of them at once.
#pragma once

#include <cstdint>

namespace shamisa {
namespace bicubic {

constexpr int bits = 32 - 8 - 2;  // of a weight's fraction
constexpr int block = 16;         // rows

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
  Taps along, across;  // of the columns, of the rows
  uint8_t* out;        // [3, height, width]
  int height, width;
  int16_t* turned;   // [columns, 3, block]
  uint8_t* between;  // [rows, 3, width]
  int32_t* sum;      // [3, width]
};

}  // namespace bicubic
}  // namespace shamisa
