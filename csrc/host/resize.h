// The arguments of resize_bicubic on every device (schema: shamisa/ops.py; what it computes: shamisa/reference/resize.py).
#pragma once

#include "../resize/bicubic.h"
#include "tensors.h"

namespace shamisa {
namespace bicubic {

// checked; the caller brings `out`
inline Resize resize_of(const Tensor& photo, double top, double bottom, double left, double right, int64_t height,
                        int64_t width) {
  const bool shape = photo.dim() == 3 && photo.size(0) == 3 && photo.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(shape, "photo must be uint8 [3, H, W], got another type or shape");
  const int64_t rows = photo.size(1), columns = photo.size(2);
  STD_TORCH_CHECK(rows > 0 && columns > 0 && rows < (1 << 30) && columns < (1 << 30), "photo must not be empty");
  STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 20) && width < (1 << 20), "height and width must lie in 1..2^20-1");
  const bool inside = 0 <= top && top < bottom && (float)bottom <= rows && 0 <= left && left < right && (float)right <= columns;
  STD_TORCH_CHECK(inside, "the rectangle must lie in the photo");
  Resize r = {};
  r.source = read<uint8_t>(photo);
  for (int d = 0; d < 3; ++d) r.stride[d] = photo.stride(d);
  r.rows = (int)rows, r.columns = (int)columns, r.height = (int)height, r.width = (int)width;
  r.row = Line(r.columns, (float)left, (float)right, r.width);
  r.column = Line(r.rows, (float)top, (float)bottom, r.height);
  return r;
}

}  // namespace bicubic
}  // namespace shamisa
