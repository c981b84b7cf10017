// CPU kernel of philox (schema: shamisa/ops.py; what it computes: shamisa/reference/philox.py).
#include "../core/philox.h"

#include <torch/csrc/stable/library.h>

#include "../host/philox.h"
#include "tensors.h"

namespace shamisa {
namespace {

// key, element, draw, extra int64 [...] -> the words, int64 [4, ...]
Tensor philox_words(Tensor key, Tensor element, Tensor draw, Tensor extra, int64_t domain) {
  const Addresses address(key, element, draw, extra);
  const Tensor out = torch::stable::empty(address.size, ScalarType::Long);
  const int64_t *k = address.at(0), *e = address.at(1), *d = address.at(2), *x = address.at(3), n = address.n;
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
