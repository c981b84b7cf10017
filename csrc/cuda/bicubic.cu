// resize_bicubic for CUDA tensors: the bits of the CPU kernel. Nothing waits for the device.
#include "../host/resize.h"

#include "bicubic.cuh"
#include "scratch.cuh"

namespace shamisa {
namespace bicubic {
namespace {

struct Weights {
  int* first;
  int* count;
  int32_t* weight;

  void add_to(Scratch& scratch, const Line& line) {
    scratch.add(&first, line.out);
    scratch.add(&count, line.out);
    scratch.add(&weight, (int64_t)line.out * line.most);
  }
  Taps fill(const Line& line, cudaStream_t stream) const {
    const int64_t blocks = blocks_for(line.out, ResizeLaunch::threads);
    SHAMISA_RUN(resize_weights, blocks, ResizeLaunch::threads, stream, line, first, count, weight);
    return {line.most, first, count, weight};
  }
};

Tensor resize_bicubic(Tensor photo, double top, double bottom, double left, double right, int64_t height, int64_t width) {
  Resize r = resize_of(photo, top, bottom, left, right, height, width);
  const OnDevice device(photo);
  const Tensor out = make({3, height, width}, ScalarType::Byte, photo);
  r.out = data<uint8_t>(out);
  Scratch scratch;
  Weights along = {}, across = {};
  uint8_t* between = nullptr;
  along.add_to(scratch, r.row);
  across.add_to(scratch, r.column);
  scratch.add(&between, (int64_t)r.rows * 3 * r.width);
  scratch.make_on(photo);
  const cudaStream_t stream = device.stream();
  const Taps along_taps = along.fill(r.row, stream), across_taps = across.fill(r.column, stream);
  const unsigned columns = (unsigned)blocks_for(width, ResizeLaunch::threads);
  SHAMISA_RUN(resize_along, dim3((unsigned)r.rows, columns), ResizeLaunch::threads, stream, r, along_taps, between);
  SHAMISA_RUN(resize_across, dim3((unsigned)r.height, columns), ResizeLaunch::threads, stream, r, across_taps, between);
  return out;
}

}  // namespace
}  // namespace bicubic
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) { m.impl("resize_bicubic", TORCH_BOX(&shamisa::bicubic::resize_bicubic)); }
