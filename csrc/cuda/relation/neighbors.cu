// knn_graph and its backward for CUDA tensors. Nothing waits for the device; temporaries come from torch's caching allocator,
// so that a CUDA graph can hold it all.
#include "neighbors.cuh"

#include "../scratch.cuh"
#include "laplacian.cuh"

namespace shamisa {
namespace {

// distance [N, k] and neighbor [N, k] from key [panel, N], panel after panel
template <class T, int W>
void find_neighbors(const NeighborRows<T>& g, const Candidates& to, int64_t k, const Tensor& distance, const Tensor& neighbor,
                    cudaStream_t stream) {
  using Tile = ProductTile<T>;
  const int64_t row_bytes = g.N * (int64_t)sizeof(T), tiles = blocks_for(g.N, Tile::rows);
  const int64_t fit = NeighborLaunch::memory_bytes / row_bytes;
  const bool whole = g.N <= fit;
  const int64_t panel = whole ? g.N : std::max<int64_t>(fit / Tile::rows, 1) * Tile::rows;
  const Tensor key = make({panel, g.N}, type_of<T>, distance);
  // few tiles: parts of the columns, until each multiprocessor has two blocks, but no part shorter than two sums
  const int64_t upper = tiles * (tiles + 1) / 2;
  const int64_t room = std::min<int64_t>(g.F / (2 * Tile::columns_per_sum), NeighborLaunch::parts);
  const int64_t parts = whole ? std::min(blocks_for(2 * multiprocessors(distance), upper), room) : 1;
  const Tensor part = make({parts > 1 ? parts * upper * Tile::rows * Tile::rows : 0}, type_of<T>, distance);
  for (int64_t first = 0; first < g.N; first += panel) {
    const int64_t last = std::min(first + panel, g.N);
    if (parts > 1) {
      SHAMISA_RUN((neighbor_products<T, W>), dim3((unsigned)upper, (unsigned)parts), Tile::threads, stream, g, data<T>(part));
      SHAMISA_RUN(neighbor_join<T>, upper, NeighborLaunch::threads, stream, g, read<T>(part), parts, data<T>(key));
    } else if (whole)
      SHAMISA_RUN((neighbor_keys<T, W, true>), upper, Tile::threads, stream, g, first, last, data<T>(key));
    else
      SHAMISA_RUN((neighbor_keys<T, W, false>), dim3((unsigned)tiles, (unsigned)blocks_for(last - first, Tile::rows)),
                  Tile::threads, stream, g, first, last, data<T>(key));
    SHAMISA_RUN(neighbor_select<T>, blocks_for(last - first, NeighborLaunch::warps), NeighborLaunch::threads, stream,
                read<T>(key), g.N, first, last, to);
    SHAMISA_RUN((neighbor_refine<T, W>), last - first, NeighborLaunch::threads, stream, g, to, first, k, data<T>(distance),
                data<int64_t>(neighbor));
    if constexpr (sizeof(T) == 4)
      SHAMISA_RUN((neighbor_doubt<T, W>), last - first, NeighborLaunch::doubt_threads, stream, g, to, first, k, data<T>(key),
                  data<T>(distance), data<int64_t>(neighbor));
  }
}

// h [N, F] -> distance [N, k], neighbor [N, k], mutual [N, k]
std::tuple<Tensor, Tensor, Tensor> knn_graph(Tensor h, int64_t k) {
  STD_TORCH_CHECK(h.dim() == 2 && h.size(0) > k && k >= 1, "h must be [N, F] with N > k = ", k, ", got ", shape_of(h));
  STD_TORCH_CHECK(h.size(0) <= 0x7fffffff, "h must have fewer than 2^31 rows, got ", h.size(0));
  const int64_t N = h.size(0), F = h.size(1);
  const OnDevice device(h);
  const cudaStream_t stream = device.stream();
  const ScalarType type = compute_type(h);
  const Tensor rows_of_h = dense(h, type), centered = make({N, F}, type, h), center = make({F}, type, h);
  const Tensor norm = make({N}, type, h);
  const Tensor distance = make({N, k}, type, h), neighbor = make({N, k}, ScalarType::Long, h);
  const Tensor mutual = make({N, k}, ScalarType::Bool, h);
  const int64_t capacity = std::min(k + neighbor_margin, N - 1);
  const Tensor count = make({N}, ScalarType::Int, h), row = make({2, N, capacity}, ScalarType::Int, h);
  const Tensor squared = make({2, N, capacity}, ScalarType::Double, h), limits = make({2, N}, ScalarType::Double, h);
  int32_t* rows = data<int32_t>(row);
  double *lengths = data<double>(squared), *limit = data<double>(limits);
  const Candidates candidates = {
      (int)capacity, data<int32_t>(count), {rows, rows + N * capacity}, {lengths, lengths + N * capacity}, limit, limit + N};
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const NeighborRows<T> g = {read<T>(rows_of_h), read<T>(centered), read<T>(norm), N, F};
    const auto run = [&](auto width) {
      constexpr int W = decltype(width)::value;
      SHAMISA_RUN(neighbor_center<T>, blocks_for(F, 32), 32 * NeighborLaunch::center_warps, stream, g.h, N, F, data<T>(center));
      SHAMISA_RUN(neighbor_norms<T>, blocks_for(N, NeighborLaunch::warps), NeighborLaunch::threads, stream, g.h,
                  read<T>(center), N, F, data<T>(centered), data<T>(norm));
      find_neighbors<T, W>(g, candidates, k, distance, neighbor, stream);
    };
    wide_rows(g.h, F) ? run(std::integral_constant<int, wide<T>>{}) : run(std::integral_constant<int, 1>{});
    SHAMISA_RUN(neighbor_mutual, blocks_for(N * k, NeighborLaunch::threads), NeighborLaunch::threads, stream,
                read<int64_t>(neighbor), N, k, data<bool>(mutual));
    return 0;
  });
  return {distance, neighbor, mutual};
}

// grad [N, k] of distance -> [N, F] of h
Tensor knn_graph_backward(Tensor grad, Tensor h, Tensor distance, Tensor neighbor) {
  STD_TORCH_CHECK(h.dim() == 2, "h must be [N, F], got ", shape_of(h));
  STD_TORCH_CHECK(neighbor.dim() == 2, "neighbor must be [N, k], got ", shape_of(neighbor));
  const int64_t N = h.size(0), k = neighbor.size(1);
  check_shape(neighbor, {N, k}, "neighbor");
  check_shape(grad, {N, k}, "grad");
  check_shape(distance, {N, k}, "distance");
  check_device(h, {&grad, &distance, &neighbor});
  const OnDevice device(h);
  const ScalarType type = compute_type(h);
  const Tensor x = dense(h, type), g = dense(grad, type), d = dense(distance, type), to = dense(neighbor, ScalarType::Long);
  const Tensor out = with_type(type, [&](auto t) {
    using T = decltype(t);
    const NeighborEdges<T> edges = {read<T>(g), read<T>(d), read<int64_t>(to), N, k};
    return apply_laplacian<T>(x, edges, device.stream());
  });
  return back(out, h.scalar_type());
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("knn_graph", TORCH_BOX(&shamisa::knn_graph));
  m.impl("knn_graph_backward", TORCH_BOX(&shamisa::knn_graph_backward));
}
