// A graph Laplacian times a matrix for CUDA tensors: workspace and launches around incidence.cuh.
#pragma once

#include "../tensors.cuh"
#include "incidence.cuh"

namespace shamisa {

// out [N, D] = sum over the edges of each node of value (x_n - x_other), x [N, D] contiguous; Source: see incidence.cuh.
// Extra memory: 8 N + 4 M words and a row of D for every IncidenceLaunch::share half edges.
template <class T, class Source>
Tensor apply_laplacian(const Tensor& x, const Source& source, cudaStream_t stream) {
  using Launch = IncidenceLaunch;
  const int64_t N = x.size(0), D = x.size(1), M = source.count();
  STD_TORCH_CHECK(M < 1 << 30 && N < 1 << 30, "at most 2^30 edges and nodes, got ", M, " and ", N);
  STD_TORCH_CHECK(N > 0 || M == 0, "edges need nodes, got ", M, " edges of no rows");  // indices are clamped to 0..N-1
  const int64_t further = 2 * M / Launch::share, items = N + further;
  const Tensor cursor = make({N}, ScalarType::Int, x), offset = make({N + 1}, ScalarType::Int, x);
  const Tensor item = make({N + 1}, ScalarType::Int, x), node = make({items}, ScalarType::Int, x);
  const Tensor half = make({2 * M}, ScalarType::Int, x), other = make({2 * M}, ScalarType::Int, x);
  const Tensor value = make({2 * M}, type_of<T>, x), edge_value = make({M}, type_of<T>, x);
  const Tensor out = make({N, D}, type_of<T>, x), partial = make({further, D}, type_of<T>, x);
  const NodeEdges<T> edges = {N,
                              M,
                              data<int32_t>(cursor),
                              data<int32_t>(offset),
                              data<int32_t>(item),
                              data<int32_t>(node),
                              data<int32_t>(half),
                              data<int32_t>(other),
                              data<T>(value),
                              data<T>(edge_value)};
  clear(edges.cursor, N * (int64_t)sizeof(int32_t), stream);
  const int64_t blocks = blocks_for(M, Launch::threads);
  SHAMISA_RUN((edge_count<T, Source>), blocks, Launch::threads, stream, source, edges);
  SHAMISA_RUN(edge_scan<T>, (int64_t)1, Launch::scan_threads, stream, edges);
  SHAMISA_RUN((edge_fill<T, Source>), blocks, Launch::threads, stream, source, edges);
  SHAMISA_RUN((edge_sort<T, Source>), N, Launch::sort_threads, stream, source, edges);
  const auto sum = [&](auto width) {
    constexpr int W = decltype(width)::value;
    STD_TORCH_CHECK(items <= 0x7fffffff && D <= 65535 * (int64_t)Launch::sum_threads,
                    "too many edges or columns for one launch");
    const dim3 grid((unsigned)items, (unsigned)blocks_for(D, Launch::sum_threads * W));
    SHAMISA_RUN((edge_sum<T, W>), grid, Launch::sum_threads, stream, edges, read<T>(x), D, data<T>(out), data<T>(partial));
  };
  wide_rows(read<T>(x), D) && wide_rows(read<T>(out), D) ? sum(std::integral_constant<int, wide<T>>{})
                                                         : sum(std::integral_constant<int, 1>{});
  SHAMISA_RUN(edge_join<T>, N, Launch::join_threads, stream, edges, D, data<T>(out), read<T>(partial));
  return out;
}

}  // namespace shamisa
