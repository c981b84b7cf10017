// Memory of the device under test: a GPU's, or the host's under the emulator.
#pragma once

#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__CUDACC__)
struct DeviceMemory {
  void* p = nullptr;
  DeviceMemory(size_t bytes, const void* from) {
    cudaMalloc(&p, bytes ? bytes : 1);
    if (from) cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice);
  }
  ~DeviceMemory() { cudaFree(p); }
  DeviceMemory(const DeviceMemory&) = delete;
};
inline void fetch(void* to, const DeviceMemory& from, size_t bytes) { cudaMemcpy(to, from.p, bytes, cudaMemcpyDeviceToHost); }
inline const char* failure() {
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
inline bool no_device() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0;
}
constexpr bool on_gpu = true;
#else
struct DeviceMemory {  // of its own size, so that AddressSanitizer sees the ends
  void* p;
  DeviceMemory(size_t bytes, const void* from) : p(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)) {
    if (from) std::memcpy(p, from, bytes);
  }
  ~DeviceMemory() { std::free(p); }
  DeviceMemory(const DeviceMemory&) = delete;
};
inline void fetch(void* to, const DeviceMemory& from, size_t bytes) { std::memcpy(to, from.p, bytes); }
inline const char* failure() { return nullptr; }
inline bool no_device() { return false; }
constexpr bool on_gpu = false;
#endif

// n elements of T there; `fill` is the byte that those without a value hold
template <class T>
struct DeviceArray : DeviceMemory {
  size_t n;
  explicit DeviceArray(const std::vector<T>& from) : DeviceMemory(from.size() * sizeof(T), from.data()), n(from.size()) {}
  DeviceArray(size_t count, int fill) : DeviceArray(std::vector<T>(count, filled(fill))) {}
  T* data() const { return (T*)p; }
  std::vector<T> host() const {
    std::vector<T> to(n);
    fetch(to.data(), *this, n * sizeof(T));
    return to;
  }
  static T filled(int byte) {
    T t;
    std::memset(&t, byte, sizeof(T));
    return t;
  }
};
