// variance and covariance with their backwards for CUDA tensors. Nothing waits for the device.
#include "terms.cuh"

#include "../scratch.cuh"

namespace shamisa {
namespace {

// x [n, E] of a term, its columns' means and variances, computed at once
template <class T>
class Columns {
 public:
  Columns(const Tensor& x, const OnDevice& device) : x_(dense(x, type_of<T>)) {
    const int64_t n = x.size(0), E = x.size(1);
    T *mean, *variance;
    scratch_.add(&mean, E), scratch_.add(&variance, E), scratch_.add(&finished, 1);
    scratch_.make_on(x_);
    centred = {read<T>(x_), mean, variance, n, E};
    SHAMISA_RUN(column_moments<T>, blocks_for(E, TermsLaunch::columns), TermsLaunch::threads, device.stream(), centred.x, n, E,
                mean, variance, finished);
  }
  Centred<T> centred;
  unsigned* finished;

 private:
  Tensor x_;
  Scratch scratch_;
};

void check_rows(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) >= 1 && x.size(1) >= 1, "x must be [n, E], none of them 0, got ", shape_of(x));
  STD_TORCH_CHECK(x.size(0) < (1LL << 31) && x.size(1) < (1LL << 31), "x is too large, got ", shape_of(x));
}

// x [n, E] -> []
Tensor variance(Tensor x) {
  check_rows(x);
  const OnDevice device(x);
  const Tensor value = make({}, compute_type(x), x);
  with_type(compute_type(x), [&](auto t) {
    using T = decltype(t);
    const Columns<T> columns(x, device);
    SHAMISA_RUN(variance_value<T>, (int64_t)1, TermsLaunch::sum_threads, device.stream(), columns.centred.variance, x.size(1),
                data<T>(value));
    return 0;
  });
  return value;
}

// grad [], x [n, E] -> [n, E]
Tensor variance_backward(Tensor grad, Tensor x) {
  check_rows(x);
  check_shape(grad, {}, "grad");
  check_device(x, {&grad});
  const OnDevice device(x);
  const ScalarType type = compute_type(x);
  const Tensor slope = dense(grad, type), out = make({x.size(0), x.size(1)}, type, x);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const Columns<T> columns(x, device);
    const Centred<T>& c = columns.centred;
    SHAMISA_RUN(variance_gradient<T>, blocks_for(c.n * c.E, TermsLaunch::threads), TermsLaunch::threads, device.stream(),
                read<T>(slope), c.x, c.mean, c.variance, c.n, c.E, data<T>(out));
    return 0;
  });
  return back(out, x.scalar_type());
}

// x [n, E] -> [], moment [m, m]
std::tuple<Tensor, Tensor> covariance(Tensor x) {
  check_rows(x);
  const int64_t n = x.size(0), E = x.size(1), m = n < E ? n : E;
  const OnDevice device(x);
  const ScalarType type = compute_type(x);
  const Tensor value = make({}, type, x), moment = make({m, m}, type, x);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const Columns<T> columns(x, device);
    const Centred<T>& c = columns.centred;
    // parts of the depth until every multiprocessor has work, but no part shorter than 4 steps of a tile
    const int64_t tiles = blocks_for(m, Tile<T>::size), upper = tiles * (tiles + 1) / 2;
    const int64_t most = std::max<int64_t>(c.depth() / (4 * Tile<T>::depth), 1);
    const int64_t splits = std::min(blocks_for(multiprocessors(x) * TermsLaunch::tile_blocks, upper), most);
    T* partial;
    double* squares;
    Scratch scratch;
    scratch.add(&partial, splits * upper * Tile<T>::size * Tile<T>::size), scratch.add(&squares, upper);
    scratch.make_on(x);
    const auto run = [&](auto by_columns) {
      SHAMISA_RUN((moment_tiles<decltype(by_columns)::value, T>), upper * splits, TermsLaunch::tile_threads, device.stream(), c,
                  (int)tiles, (int)splits, partial);
    };
    c.by_columns() ? run(std::true_type{}) : run(std::false_type{});
    SHAMISA_RUN(moment_join<T>, upper, TermsLaunch::threads, device.stream(), c, (int)tiles, (int)splits, partial, squares,
                columns.finished, data<T>(moment), data<T>(value));
    return 0;
  });
  return {value, moment};
}

// grad [], x [n, E], moment [m, m] -> [n, E]
Tensor covariance_backward(Tensor grad, Tensor x, Tensor moment) {
  check_rows(x);
  const int64_t n = x.size(0), E = x.size(1), m = n < E ? n : E;
  check_shape(grad, {}, "grad");
  check_shape(moment, {m, m}, "moment");
  check_device(x, {&grad, &moment});
  const OnDevice device(x);
  const ScalarType type = compute_type(x);
  const Tensor slope = dense(grad, type), products = dense(moment, type), out = make({n, E}, type, x);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const Columns<T> columns(x, device);
    const auto run = [&](auto by_columns) {
      SHAMISA_RUN((covariance_gradient<decltype(by_columns)::value, T>),
                  blocks_for(n, Tile<T>::size) * blocks_for(E, Tile<T>::size), TermsLaunch::tile_threads, device.stream(),
                  columns.centred, read<T>(slope), read<T>(products), data<T>(out));
    };
    columns.centred.by_columns() ? run(std::true_type{}) : run(std::false_type{});
    return 0;
  });
  return back(out, x.scalar_type());
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("variance", TORCH_BOX(&shamisa::variance));
  m.impl("variance_backward", TORCH_BOX(&shamisa::variance_backward));
  m.impl("covariance", TORCH_BOX(&shamisa::covariance));
  m.impl("covariance_backward", TORCH_BOX(&shamisa::covariance_backward));
}
