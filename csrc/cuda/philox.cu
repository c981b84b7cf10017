// philox for CUDA tensors: the engine gives every view a key of its own on the device. One launch, nothing waits.
#include "../core/philox.h"

#include "../host/philox.h"
#include "tensors.cuh"

namespace shamisa {
namespace {

constexpr int philox_threads = 256;

// grid: ceil(n / philox_threads). key, element, draw, extra [n] -> out [4, n]; a thread for each address
__global__ void __launch_bounds__(philox_threads)
    philox_addresses(const int64_t* key, const int64_t* element, const int64_t* draw, const int64_t* extra, uint32_t domain,
                     int64_t n, int64_t* out) {
  const int64_t i = (int64_t)blockIdx.x * philox_threads + threadIdx.x;
  if (i >= n) return;
  const Words w = philox((Key)key[i], (uint32_t)element[i], (uint32_t)draw[i], (uint32_t)extra[i], domain);
  out[i] = w.x, out[n + i] = w.y, out[2 * n + i] = w.z, out[3 * n + i] = w.w;
}

// key, element, draw, extra int64 [...] -> the words, int64 [4, ...]
Tensor philox_words(Tensor key, Tensor element, Tensor draw, Tensor extra, int64_t domain) {
  check_device(key, {&element, &draw, &extra});
  const Addresses address(key, element, draw, extra);
  const OnDevice device(key);
  const Tensor out = torch::stable::empty(address.size, ScalarType::Long, std::nullopt, key.device());
  SHAMISA_RUN(philox_addresses, blocks_for(address.n, philox_threads), philox_threads, device.stream(), address.at(0),
              address.at(1), address.at(2), address.at(3), (uint32_t)domain, address.n, data<int64_t>(out));
  return out;
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) { m.impl("philox", TORCH_BOX(&shamisa::philox_words)); }
