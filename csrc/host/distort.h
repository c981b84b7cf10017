// Tensors -> Batch, with the checks that need no contents; for the CPU and the CUDA op. (Friendlier errors come before, from
// shamisa/reference/distort.py:check_chain; these keep a direct call of torch.ops.shamisa.distort from reading wild memory.)
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../distort/batch.h"
#include "../distort/catalogue.h"
#include "tensors.h"

namespace shamisa {

inline DType dtype_of(torch::headeronly::ScalarType type, const char* name) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Byte: return DType::u8;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    default: STD_TORCH_CHECK(false, name, " must be uint8, float16, bfloat16, float32 or float64");
  }
}

// holds what the Batch points to
class BatchTensors {
  using Tensor = torch::stable::Tensor;
  using ScalarType = torch::headeronly::ScalarType;
  using Numbers = std::optional<std::vector<double>>;

 public:
  BatchTensors(const Tensor& source, const Tensor& index, const Tensor& opcode, const Tensor& value, const Tensor& key,
               const Numbers& mean, const Numbers& std, ScalarType dtype, bool channels_last)
      : source_(source) {
    STD_TORCH_CHECK(source.dim() == 4 && source.size(1) == 3 && source.size(2) >= 1 && source.size(3) >= 1,
                    "source must be [S, 3, H, W] with H, W >= 1, got ", shape_of(source));
    STD_TORCH_CHECK(index.dim() == 1, "index must be [N], got ", shape_of(index));
    batch_.S = source.size(0), batch_.N = index.size(0);
    STD_TORCH_CHECK(opcode.dim() == 2 && opcode.size(0) == batch_.N, "opcode must be [N, D] = [", batch_.N, ", D], got ",
                    shape_of(opcode));
    for (const Tensor* t : {&value, &key})
      STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == batch_.N && t->size(1) == opcode.size(1), t == &value ? "value" : "key",
                      " must be [N, D] = ", shape_of(opcode), ", got ", shape_of(*t));
    const int64_t H = source.size(2), W = source.size(3);
    STD_TORCH_CHECK(H <= longest_side && W <= longest_side && H * W <= most_pixels,
                    "images must have sides of at most 2^15 and at most 2^26 pixels, got ", H, " x ", W);
    STD_TORCH_CHECK(opcode.size(1) <= 1024, "opcode must have at most 1024 stages, got ", shape_of(opcode));
    batch_.H = (int)H, batch_.W = (int)W, batch_.D = (int)opcode.size(1);

    batch_.source_type = dtype_of(source.scalar_type(), "source");
    for (int d = 0; d < 4; ++d) batch_.source_stride[d] = source.stride(d);
    batch_.source = source.data_ptr();
    batch_.index = (const int64_t*)hold(index, ScalarType::Long, "index must be int64");
    batch_.opcode = (const int64_t*)hold(opcode, ScalarType::Long, "opcode must be int64");
    batch_.value = (const float*)hold(value, ScalarType::Float, "value must be float32");
    batch_.key = (const int64_t*)hold(key, ScalarType::Long, "key must be int64");

    batch_.out_type = dtype_of(dtype, "dtype");
    batch_.normalize = mean.has_value();
    STD_TORCH_CHECK(mean.has_value() == std.has_value(), "mean and std must be given together");
    STD_TORCH_CHECK(!mean || (mean->size() == 3 && std->size() == 3), "mean and std must be 3 numbers each");
    STD_TORCH_CHECK(!mean || batch_.out_type != DType::u8, "dtype must be floating, or uint8 without mean and std");
    for (int c = 0; c < 3; ++c) batch_.mean[c] = mean ? (float)(*mean)[c] : 0.f, batch_.std[c] = std ? (float)(*std)[c] : 1.f;
    batch_.channels_last = channels_last;
    using torch::headeronly::MemoryFormat;
    out_ = torch::stable::empty({batch_.N, 3, H, W}, dtype, std::nullopt, source.device(), std::nullopt,
                                channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    batch_.out = out_.data_ptr();
  }
  const Batch& batch() const { return batch_; }
  const Tensor& out() const { return out_; }

 private:
  const void* hold(const Tensor& t, ScalarType type, const char* expected) {
    STD_TORCH_CHECK(t.scalar_type() == type, expected);
    STD_TORCH_CHECK(t.get_device_index() == source_.get_device_index() && t.is_cuda() == source_.is_cuda(),
                    "index, opcode, value and key must be on the device of source");
    held_.push_back(torch::stable::contiguous(t));
    return held_.back().data_ptr();
  }
  Tensor source_, out_;
  std::vector<Tensor> held_;
  Batch batch_{};
};

// Contents, of a batch on the CPU: sets present[code] for the op codes that occur.
inline void check_contents(const Batch& batch, bool* present) {
  for (int code = 0; code < opcode_count; ++code) present[code] = false;
  for (int64_t n = 0; n < batch.N; ++n)
    STD_TORCH_CHECK(batch.index[n] >= 0 && batch.index[n] < batch.S, "index must lie in 0..", batch.S - 1, ", got ",
                    batch.index[n]);
  for (int64_t i = 0; i < batch.N * batch.D; ++i) {
    const int64_t code = batch.opcode[i];
    STD_TORCH_CHECK(code >= -1 && code < opcode_count, "opcode must lie in -1..", opcode_count - 1, ", got ", code);
    if (code >= 0) present[code] = true;
  }
  for (int code = 0; code < opcode_count; ++code) {
    if (!present[code]) continue;
    const Row row = row_of(code);
    STD_TORCH_CHECK(batch.H >= row.min_size && batch.W >= row.min_size, "images for ", name_of(code), " must be at least ",
                    row.min_size, " x ", row.min_size, " pixels, got ", batch.H, " x ", batch.W);
  }
}

}  // namespace shamisa
