// shamisa._host: the kernels without torch, NumPy in and out, and how this installation was built.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "../cpu/levels.h"
#include "../distort/catalogue.h"
#include "range.h"

namespace py = pybind11;
using shamisa::Kernels;

static const Kernels& at_level(const std::string& level) {
  if (level.empty()) return shamisa::kernels();
  std::string names;
  for (const Kernels* const* k = shamisa::all_kernels(); *k; ++k) {
    if (!shamisa::runs_here(**k)) continue;
    if (level == (*k)->level) return **k;
    names += (names.empty() ? "" : ", ") + std::string((*k)->level);
  }
  throw py::value_error("level must be one of " + names + " on this machine, got " + level);
}

static std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels* const* k = shamisa::all_kernels(); *k; ++k)
    if (shamisa::runs_here(**k)) names.emplace_back((*k)->level);
  return names;
}

static void check_size(int64_t height, int64_t width) {
  if (height < 1 || width < 1 || height > shamisa::longest_side || width > shamisa::longest_side ||
      height * width > shamisa::most_pixels)
    throw py::value_error("images must have sides of 1 to 2^15 and at most 2^26 pixels, got " + std::to_string(height) + " x " +
                          std::to_string(width));
}

static int64_t scratch_bytes(int64_t height, int64_t width, const std::vector<int>& opcodes) {
  check_size(height, width);
  bool present[shamisa::opcode_count] = {};
  for (int code : opcodes) {
    if (code < 0 || code >= shamisa::opcode_count)
      throw py::value_error("opcodes must lie in 0.." + std::to_string(shamisa::opcode_count - 1) + ", got " +
                            std::to_string(code));
    present[code] = true;
  }
  return shamisa::kernels().distort_bytes((int)height, (int)width, present);
}

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

static py::array_t<float> distort(const Floats& image, int opcode, float value, int64_t key, const std::string& level) {
  const py::ssize_t height = image.ndim() == 3 ? image.shape(1) : 0, width = image.ndim() == 3 ? image.shape(2) : 0;
  if (image.ndim() != 3 || image.shape(0) != 3 || image.size() == 0) {
    std::string shape;
    for (py::ssize_t d = 0; d < image.ndim(); ++d) shape += (d ? ", " : "") + std::to_string(image.shape(d));
    throw py::value_error("image must be [3, H, W] with H, W >= 1, got [" + shape + "]");
  }
  check_size(height, width);
  if (opcode < 0 || opcode >= shamisa::opcode_count)
    throw py::value_error("opcode must lie in 0.." + std::to_string(shamisa::opcode_count - 1) + ", got " +
                          std::to_string(opcode));
  const shamisa::Row row = shamisa::row_of(opcode);
  const std::string name = shamisa::name_of(opcode);
  const int H = (int)height, W = (int)width;
  if (H < row.min_size || W < row.min_size)
    throw py::value_error("images for " + name + " must be at least " + std::to_string(row.min_size) + " x " +
                          std::to_string(row.min_size) + " pixels, got " + std::to_string(H) + " x " + std::to_string(W));
  shamisa::Batch batch{};
  batch.source = image.data(), batch.source_type = shamisa::DType::f32, batch.S = 1, batch.H = H, batch.W = W;
  batch.source_stride[1] = (int64_t)H * W, batch.source_stride[2] = W, batch.source_stride[3] = 1;
  if (const std::string fault = shamisa::fault_of_range(batch); !fault.empty()) throw py::value_error(fault);
  const Kernels& kernels = at_level(level);
  py::array_t<float> out({3, H, W});
  const float* from = image.data();
  float* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    std::copy(from, from + 3ll * H * W, to);
    bool present[shamisa::opcode_count] = {};
    present[opcode] = true;
    const int64_t bytes = kernels.distort_bytes(H, W, present);
    std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes + 64]);
    kernels.apply(opcode, to, H, W, value, (uint64_t)key, (unsigned char*)(((uintptr_t)memory.get() + 63) / 64 * 64));
  }
  return out;
}

static std::vector<uint32_t> philox(int64_t key, std::vector<uint32_t> counter, const std::string& level) {
  if (counter.size() != 4) throw py::value_error("counter must be 4 words, got " + std::to_string(counter.size()));
  std::vector<uint32_t> words(4);
  at_level(level).philox((uint64_t)key, counter.data(), words.data());
  return words;
}

static py::list catalogue() {
  py::list rows;
  for (int code = 0; code < shamisa::opcode_count; ++code) {
    const shamisa::Row row = shamisa::row_of(code);
    rows.append(py::dict(py::arg("name") = shamisa::name_of(code), py::arg("low") = row.low, py::arg("high") = row.high,
                         py::arg("discrete") = row.discrete, py::arg("min_size") = row.min_size));
  }
  return rows;
}

static py::dict build_info() {
  py::dict info;
  info["version"] = SHAMISA_VERSION;
  info["commit"] = SHAMISA_COMMIT;
  info["compiler"] = __VERSION__;
  info["flags"] = SHAMISA_FLAGS;
  info["torch"] = SHAMISA_TORCH;
  info["cuda"] = SHAMISA_CUDA_STATE;
  info["levels"] = levels();
  info["level"] = shamisa::kernels().level;
  return info;
}

PYBIND11_MODULE(_host, m) {
  m.doc() = "The distortion kernels of the CPU without torch (NumPy in and out), and how they were built.";
  m.def("distort", &distort, py::arg("image"), py::arg("opcode"), py::arg("value"), py::arg("key") = 0, py::arg("level") = "",
        "One distortion of image [3, H, W] float32 (clamped to [0, 1]) -> a new array; level: an x86-64 level of levels().");
  m.def("scratch_bytes", &scratch_bytes, py::arg("height"), py::arg("width"), py::arg("opcodes"),
        "Bytes of memory that each thread of a call of the distort op works in, given the op codes that occur: two float32 "
        "images and what the hungriest of the distortions needs. A call takes that times the threads, and its output.");
  m.def("philox", &philox, py::arg("key"), py::arg("counter"), py::arg("level") = "",
        "The four random words at counter (element, draw, extra, domain).");
  m.def("catalogue", &catalogue, "What the kernels know of every distortion, by op code.");
  m.def("levels", &levels, "The x86-64 levels that were built and run on this machine, lowest first.");
  m.def("build_info", &build_info, "Version, commit, compiler, flags, torch and CUDA that the extension was built with.");
}
