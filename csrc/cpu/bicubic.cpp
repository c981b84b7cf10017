// CPU kernel of resize_bicubic (schema: shamisa/ops.py; what it computes: shamisa/reference/resize.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <memory>
#include <vector>

#include "../resize/bicubic.h"
#include "levels.h"

namespace shamisa {
namespace bicubic {

#if defined(SHAMISA_X86)
namespace v2 {
void resize(const Resize& r);
}
namespace v3 {
void resize(const Resize& r);
}
namespace v4 {
void resize(const Resize& r);
}
#else
namespace any {
void resize(const Resize& r);
}
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

double filter(double x) {
  x = x < 0 ? -x : x;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// Taps with their memory.
class Weights {
 public:
  Weights(int side, float low, float high, int out) : first_(out), count_(out) {
    const double scale = (double)(high - low) / out, wide = scale < 1 ? 1 : scale, support = 2 * wide, narrow = 1 / wide;
    most_ = (int)std::ceil(support) * 2 + 1;
    weight_.resize((size_t)out * most_);
    std::vector<double> exact(most_);
    for (int o = 0; o < out; ++o) {
      const double centre = low + (o + 0.5) * scale;
      int begin = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
      begin = begin < 0 ? 0 : begin;
      end = end > side ? side : end;
      double sum = 0;
      for (int i = begin; i < end; ++i) sum += exact[i - begin] = filter((i - centre + 0.5) * narrow);
      for (int i = begin; i < end; ++i) {
        const double w = (sum != 0 ? exact[i - begin] / sum : exact[i - begin]) * (1 << bits);
        weight_[(size_t)o * most_ + i - begin] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
      }
      first_[o] = begin;
      count_[o] = end - begin;
    }
  }
  Taps taps() const { return {most_, first_.data(), count_.data(), weight_.data()}; }

 private:
  int most_;
  std::vector<int> first_, count_;
  std::vector<int32_t> weight_;
};

void at_level(const Resize& r) {
#if defined(SHAMISA_X86)
  static const char name = shamisa::kernels().level[1];
  return name == '4' ? v4::resize(r) : name == '3' ? v3::resize(r) : v2::resize(r);
#else
  return any::resize(r);
#endif
}

Tensor resize_bicubic(Tensor photo, double top, double bottom, double left, double right, int64_t height, int64_t width) {
  const bool shape = photo.dim() == 3 && photo.size(0) == 3 && photo.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(shape, "photo must be uint8 [3, H, W], got another type or shape");
  const int64_t rows = photo.size(1), columns = photo.size(2);
  STD_TORCH_CHECK(rows > 0 && columns > 0 && rows < (1 << 30) && columns < (1 << 30), "photo must not be empty");
  STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 20) && width < (1 << 20), "height and width must lie in 1..2^20-1");
  const bool inside = 0 <= top && top < bottom && (float)bottom <= rows && 0 <= left && left < right && (float)right <= columns;
  STD_TORCH_CHECK(inside, "the rectangle must lie in the photo");
  Tensor out = torch::stable::empty({3, height, width}, ScalarType::Byte);
  const Weights along((int)columns, (float)left, (float)right, (int)width);
  const Weights across((int)rows, (float)top, (float)bottom, (int)height);
  const std::unique_ptr<int16_t[]> turned(new int16_t[(size_t)columns * 3 * block]);
  const std::unique_ptr<uint8_t[]> between(new uint8_t[(size_t)rows * 3 * width]);
  const std::unique_ptr<int32_t[]> sum(new int32_t[(size_t)3 * width]);
  Resize r = {};
  r.source = static_cast<const uint8_t*>(photo.const_data_ptr());
  for (int d = 0; d < 3; ++d) r.stride[d] = photo.stride(d);
  r.rows = (int)rows, r.columns = (int)columns, r.height = (int)height, r.width = (int)width;
  r.along = along.taps(), r.across = across.taps();
  r.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  r.turned = turned.get(), r.between = between.get(), r.sum = sum.get();
  at_level(r);
  return out;
}

}  // namespace
}  // namespace bicubic
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) { m.impl("resize_bicubic", TORCH_BOX(&shamisa::bicubic::resize_bicubic)); }
