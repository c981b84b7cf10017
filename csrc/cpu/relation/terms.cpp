// CPU kernels of variance and covariance (see neighbors.cpp for the style).
#include "terms.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../../relation/constants.h"
#include "typed.h"

namespace shamisa {
namespace {

// ---- variance --------------------------------------------------------------------------------------------------------
template <class T>
struct Moments {
  std::vector<T> mean;
  std::vector<double> square;  // sum of squared differences from the mean
};

template <class T>
Moments<T> moments(const T* x, int64_t n, int64_t E) {
  Moments<T> m = {std::vector<T>(E), std::vector<double>(E)};
  parallel(units(E, unit_columns), n * unit_columns,
           [&](int64_t a, int64_t b) { typed<T>().column_moments(x, n, E, a, b, m.mean.data(), m.square.data()); });
  return m;
}

Tensor variance(Tensor x) {
  check_matrix(x, "x", "[n, E]");
  const ScalarType type = compute_type(x);
  const int64_t n = x.size(0), E = x.size(1);
  const Tensor y = dense(x, type), value = make({}, type);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const Moments<T> m = moments<T>(read<T>(y), n, E);
    double sum = 0;
    for (int64_t e = 0; e < E; ++e) {
      const double missing = 1 - std::sqrt(m.square[e] / (double)(n - 1) + variance_eps);
      sum += missing <= 0 ? 0 : missing;  // NaN stays
    }
    *data<T>(value) = (T)(sum / (double)E);
    return 0;
  });
  return value;
}

Tensor variance_backward(Tensor grad, Tensor x) {
  check_matrix(x, "x", "[n, E]");
  STD_TORCH_CHECK(grad.numel() == 1, "grad must be a scalar, got ", shape_of(grad));
  const ScalarType type = compute_type(x);
  const int64_t n = x.size(0), E = x.size(1);
  const Tensor y = dense(x, type), g = dense(grad, ScalarType::Double), out = make({n, E}, type);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const Moments<T> m = moments<T>(read<T>(y), n, E);
    std::vector<T> slope(E);
    for (int64_t e = 0; e < E; ++e) {
      const double deviation = std::sqrt(m.square[e] / (double)(n - 1) + variance_eps);
      slope[e] = deviation < 1 ? (T)(-*read<double>(g) / ((double)(n - 1) * (double)E * deviation)) : T(0);
    }
    parallel(n, E, [&](int64_t a, int64_t b) {
      typed<T>().subtract_mean(read<T>(y), E, m.mean.data(), slope.data(), a, b, data<T>(out));
    });
    return 0;
  });
  return back(out, x.scalar_type());
}

// ---- covariance ------------------------------------------------------------------------------------------------------
// x, less the means of its columns if they are given, in panels of its columns or of its rows
template <class T>
Tensor pack(const Tensor& x, const T* mean, bool columns) {
  const int64_t m = x.size(columns ? 1 : 0), D = x.size(columns ? 0 : 1), P = typed<T>().panel_rows, panels = units(m, P);
  const Tensor packed = make({panels * P * D}, type_of<T>);
  parallel(panels, P * D, [&](int64_t a, int64_t b) {
    if (columns)
      typed<T>().pack_columns(read<T>(x), mean, D, m, a, b, data<T>(packed));
    else
      typed<T>().pack_rows(read<T>(x), mean, m, D, a, b, data<T>(packed));
  });
  return packed;
}

std::tuple<Tensor, Tensor> covariance(Tensor x) {
  check_matrix(x, "x", "[n, E]");
  const ScalarType type = compute_type(x);
  const int64_t n = x.size(0), E = x.size(1), m = n < E ? n : E, D = n < E ? E : n;
  const Tensor y = dense(x, type), value = make({}, type), moment = make({m, m}, type);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const Moments<T> columns = moments<T>(read<T>(y), n, E);
    const Tensor packed = pack<T>(y, columns.mean.data(), n >= E);
    // Each panel with itself and with those after it, in a circle, as far as half way round: as many for every thread.
    const int64_t panels = units(m, typed<T>().panel_rows), offsets = panels / 2 + 1;
    std::vector<double> sums(panels * offsets, 0);
    parallel(panels * offsets, typed<T>().panel_rows * typed<T>().panel_rows * D, [&](int64_t a, int64_t b) {
      for (int64_t pair = a; pair < b; ++pair) {
        const int64_t i = pair / offsets, offset = pair % offsets, j = (i + offset) % panels;
        if (2 * offset == panels && i > j) continue;  // half way round: once
        sums[pair] = typed<T>().gram_panels(read<T>(packed), m, D, std::min(i, j), std::max(i, j), (T)(1 / (double)(n - 1)),
                                            n < E, data<T>(moment));
      }
    });
    double sum = 0;
    for (const double s : sums) sum += s;
    if (n < E)  // the rows' matrix has the same squared sum, but another diagonal
      for (const double s : columns.square) sum -= s / (double)(n - 1) * (s / (double)(n - 1));
    *data<T>(value) = (T)(sum / (double)E);
    return 0;
  });
  return {value, moment};
}

Tensor covariance_backward(Tensor grad, Tensor x, Tensor moment) {
  check_matrix(x, "x", "[n, E]");
  STD_TORCH_CHECK(grad.numel() == 1, "grad must be a scalar, got ", shape_of(grad));
  const ScalarType type = compute_type(x);
  const int64_t n = x.size(0), E = x.size(1), D = n < E ? n : E;
  check_shape(moment, {D, D}, "moment");
  const Tensor z = dense(x, type), square = dense(moment, type), g = dense(grad, ScalarType::Double), out = make({n, E}, type);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const Moments<T> columns = moments<T>(read<T>(z), n, E);
    const Tensor y = make({n, E}, type);  // centred
    parallel(n, E, [&](int64_t a, int64_t b) {
      typed<T>().subtract_mean(read<T>(z), E, columns.mean.data(), nullptr, a, b, data<T>(y));
    });
    const Tensor packed = pack<T>(n < E ? y : square, nullptr, true);
    const Tensor& left = n < E ? square : y;
    const T scale = (T)(4 * *read<double>(g) / ((double)E * (double)(n - 1)));
    std::vector<T> diagonal(E);
    for (int64_t e = 0; e < E; ++e) diagonal[e] = (T)(columns.square[e] / (double)(n - 1));
    parallel(units(n, product_rows), product_rows * E * D, [&](int64_t a, int64_t b) {
      std::vector<T> block(product_rows * typed<T>().panel_rows);
      const int64_t first = a * product_rows, last = b * product_rows < n ? b * product_rows : n;
      typed<T>().covariance_rows(read<T>(left), read<T>(packed), read<T>(y), diagonal.data(), scale, E, D, first, last,
                                 block.data(), data<T>(out));
    });
    return 0;
  });
  return back(out, x.scalar_type());
}

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) {
  m.impl("variance", TORCH_BOX(&shamisa::variance));
  m.impl("variance_backward", TORCH_BOX(&shamisa::variance_backward));
  m.impl("covariance", TORCH_BOX(&shamisa::covariance));
  m.impl("covariance_backward", TORCH_BOX(&shamisa::covariance_backward));
}
