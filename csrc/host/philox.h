// The arguments of the philox op on every device: int64 tensors of one shape, contiguous.
#pragma once

#include <vector>

#include "tensors.h"

namespace shamisa {

struct Addresses {
  std::vector<int64_t> size{4};  // of the words
  std::vector<Tensor> part;      // key, element, draw, extra, [n] each
  int64_t n;

  Addresses(const Tensor& key, const Tensor& element, const Tensor& draw, const Tensor& extra) : n(key.numel()) {
    for (int64_t d = 0; d < key.dim(); ++d) size.push_back(key.size(d));
    for (const Tensor* t : {&key, &element, &draw, &extra}) {
      bool good = t->scalar_type() == ScalarType::Long && t->dim() == key.dim();
      for (int64_t d = 0; good && d < key.dim(); ++d) good = t->size(d) == key.size(d);
      STD_TORCH_CHECK(good, "key, element, draw and extra must be int64 of one shape, ", shape_of(key), ", got ", shape_of(*t));
      part.push_back(torch::stable::contiguous(*t));
    }
  }
  const int64_t* at(int i) const { return read<int64_t>(part[i]); }
};

}  // namespace shamisa
