// A graph Laplacian times a matrix for CPU tensors.
#pragma once

#include <vector>

#include "incidence.h"
#include "typed.h"

namespace shamisa {

// out [N, D] = Laplacian of the edges i(e), j(e), value(e) applied to x [N, D]
template <class T, class I, class J, class Value>
Tensor apply_laplacian(const Tensor& x, int64_t M, I i, J j, Value value) {
  const int64_t N = x.size(0), D = x.size(1);
  const Tensor offset = make({N + 1}, ScalarType::Long), other = make({2 * M}, ScalarType::Int),
               weight = make({2 * M}, type_of<T>);
  const Incidence<T> edges = {data<int64_t>(offset), data<int32_t>(other), data<T>(weight)};
  build_incidence<T>(N, M, i, j, value, edges);
  const Tensor out = make({N, D}, type_of<T>);
  const int64_t columns = strip_columns<T>(N);
  parallel((D + columns - 1) / columns, (2 * M + N) * columns, [&](int64_t a, int64_t b) {
    std::vector<T> strip(N * columns);
    for (int64_t c = a * columns; c < D && c < b * columns; c += columns)
      typed<T>().laplacian(read<T>(x), N, D, edges, c, D - c < columns ? D - c : columns, columns, strip.data(), data<T>(out));
  });
  return out;
}

}  // namespace shamisa
