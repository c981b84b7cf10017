// The kernels without torch, as plain C functions for shamisa/_host.py (ctypes: one file for every Python), and how this
// installation was built. Each function returns nullptr, or what is wrong, valid until the next call of the thread.
#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "../cpu/levels.h"
#include "../distort/catalogue.h"
#include "range.h"

#define SHAMISA_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using shamisa::Kernels;
using shamisa::opcode_count;
using std::to_string;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

template <class F>
const char* guarded(F f) {
  static thread_local std::string what;
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    what = error.what();
    return what.c_str();
  }
}

const Kernels& at_level(const std::string& level) {
  if (level.empty()) return shamisa::kernels();
  std::string names;
  for (const Kernels* const* k = shamisa::all_kernels(); *k; ++k) {
    if (!shamisa::runs_here(**k)) continue;
    if (level == (*k)->level) return **k;
    names += (names.empty() ? "" : ", ") + std::string((*k)->level);
  }
  refuse("level must be one of " + names + " on this machine, got " + level);
}

void check_size(int64_t height, int64_t width) {
  if (height < 1 || width < 1 || height > shamisa::longest_side || width > shamisa::longest_side ||
      height * width > shamisa::most_pixels)
    refuse("images must have sides of 1 to 2^15 and at most 2^26 pixels, got " + to_string(height) + " x " + to_string(width));
}

void check_opcode(int64_t code, const char* name) {
  if (code < 0 || code >= opcode_count)
    refuse(name + (" must lie in 0.." + to_string(opcode_count - 1)) + ", got " + to_string(code));
}

}  // namespace

struct CatalogueRow {
  const char* name;
  float low, high;
  int32_t discrete, min_size;
};

SHAMISA_EXPORT int32_t shamisa_distortions() { return opcode_count; }

SHAMISA_EXPORT const char* shamisa_catalogue_row(int64_t opcode, CatalogueRow* to) {
  return guarded([&] {
    check_opcode(opcode, "opcode");
    const shamisa::Row row = shamisa::row_of((int)opcode);
    *to = {shamisa::name_of((int)opcode), row.low, row.high, row.discrete, row.min_size};
  });
}

// names and values in turn, nullptr at the end
SHAMISA_EXPORT const char* const* shamisa_build_facts() {
  static const char* const facts[] = {"version", SHAMISA_VERSION, "commit", SHAMISA_COMMIT, "compiler", __VERSION__,
                                      "flags",   SHAMISA_FLAGS,   "torch",  SHAMISA_TORCH,  "cuda",     SHAMISA_CUDA_STATE,
                                      nullptr};
  return facts;
}

// the i-th level that was built and runs here, lowest first; nullptr beyond the last
SHAMISA_EXPORT const char* shamisa_level(int32_t i) {
  for (const Kernels* const* k = shamisa::all_kernels(); *k; ++k)
    if (shamisa::runs_here(**k) && i-- == 0) return (*k)->level;
  return nullptr;
}

SHAMISA_EXPORT const char* shamisa_chosen_level(const char** to) {
  return guarded([&] { *to = shamisa::kernels().level; });
}

SHAMISA_EXPORT const char* shamisa_scratch_bytes(int64_t height, int64_t width, const int64_t* opcodes, int64_t count,
                                                 int64_t* to) {
  return guarded([&] {
    check_size(height, width);
    bool present[opcode_count] = {};
    for (int64_t i = 0; i < count; ++i) check_opcode(opcodes[i], "opcodes"), present[opcodes[i]] = true;
    *to = shamisa::kernels().distort.bytes((int)height, (int)width, present);
  });
}

// from, to: [3, height, width]
SHAMISA_EXPORT const char* shamisa_distort(const float* from, float* to, int64_t height, int64_t width, int64_t opcode,
                                           float value, int64_t key, const char* level) {
  return guarded([&] {
    check_size(height, width);
    check_opcode(opcode, "opcode");
    const int H = (int)height, W = (int)width, code = (int)opcode, least = shamisa::row_of(code).min_size;
    if (H < least || W < least)
      refuse("images for " + std::string(shamisa::name_of(code)) + " must be at least " + to_string(least) + " x " +
             to_string(least) + " pixels, got " + to_string(H) + " x " + to_string(W));
    shamisa::Batch batch{};
    batch.source = from, batch.source_type = shamisa::DType::f32, batch.S = 1, batch.H = H, batch.W = W;
    batch.source_stride[1] = (int64_t)H * W, batch.source_stride[2] = W, batch.source_stride[3] = 1;
    if (const std::string fault = shamisa::fault_of_range(batch); !fault.empty()) refuse(fault);
    const shamisa::DistortKernels& kernels = at_level(level).distort;
    std::copy(from, from + 3ll * H * W, to);
    bool present[opcode_count] = {};
    present[code] = true;
    const int64_t bytes = kernels.bytes(H, W, present);
    std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes + 64]);
    kernels.apply(code, to, H, W, value, (uint64_t)key, (unsigned char*)(((uintptr_t)memory.get() + 63) / 64 * 64));
  });
}

// four words at four words
SHAMISA_EXPORT const char* shamisa_philox(int64_t key, const uint32_t* counter, uint32_t* to, const char* level) {
  return guarded([&] { at_level(level).distort.philox((uint64_t)key, counter, to); });
}
