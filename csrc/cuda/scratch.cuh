// Scratch memory of a launcher: several arrays in one allocation.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "tensors.cuh"

namespace shamisa {

// add every array, then make once; freed in the order of the stream when it goes out of scope
class Scratch {
 public:
  // *p will be an uninitialised array of n elements, aligned to 16 bytes; null if n is 0
  template <class T>
  void add(T** p, int64_t n) {
    arrays_.push_back({(void**)p, n > 0 ? bytes_ : -1});
    bytes_ += (n * (int64_t)sizeof(T) + 15) / 16 * 16;
  }
  void make_on(const Tensor& like) {
    memory_ = make({bytes_}, ScalarType::Byte, like);
#if defined(SHAMISA_EMULATE)
    std::memset(data<unsigned char>(memory_), 0xff, (size_t)bytes_);  // NaN and large counts: what is read before it is written
#endif
    for (const Array& a : arrays_) *a.p = a.at < 0 ? nullptr : data<unsigned char>(memory_) + a.at;
  }

 private:
  struct Array {
    void** p;
    int64_t at;
  };
  std::vector<Array> arrays_;
  int64_t bytes_ = 0;
  Tensor memory_;
};

// of the device of x
inline int64_t multiprocessors([[maybe_unused]] const Tensor& x) {
#if defined(SHAMISA_EMULATE)
  return 2;
#else
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, x.get_device_index()));
  return count;
#endif
}

}  // namespace shamisa
