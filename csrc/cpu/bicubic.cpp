// CPU kernel of resize_bicubic; see csrc/host/resize.h.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <vector>

#include "../host/resize.h"
#include "levels.h"

namespace shamisa {
namespace bicubic {

namespace {

// Taps with their memory.
class Weights {
 public:
  explicit Weights(const Line& line)
      : most_(line.most), first_(line.out), count_(line.out), weight_((size_t)line.out * line.most) {
    for (int o = 0; o < line.out; ++o) weigh(line, o, &first_[o], &count_[o], &weight_[(size_t)o * most_]);
  }
  Taps taps() const { return {most_, first_.data(), count_.data(), weight_.data()}; }

 private:
  int most_;
  std::vector<int> first_, count_;
  std::vector<int32_t> weight_;
};

Tensor resize_bicubic(Tensor photo, double top, double bottom, double left, double right, int64_t height, int64_t width) {
  Resize r = resize_of(photo, top, bottom, left, right, height, width);
  const Tensor out = torch::stable::empty({3, height, width}, ScalarType::Byte);
  r.out = data<uint8_t>(out);
  const Weights along(r.row), across(r.column);
  const std::unique_ptr<int16_t[]> turned(new int16_t[(size_t)r.columns * 3 * block]);
  const std::unique_ptr<uint8_t[]> between(new uint8_t[(size_t)r.rows * 3 * r.width]);
  const std::unique_ptr<int32_t[]> sum(new int32_t[(size_t)3 * r.width]);
  kernels().resize.bicubic(r, {along.taps(), across.taps(), turned.get(), between.get(), sum.get()});
  return out;
}

}  // namespace
}  // namespace bicubic
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) { m.impl("resize_bicubic", TORCH_BOX(&shamisa::bicubic::resize_bicubic)); }
