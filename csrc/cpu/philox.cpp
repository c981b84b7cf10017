// CPU kernel of philox (schema: shamisa/ops.py; what it computes: shamisa/reference/philox.py).
#include "../core/philox.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "tensors.h"

namespace shamisa {
namespace {

// key, element, draw, extra int64 [...] -> the words, int64 [4, ...]
Tensor philox_words(Tensor key, Tensor element, Tensor draw, Tensor extra, int64_t domain) {
  std::vector<int64_t> size{4};
  for (int64_t d = 0; d < key.dim(); ++d) size.push_back(key.size(d));
  const int64_t n = key.numel();
  std::vector<Tensor> address;
  for (const Tensor* t : {&key, &element, &draw, &extra}) {
    bool good = t->scalar_type() == ScalarType::Long && t->dim() == key.dim();
    for (int64_t d = 0; good && d < key.dim(); ++d) good = t->size(d) == key.size(d);
    STD_TORCH_CHECK(good, "key, element, draw and extra must be int64 of one shape, ", shape_of(key), ", got ", shape_of(*t));
    address.push_back(torch::stable::contiguous(*t));
  }
  const Tensor out = torch::stable::empty(size, ScalarType::Long);
  const int64_t *k = read<int64_t>(address[0]), *e = read<int64_t>(address[1]), *d = read<int64_t>(address[2]),
                *x = read<int64_t>(address[3]);
  int64_t* const to = data<int64_t>(out);
  parallel(n, 64, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Words w = philox((Key)k[i], (uint32_t)e[i], (uint32_t)d[i], (uint32_t)x[i], (uint32_t)domain);
      to[i] = w.x, to[n + i] = w.y, to[2 * n + i] = w.z, to[3 * n + i] = w.w;
    }
  });
  return out;
}

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) { m.impl("philox", TORCH_BOX(&shamisa::philox_words)); }
