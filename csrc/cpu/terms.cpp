// CPU kernels of the terms of the objective and of the transport logits and codes (see relation.cpp for the style).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../relation/terms.h"
#include "levels.h"
#include "tensors.h"
#include "terms.h"

namespace shamisa {

#if defined(SHAMISA_X86)
extern const TermKernels terms_v2, terms_v3, terms_v4;
#else
extern const TermKernels terms_any;
#endif

namespace {

const TermKernels& level() {
#if defined(SHAMISA_X86)
  static const char name = shamisa::kernels().level[1];
  return name == '4' ? terms_v4 : name == '3' ? terms_v3 : terms_v2;
#else
  return terms_any;
#endif
}

template <class T>
const TypedTermKernels<T>& typed() {
  if constexpr (sizeof(T) == 8)
    return level().f64;
  else
    return level().f32;
}

int64_t units(int64_t n, int64_t size) { return (n + size - 1) / size; }

// ---- variance --------------------------------------------------------------------------------------------------------
constexpr double variance_eps = 1e-4;

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
  const int64_t m = x.size(columns ? 1 : 0), D = x.size(columns ? 0 : 1), P = typed<T>().panel, panels = units(m, P);
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
    const int64_t panels = units(m, typed<T>().panel), offsets = panels / 2 + 1;
    std::vector<double> sums(panels * offsets, 0);
    parallel(panels * offsets, typed<T>().panel * typed<T>().panel * D, [&](int64_t a, int64_t b) {
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
      std::vector<T> block(product_rows * typed<T>().panel);
      const int64_t first = a * product_rows, last = b * product_rows < n ? b * product_rows : n;
      typed<T>().covariance_rows(read<T>(left), read<T>(packed), read<T>(y), diagonal.data(), scale, E, D, first, last,
                                 block.data(), data<T>(out));
    });
    return 0;
  });
  return back(out, x.scalar_type());
}

// ---- transport -------------------------------------------------------------------------------------------------------
std::tuple<Tensor, Tensor> transport_logits(Tensor h, Tensor anchors) {
  check_matrix(h, "h", "[N, F]");
  check_matrix(anchors, "anchors", "[K, F]");
  const ScalarType type = compute_type(h);
  const int64_t N = h.size(0), F = h.size(1), K = anchors.size(0);
  check_shape(anchors, {K, F}, "anchors");
  // In double, rounded once: the logits decide which edges the transport graph has, and every backend shall decide alike.
  const TypedTermKernels<double>& wide = typed<double>();
  const Tensor x = dense(h, type), w = dense(anchors, ScalarType::Double), logits = make({N, K}, type), norm = make({N}, type);
  const int64_t Kp = wide.padded(K);
  const Tensor packed = make({F, Kp}, ScalarType::Double);
  wide.pack_anchors(read<double>(w), K, F, data<double>(packed));
  with_type(type, [&](auto t) {
    using T = decltype(t);
    parallel(units(N, unit_rows), unit_rows * F * Kp, [&](int64_t a, int64_t b) {
      std::vector<double> block(unit_rows * Kp);
      typed<T>().logits_forward(read<T>(x), read<double>(packed), N, F, K, a, b, block.data(), data<T>(logits), data<T>(norm));
    });
    return 0;
  });
  return {logits, norm};
}

std::tuple<Tensor, Tensor> transport_logits_backward(Tensor grad, Tensor h, Tensor anchors, Tensor logits, Tensor norm) {
  check_matrix(h, "h", "[N, F]");
  check_matrix(anchors, "anchors", "[K, F]");
  check_shape(anchors, {anchors.size(0), h.size(1)}, "anchors");
  check_shape(grad, {h.size(0), anchors.size(0)}, "grad");
  check_shape(logits, {h.size(0), anchors.size(0)}, "logits");
  check_shape(norm, {h.size(0)}, "norm");
  const ScalarType type = norm.scalar_type();
  const int64_t N = h.size(0), F = h.size(1), K = anchors.size(0);
  const Tensor x = dense(h, type), w = dense(anchors, type), s = dense(grad, type), u = dense(logits, type),
               length = dense(norm, type), dh = make({N, F}, type), dw = make({K, F}, type);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const int64_t Kp = typed<T>().padded(K);
    const Tensor g = make({N, Kp}, type), along = make({N}, type);
    parallel(N, Kp, [&](int64_t a, int64_t b) {
      typed<T>().logits_slopes(read<T>(s), read<T>(u), read<T>(length), K, a, b, data<T>(g), data<T>(along));
    });
    parallel(units(F, unit_columns), N * Kp * unit_columns, [&](int64_t a, int64_t b) {
      std::vector<T> scratch(2 * (logits_rows + Kp) * unit_columns);
      for (int64_t unit = a; unit < b; ++unit)
        typed<T>().logits_backward(read<T>(x), read<T>(w), read<T>(g), read<T>(along), N, F, K, unit, scratch.data(),
                                   data<T>(dh), data<T>(dw));
    });
    return 0;
  });
  return {back(dh, h.scalar_type()), back(dw, anchors.scalar_type())};
}

// Each round subtracts from the logarithms what makes the columns sum to 1, then the rows. The second follows from the first,
// so that only `shift`, one number for each anchor, goes from round to round.
Tensor transport_codes(Tensor u, double temperature, int64_t rounds) {
  check_matrix(u, "u", "[N, K]");
  const ScalarType type = compute_type(u);
  const int64_t N = u.size(0), K = u.size(1), segments = units(N, unit_rows);
  const Tensor x = dense(u, type), q = make({N, K}, type);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const TypedTermKernels<T>& run = typed<T>();
    const T *in = read<T>(x), heat = (T)temperature;
    // Tensors, because their memory begins with a line of the cache: vectors across lines take half as long again.
    const int64_t Kp = run.padded(K);
    const Tensor shifts = make({2, Kp}, type), sums = make({segments * K}, type);
    T *parts = data<T>(sums), *high = data<T>(shifts), *low = high + Kp;  // shift = high + low
    std::fill_n(high, K, -(T)INFINITY), std::fill_n(low, K, T(0));
    const auto by_segment = [&](auto f) {  // f(first row, last row, its part [K])
      parallel(segments, unit_rows * K * 16, [&](int64_t a, int64_t b) {
        for (int64_t s = a; s < b; ++s) f(s * unit_rows, s + 1 < segments ? (s + 1) * unit_rows : N, parts + s * K);
      });
    };
    const auto total = [&](int64_t k) {
      double sum = 0;
      for (int64_t s = 0; s < segments; ++s) sum += (double)parts[s * K + k];
      return sum;
    };
    run.codes_largest(in, K, heat, 0, N, high);
    std::vector<double> shift(high, high + K);
    for (int64_t round = 0; round < rounds; ++round) {
      std::fill_n(parts, segments * K, T(0));
      if (round == 0)
        by_segment([&](int64_t a, int64_t b, T* sum) { run.codes_columns(in, K, heat, high, a, b, sum); });
      else
        by_segment([&](int64_t a, int64_t b, T* sum) {
          const Tensor row = make({Kp}, type);
          run.codes_rows(in, K, heat, high, low, a, b, data<T>(row), data<T>(q), sum);
        });
      for (int64_t k = 0; k < K; ++k) {
        shift[k] += std::log(total(k));
        high[k] = (T)shift[k];
        low[k] = (T)(shift[k] - (double)high[k]);
      }
    }
    by_segment([&](int64_t a, int64_t b, T* sum) {
      const Tensor row = make({Kp}, type);
      run.codes_rows(in, K, heat, high, low, a, b, data<T>(row), data<T>(q), sum);
    });
    return 0;
  });
  return q;
}

}  // namespace
}  // namespace shamisa

STABLE_TORCH_LIBRARY_IMPL(shamisa, CPU, m) {
  m.impl("variance", TORCH_BOX(&shamisa::variance));
  m.impl("variance_backward", TORCH_BOX(&shamisa::variance_backward));
  m.impl("covariance", TORCH_BOX(&shamisa::covariance));
  m.impl("covariance_backward", TORCH_BOX(&shamisa::covariance_backward));
  m.impl("transport_logits", TORCH_BOX(&shamisa::transport_logits));
  m.impl("transport_logits_backward", TORCH_BOX(&shamisa::transport_logits_backward));
  m.impl("transport_codes", TORCH_BOX(&shamisa::transport_codes));
}
