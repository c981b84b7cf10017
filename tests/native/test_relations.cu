// The kernels of neighbours, pair cost and sums over edges against plain loops in double. Compiled twice: as C++ it runs under
// the emulator, as CUDA on a GPU (returns 77 without one). What a memory checker should see; tests/test_relation_cuda.py
// compares the whole ops.
#if !defined(__CUDACC__)
#include "emulator.h"
#endif

#include "../../csrc/cuda/relation/neighbors.cuh"
#include "../../csrc/cuda/relation/pair.cuh"
// after them, so that the words of the emulator stand
#include <algorithm>
#include <random>

#include "check.h"
#include "device.h"

using namespace shamisa;

template <class T>
static std::vector<T> numbers(size_t n, int seed) {
  std::mt19937 random(seed);
  std::vector<T> v(n);
  for (T& x : v) x = (T)(random() % 20001) / 10000 - 1;
  return v;
}
template <class T>
static double distance(const std::vector<T>& x, int64_t D, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t d = 0; d < D; ++d) sum += ((double)x[i * D + d] - x[j * D + d]) * ((double)x[i * D + d] - x[j * D + d]);
  return sum;
}
static bool near(double a, double b, double scale) { return std::fabs(a - b) <= 1e-4 * scale; }
static unsigned over(int64_t n, int64_t each) { return (unsigned)((n + each - 1) / each); }

// panel 0: the whole matrix by symmetry. clusters: three tight groups, so far apart that products cannot tell the rows of one.
template <class T, int W>
static void test_neighbors(int64_t N, int64_t F, int k, int64_t panel, bool clusters = false) {
  using Launch = NeighborLaunch;
  using Tile = ProductTile<T>;
  std::vector<T> h = numbers<T>(N * F, (int)(N + F));
  for (int64_t i = 2; i < N; i += 3) std::copy_n(&h[(i - 1) * F], F, &h[i * F]);  // every third repeats the one before
  if (clusters)
    for (int64_t c = 3 * F; c < N * F; ++c) h[c] = h[c % (3 * F)] + h[c] / 1024;
  const int capacity = (int)std::min<int64_t>(k + neighbor_margin, N - 1);
  const DeviceArray<T> rows(h), norm(N, 0xff), center(F, 0xff), x(N * F, 0xff), key((panel ? panel : N) * N, 0xff),
      length(N * k, 0xff);
  const DeviceArray<int32_t> count(N, 0xff), row(2 * N * capacity, 0xff);
  const DeviceArray<double> squared(2 * N * capacity, 0xff), last_key(N, 0xff), reach(N, 0xff);
  const DeviceArray<int64_t> neighbor(N * k, 0xff);
  const DeviceArray<unsigned char> mutual(N * k, 0xff);
  const NeighborRows<T> g = {rows.data(), x.data(), norm.data(), N, F};
  const Candidates to = {
      capacity,        count.data(), {row.data(), row.data() + N * capacity}, {squared.data(), squared.data() + N * capacity},
      last_key.data(), reach.data()};
  SHAMISA_LAUNCH(neighbor_center<T>, over(F, 32), 32 * Launch::center_warps, 0, g.h, N, F, center.data());
  SHAMISA_LAUNCH(neighbor_norms<T>, over(N, Launch::warps), Launch::threads, 0, g.h, center.data(), N, F, x.data(),
                 norm.data());
  const unsigned tiles = over(N, Tile::rows);
  for (int64_t first = 0; first < N; first += panel ? panel : N) {
    const int64_t last = panel ? std::min(first + panel, N) : N;
    if (panel)
      SHAMISA_LAUNCH((neighbor_keys<T, W, false>), dim3(tiles, over(last - first, Tile::rows)), Tile::threads, 0, g, first,
                     last, key.data());
    else
      SHAMISA_LAUNCH((neighbor_keys<T, W, true>), tiles * (tiles + 1) / 2, Tile::threads, 0, g, first, last, key.data());
    SHAMISA_LAUNCH(neighbor_select<T>, over(last - first, Launch::warps), Launch::threads, 0, key.data(), N, first, last, to);
    const unsigned rows_here = (unsigned)(last - first);
    SHAMISA_LAUNCH((neighbor_refine<T, W>), rows_here, Launch::threads, 0, g, to, first, k, length.data(), neighbor.data());
    if constexpr (sizeof(T) == 4)
      SHAMISA_LAUNCH((neighbor_doubt<T, W>), rows_here, Launch::doubt_threads, 0, g, to, first, k, key.data(), length.data(),
                     neighbor.data());
  }
  SHAMISA_LAUNCH(neighbor_mutual, over(N * k, Launch::threads), Launch::threads, 0, neighbor.data(), N, k,
                 (bool*)mutual.data());
  const char* error = failure();
  CHECK(error == nullptr, "%s", error);

  const std::vector<double> reaches = reach.host();
  const int64_t doubts = std::count_if(reaches.begin(), reaches.end(), [](double r) { return r >= 0; });
  CHECK(clusters == (doubts > 0), "%d of %d rows in doubt", (int)doubts, (int)N);
  const std::vector<int64_t> got = neighbor.host();
  const std::vector<T> lengths = length.host();
  const std::vector<unsigned char> both = mutual.host();
  int wrong = 0, far = 0, wrong_mutual = 0;
  for (int64_t i = 0; i < N; ++i) {
    std::vector<std::pair<float, int64_t>> order;
    for (int64_t j = 0; j < N; ++j)
      if (j != i) order.push_back({(float)distance(h, F, i, j), j});
    std::sort(order.begin(), order.end());
    for (int c = 0; c < k; ++c) {
      const int64_t e = i * k + c, j = got[e];
      wrong += j != order[c].second;
      far += !near((double)lengths[e], std::sqrt((double)order[c].first), 1);
      wrong_mutual += j < 0 || j >= N || both[e] != (std::count(&got[j * k], &got[j * k] + k, i) > 0);
    }
  }
  CHECK(wrong == 0, "%d neighbours differ, N %d, F %d, W %d", wrong, (int)N, (int)F, W);
  CHECK(far == 0, "%d distances differ, N %d, F %d, W %d", far, (int)N, (int)F, W);
  CHECK(wrong_mutual == 0, "%d mutual differ, N %d, F %d, W %d", wrong_mutual, (int)N, (int)F, W);
}

// node 1 has every second edge
template <class T, int W>
static void test_pairs(int64_t N, int64_t E, int64_t M) {
  std::mt19937 random((unsigned)M);
  const std::vector<T> z = numbers<T>(N * E, 5), w = numbers<T>(M, 6);
  std::vector<int64_t> index(2 * M);
  for (int64_t e = 0; e < M; ++e) index[e] = e % 2 ? 1 : random() % N, index[M + e] = random() % N;
  const DeviceArray<T> x(z), weight(w), squared(M, 0xff), dw(M, 0xff), cost(1, 0xff), out(N * E, 0xff);
  const DeviceArray<int64_t> edge(index);
  const unsigned blocks = over(M, PairLaunch::edges);
  const DeviceArray<double> partial(blocks, 0xff), grad(std::vector<double>{1.5});
  SHAMISA_LAUNCH((pair_squared<T, W>), blocks, PairLaunch::threads, 0, x.data(), N, E, weight.data(), edge.data(), M,
                 squared.data(), partial.data());
  SHAMISA_LAUNCH(pair_total<T>, 1, PairLaunch::sum_threads, 0, partial.data(), blocks, (double)(N * E), cost.data());

  using Launch = IncidenceLaunch;
  const int64_t further = 2 * M / Launch::share;
  const DeviceArray<int32_t> cursor(N, 0), offset(N + 1, 0xff), item(N + 1, 0xff), node(N + further, 0xff);
  const DeviceArray<int32_t> half(2 * M, 0xff), other(2 * M, 0xff);
  const DeviceArray<T> value(2 * M, 0xff), edge_value(M, 0xff), more(further * E, 0xff);
  const NodeEdges<T> to = {N,           M,           cursor.data(), offset.data(), item.data(),
                           node.data(), half.data(), other.data(),  value.data(),  edge_value.data()};
  const PairEdges<T> edges = {grad.data(), (double)(N * E), weight.data(), squared.data(), edge.data(), N, M, dw.data()};
  SHAMISA_LAUNCH((edge_count<T, PairEdges<T>>), over(M, Launch::threads), Launch::threads, 0, edges, to);
  SHAMISA_LAUNCH(edge_scan<T>, 1, Launch::scan_threads, 0, to);
  SHAMISA_LAUNCH((edge_fill<T, PairEdges<T>>), over(M, Launch::threads), Launch::threads, 0, edges, to);
  SHAMISA_LAUNCH((edge_sort<T, PairEdges<T>>), (unsigned)N, Launch::sort_threads, 0, edges, to);
  SHAMISA_LAUNCH((edge_sum<T, W>), dim3((unsigned)(N + further), over(E, Launch::sum_threads * W)), Launch::sum_threads, 0, to,
                 x.data(), E, out.data(), more.data());
  SHAMISA_LAUNCH(edge_join<T>, (unsigned)N, Launch::join_threads, 0, to, E, out.data(), more.data());
  const char* error = failure();
  CHECK(error == nullptr, "%s", error);

  std::vector<double> gradient(N * E);
  double sum = 0, largest = 0;
  int wrong = 0;
  const std::vector<T> lengths = squared.host(), slopes = dw.host();
  for (int64_t e = 0; e < M; ++e) {
    const int64_t i = index[e], j = index[M + e];
    const double d = distance(z, E, i, j);
    wrong += !near((double)lengths[e], d, d) || !near((double)slopes[e] * (double)(N * E), 1.5 * d, d);
    sum += w[e] * d / (double)(N * E);
    for (int64_t c = 0; c < E; ++c) {
      const double t = 3 * w[e] * ((double)z[i * E + c] - z[j * E + c]) / (double)(N * E);
      gradient[i * E + c] += t, gradient[j * E + c] -= t;
    }
  }
  CHECK(wrong == 0, "%d squared distances differ", wrong);
  CHECK(near((double)cost.host()[0], sum, 1), "cost %g, expected %g", (double)cost.host()[0], sum);
  const std::vector<T> got = out.host();
  for (double t : gradient) largest = std::max(largest, std::fabs(t));
  wrong = 0;
  for (int64_t c = 0; c < N * E; ++c) wrong += !near((double)got[c], gradient[c], largest);
  CHECK(wrong == 0, "%d of the gradient differ, N %d, E %d, M %d, W %d", wrong, (int)N, (int)E, (int)M, W);
}

int main() {
  if (no_device()) {
    std::printf("no GPU\n");
    return 77;
  }
  test_neighbors<float, 4>(70, 36, 5, 0);
  test_neighbors<float, 1>(70, 37, 5, 64);
  test_neighbors<float, 4>(on_gpu ? 1003 : 33, 528, 31, 0);
  test_neighbors<float, 4>(on_gpu ? 600 : 69, 36, 5, 0, true);
  test_neighbors<float, 1>(on_gpu ? 600 : 69, 37, 5, 64, true);
  test_neighbors<double, 2>(70, 10, 3, 0);
  test_neighbors<double, 1>(66, 9, 64, 64);
  test_pairs<float, 4>(20, 268, 70);
  test_pairs<float, 1>(9, 7, on_gpu ? 60000 : 2300);
  test_pairs<double, 2>(40, 6, 300);
  test_pairs<double, 1>(2, 1, 1);
  return report("relations");
}
