// CPU kernels of the logits and codes of transport (see neighbors.cpp for the style).
#include "assignment.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "typed.h"

namespace shamisa {
namespace {

std::tuple<Tensor, Tensor> transport_logits(Tensor h, Tensor anchors) {
  check_matrix(h, "h", "[N, F]");
  check_matrix(anchors, "anchors", "[K, F]");
  const ScalarType type = compute_type(h);
  const int64_t N = h.size(0), F = h.size(1), K = anchors.size(0);
  check_shape(anchors, {K, F}, "anchors");
  // In double, rounded once: the logits decide which edges the transport graph has, and every backend shall decide alike.
  const TypedRelationKernels<double>& wide = typed<double>();
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
    const TypedRelationKernels<T>& run = typed<T>();
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
  m.impl("transport_logits", TORCH_BOX(&shamisa::transport_logits));
  m.impl("transport_logits_backward", TORCH_BOX(&shamisa::transport_logits_backward));
  m.impl("transport_codes", TORCH_BOX(&shamisa::transport_codes));
}
