// The largest scores c_ij = mean_k log p_ik p_jk on CUDA, without torch.
//
// Scores are made in double, 64 x 64 at a time, by every pass that needs them; up to TransportLaunch::stored scores are kept
// in memory as keys instead. Passes: extremes and first digit of all keys; the other digits, each counting only the keys that
// agree with the cut so far; how many keys of each row lie before the cut; their positions, in the order (i, j); weights.
// Nothing depends on the order in which blocks run: only integers are added by atomics.
#pragma once

#include "../../relation/transport.h"
#include "tile.cuh"

SHAMISA_BEGIN

struct TransportLaunch {
  static constexpr int threads = Tile<double>::threads;
  static constexpr int warps = threads / 32;
  static constexpr int bins = 256, levels = 4;  // digits of a key, the highest first
#if defined(SHAMISA_EMULATE)                    // so that small matrices go every way
  static constexpr int segments = 2;
  static constexpr int64_t stored = 1LL << 13;
#else
  static constexpr int segments = 32;           // at most, of a row: what a block counts and collects
  static constexpr int64_t stored = 1LL << 24;  // keys, 64 MiB
#endif
  static constexpr int64_t resident = 8;  // blocks per multiprocessor, more than fit where scores are made
  // the same as registers: kernels that make scores, collect them, and that only read keys
  static constexpr int making = 3, collecting = 2, reading = 6;
};

constexpr uint32_t no_key = 0xffffffffu;  // behind every score: NaN, or not in the matrix

struct Cut {
  uint32_t key;   // the keys before it are kept, of those equal to it the first
  uint32_t ties;  // so many
};

// First smallest and largest score, with positions i N + j; first NaN, or nowhere
struct ScoreRange {
  double low, high;
  uint32_t low_at, high_at, nan_at;
};
constexpr uint32_t nowhere = 0xffffffffu;  // also the last position of the largest matrix, where no NaN can stand alone

// A group is a row (per_row) or the whole matrix.
struct TransportArrays {
  int N, K;
  int64_t edges;                  // kept of each group
  bool per_row, diagonal, wide;   // wide: extremes are compared as double, else as float
  double *log_p, *p;              // [N, K]
  uint32_t* key;                  // [N, N], or null
  unsigned long long* histogram;  // [groups, bins]
  Cut* cut;                       // [groups]
  ScoreRange* range;              // [blocks of transport_scores]
  unsigned* before;               // [N, 2]: keys of the row before the cut, and equal to it; then those of earlier rows
  unsigned* count;                // [N, segments, 2], the same of a segment of a row
  uint32_t* at;                   // [groups, edges] positions
  unsigned* finished;             // [1]
  double* ends;                   // [2]: smallest and largest score, in double
  int64_t* extreme;               // [2, 2]
};

SHAMISA_DEVICE int transport_groups(const TransportArrays& g) { return g.per_row ? g.N : 1; }
// a unit of work: 64 rows times a segment of the columns
SHAMISA_HD int transport_tiles(int N) { return (N + Tile<double>::size - 1) / Tile<double>::size; }
SHAMISA_HD int transport_segments(int N) { return min_of(transport_tiles(N), TransportLaunch::segments); }
SHAMISA_HD int transport_units(int N) { return transport_tiles(N) * transport_segments(N); }
SHAMISA_DEVICE uint32_t position_of(const TransportArrays& g, int i, int j) {
  return (uint32_t)i * (uint32_t)g.N + (uint32_t)j;
}

SHAMISA_DEVICE double infinite() { return __builtin_inf(); }
SHAMISA_DEVICE uint32_t key_or_none(float score) { return score != score ? no_key : key_of(score); }

SHAMISA_DEVICE ScoreRange no_range() { return {infinite(), -infinite(), nowhere, nowhere, nowhere}; }
SHAMISA_DEVICE void join(ScoreRange& a, double low, uint32_t low_at, double high, uint32_t high_at, uint32_t nan_at) {
  if (low < a.low || (low == a.low && low_at < a.low_at)) a.low = low, a.low_at = low_at;
  if (high > a.high || (high == a.high && high_at < a.high_at)) a.high = high, a.high_at = high_at;
  a.nan_at = min_of(a.nan_at, nan_at);
}
SHAMISA_DEVICE void join(ScoreRange& a, const ScoreRange& b) { join(a, b.low, b.low_at, b.high, b.high_at, b.nan_at); }
SHAMISA_DEVICE void join_warp(ScoreRange& a) {
  for (int step = 16; step; step /= 2) {
    const double low = __shfl_xor_sync(whole_warp, a.low, step), high = __shfl_xor_sync(whole_warp, a.high, step);
    const uint32_t low_at = __shfl_xor_sync(whole_warp, a.low_at, step);
    const uint32_t high_at = __shfl_xor_sync(whole_warp, a.high_at, step);
    join(a, low, low_at, high, high_at, __shfl_xor_sync(whole_warp, a.nan_at, step));
  }
}

// Score of one edge by a warp; the same in every lane. Edges and extremes use the same sum, so that these weigh 0 and 1.
SHAMISA_DEVICE double warp_score(const TransportArrays& g, uint32_t position) {
  const double* log_p = g.log_p + (int64_t)(position / (uint32_t)g.N) * g.K;
  const double* p = g.p + (int64_t)(position % (uint32_t)g.N) * g.K;
  double sum = 0;
  for (int k = lane_of_warp(); k < g.K; k += 32) sum = fused(log_p[k], p[k], sum);
  return warp_sum(sum) / (double)g.K;
}

// ---- keys ------------------------------------------------------------------------------------------------------------
// f(r, c, i, j, key, score) for the elements of the tile at (i0, j0) that the thread has; only those in the matrix
template <class F>
SHAMISA_DEVICE void make_keys(const TransportArrays& g, Tile<double>::Memory& memory, int i0, int j0, F f) {
  Tile<double> tile;
  const double *log_p = g.log_p + (int64_t)i0 * g.K, *p = g.p + (int64_t)j0 * g.K;
  const auto a = [&](int row, int d) { return i0 + row < g.N ? log_p[(int64_t)row * g.K + d] : 0.; };
  const auto b = [&](int row, int d) { return j0 + row < g.N ? p[(int64_t)row * g.K + d] : 0.; };
  tile.product<true, true>(memory, 0, g.K, a, b);
  const double share = 1 / (double)g.K;
  SHAMISA_UNROLL
  for (int r = 0; r < 8; ++r) {
    SHAMISA_UNROLL
    for (int c = 0; c < 4; ++c) {
      const int i = i0 + tile.row(r), j = j0 + tile.column(c);
      const double score = tile.sum[r][c] * share;
      if (i < g.N && j < g.N) f(r, c, i, j, g.diagonal || i != j ? key_or_none((float)score) : no_key, score);
    }
  }
}

// key[8][4] of the tile at (i0, j0): read where they are stored, else made again
template <bool stored>
SHAMISA_DEVICE void get_keys(const TransportArrays& g, int i0, int j0, uint32_t (&key)[8][4]) {
  if constexpr (stored) {
    const uint32_t* from = g.key + position_of(g, i0, j0);
    SHAMISA_UNROLL
    for (int r = 0; r < 8; ++r) {
      SHAMISA_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int row = Tile<double>::row(r), column = Tile<double>::column(c);
        key[r][c] = i0 + row < g.N && j0 + column < g.N ? from[row * g.N + column] : no_key;
      }
    }
  } else {
    __shared__ Tile<double>::Memory memory;
    SHAMISA_UNROLL
    for (int r = 0; r < 8; ++r) {
      SHAMISA_UNROLL
      for (int c = 0; c < 4; ++c) key[r][c] = no_key;
    }
    make_keys(g, memory, i0, j0, [&](int r, int c, int, int, uint32_t k, double) { key[r][c] = k; });
  }
}

// f(i0, j0, segment, first of the unit, last of it) for the tiles of the units of this block, the columns of a unit ascending
template <class F>
SHAMISA_DEVICE void each_tile(int N, F f) {
  const int tiles = transport_tiles(N), segments = transport_segments(N);
  for (int unit = (int)blockIdx.x; unit < tiles * segments; unit += (int)gridDim.x) {
    const int row = unit / segments, segment = unit % segments;
    const int start = tiles * segment / segments, last = tiles * (segment + 1) / segments;
    for (int t = start; t < last; ++t) f(row * Tile<double>::size, t * Tile<double>::size, segment, t == start, t == last - 1);
  }
}

// ---- the cut ---------------------------------------------------------------------------------------------------------
// Counts a digit: the whole matrix first in shared memory, one copy per warp; rows straight away.
SHAMISA_DEVICE void count_digit(const TransportArrays& g, unsigned (*counted)[TransportLaunch::bins], int i, uint32_t digit) {
  if (g.per_row)
    atomicAdd(g.histogram + (int64_t)i * TransportLaunch::bins + digit, 1ull);
  else
    atomicAdd(&counted[threadIdx.x / 32][digit], 1u);
}
SHAMISA_DEVICE void clear_counted(unsigned (*counted)[TransportLaunch::bins]) {
  for (int b = (int)threadIdx.x; b < TransportLaunch::bins; b += TransportLaunch::threads)
    for (int w = 0; w < TransportLaunch::warps; ++w) counted[w][b] = 0;
  __syncthreads();
}
SHAMISA_DEVICE void add_counted(const TransportArrays& g, unsigned (*counted)[TransportLaunch::bins]) {
  __syncthreads();
  if (g.per_row) return;
  for (int b = (int)threadIdx.x; b < TransportLaunch::bins; b += TransportLaunch::threads) {
    unsigned long long sum = 0;
    for (int w = 0; w < TransportLaunch::warps; ++w) sum += counted[w][b];
    if (sum) atomicAdd(g.histogram + b, sum);
  }
}

// A warp: one more digit of a group's cut, and an empty histogram for the next. A group with too few keys (there are NaN) ends
// with a cut behind all of them.
SHAMISA_DEVICE void advance_cut(const TransportArrays& g, int group, int level) {
  unsigned long long *bins = g.histogram + (int64_t)group * TransportLaunch::bins + 8 * lane_of_warp(), n[8];
  SHAMISA_UNROLL
  for (int b = 0; b < 8; ++b) {
    n[b] = bins[b];
    bins[b] = 0;
  }
  const Cut cut = g.cut[group];
  const unsigned long long wanted = level == 0 ? (unsigned long long)g.edges : cut.ties;
  const Digit digit = find_digit(n, wanted);
  __syncwarp();  // all lanes have read the cut
  if (lane_of_warp() == 0) {
    const uint32_t key = level == 0 ? 0u : cut.key;
    g.cut[group] = {key | digit.value << (24 - 8 * level), (uint32_t)(wanted - digit.before)};
  }
}

// ---- kernels ---------------------------------------------------------------------------------------------------------
// grid: any; block: threads. log_p and p in double from log_p in T; what the other passes count in is set to 0, and every
// position to the last of its group. Reads N K, writes 16 N K bytes and 4 edges per group.
template <class T>
__global__ void __launch_bounds__(TransportLaunch::threads) transport_begin(const TransportArrays g, const T* log_p) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x, start = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (int64_t e = start; e < (int64_t)g.N * g.K; e += step) {
    g.log_p[e] = (double)log_p[e];
    g.p[e] = exponential((double)log_p[e]);
  }
  const int64_t groups = transport_groups(g);
  for (int64_t e = start; e < groups * TransportLaunch::bins; e += step) g.histogram[e] = 0;
  for (int64_t e = start; e < 2 * g.N; e += step) g.before[e] = 0;
  for (int64_t e = start; e < groups * g.edges; e += step)
    g.at[e] = (uint32_t)(((g.per_row ? e / g.edges : g.N - 1) + 1) * g.N - 1);
  if (start == 0) *g.finished = 0;
}

// grid: at most units, each block takes unit after unit; block: threads; shared: 21 KB. Makes all scores: their keys to
// memory (where g.key is), their extremes, the cut's first digit (of rows: transport_advance). Reads N K twice per tile from
// the cache, writes 4 N^2 bytes.
__global__ void __launch_bounds__(TransportLaunch::threads, TransportLaunch::making) transport_scores(const TransportArrays g) {
  __shared__ Tile<double>::Memory memory;
  __shared__ unsigned counted[TransportLaunch::warps][TransportLaunch::bins];
  __shared__ ScoreRange ranges[TransportLaunch::warps];
  __shared__ int flag;
  clear_counted(counted);
  ScoreRange own = no_range();
  each_tile(g.N, [&](int i0, int j0, int, bool, bool) {
    make_keys(g, memory, i0, j0, [&](int, int, int i, int j, uint32_t key, double score) {
      const uint32_t at = position_of(g, i, j);
      if (g.key) g.key[at] = key;
      if (key != no_key && g.edges) count_digit(g, counted, i, key >> 24);
      const double v = g.wide ? score : (double)(float)score;
      join(own, v, at, v, at, v != v ? at : nowhere);
    });
  });
  add_counted(g, counted);
  join_warp(own);
  if (lane_of_warp() == 0) ranges[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < TransportLaunch::warps; ++w) join(own, ranges[w]);
    g.range[blockIdx.x] = own;
  }
  if (!last_block(g.finished, &flag)) return;
  if (threadIdx.x >= 32) return;
  if (g.edges && !g.per_row) advance_cut(g, 0, 0);
  own = no_range();
  for (int b = lane_of_warp(); b < (int)gridDim.x; b += 32) join(own, g.range[b]);
  join_warp(own);
  if (own.nan_at != nowhere) own.low_at = own.high_at = own.nan_at;  // so that NaN reaches every weight
  const double low = warp_score(g, own.low_at), high = warp_score(g, own.high_at);
  if (threadIdx.x == 0) {
    g.ends[0] = low, g.ends[1] = high;
    g.extreme[0] = own.low_at / (uint32_t)g.N, g.extreme[1] = own.high_at / (uint32_t)g.N;
    g.extreme[2] = own.low_at % (uint32_t)g.N, g.extreme[3] = own.high_at % (uint32_t)g.N;
  }
}

// grid and block as transport_scores; shared: 21 KB. Digit `level` (1..3) of the cut (of rows: transport_advance).
template <bool stored>
__global__ void __launch_bounds__(TransportLaunch::threads, stored ? TransportLaunch::reading : TransportLaunch::making)
    transport_digit(const TransportArrays g, int level) {
  __shared__ unsigned counted[TransportLaunch::warps][TransportLaunch::bins];
  __shared__ int flag;
  const int shift = 24 - 8 * level;
  clear_counted(counted);
  each_tile(g.N, [&](int i0, int j0, int, bool, bool) {
    uint32_t key[8][4];
    get_keys<stored>(g, i0, j0, key);
    SHAMISA_UNROLL
    for (int r = 0; r < 8; ++r) {
      const int i = i0 + Tile<double>::row(r);
      const uint32_t cut = i < g.N ? g.cut[g.per_row ? i : 0].key : 0;
      SHAMISA_UNROLL
      for (int c = 0; c < 4; ++c)
        if (key[r][c] != no_key && key[r][c] >> (shift + 8) == cut >> (shift + 8))
          count_digit(g, counted, i, key[r][c] >> shift & 255u);
    }
  });
  add_counted(g, counted);
  if (g.per_row || !last_block(g.finished, &flag)) return;
  if (threadIdx.x < 32) advance_cut(g, 0, level);
}

// grid: ceil(N / warps); block: threads. A warp a row: digit `level` of its cut, which one block would do row after row.
__global__ void __launch_bounds__(TransportLaunch::threads) transport_advance(const TransportArrays g, int level) {
  const int row = (int)blockIdx.x * TransportLaunch::warps + (int)threadIdx.x / 32;
  if (row < g.N) advance_cut(g, row, level);
}

// grid and block as transport_scores; shared: 18 KB. How many keys of each row and segment lie before the cut, and how many
// are equal to it; then, unless per_row, the last block adds up over the rows.
template <bool stored>
__global__ void __launch_bounds__(TransportLaunch::threads, stored ? TransportLaunch::reading : TransportLaunch::making)
    transport_count(const TransportArrays g) {
  __shared__ unsigned found[Tile<double>::size * 2];
  __shared__ unsigned totals[TransportLaunch::warps];
  __shared__ int flag;
  static_assert(Tile<double>::size * 2 == TransportLaunch::threads, "a thread per counter");
  const int segments = transport_segments(g.N);
  each_tile(g.N, [&](int i0, int j0, int segment, bool first, bool last) {
    if (first) found[threadIdx.x] = 0;
    uint32_t key[8][4];
    get_keys<stored>(g, i0, j0, key);
    __syncthreads();
    SHAMISA_UNROLL
    for (int r = 0; r < 8; ++r) {
      const int row = Tile<double>::row(r);
      const uint32_t cut = i0 + row < g.N ? g.cut[g.per_row ? i0 + row : 0].key : 0;
      SHAMISA_UNROLL
      for (int c = 0; c < 4; ++c)
        if (key[r][c] != no_key && key[r][c] <= cut) atomicAdd(found + 2 * row + (key[r][c] == cut), 1u);
    }
    __syncthreads();
    const int i = i0 + (int)threadIdx.x / 2;
    if (last && i < g.N) {
      const unsigned n = found[threadIdx.x];
      g.count[(i * segments + segment) * 2 + threadIdx.x % 2] = n;
      if (n && !g.per_row) atomicAdd(g.before + i * 2 + threadIdx.x % 2, n);
    }
  });
  if (g.per_row || !last_block(g.finished, &flag)) return;
  // a thread has several rows in a line
  const int share = (g.N + TransportLaunch::threads - 1) / TransportLaunch::threads;
  const int begin = (int)threadIdx.x * share, end = min_of(begin + share, g.N);
  for (int which = 0; which < 2; ++which) {
    unsigned own = 0;
    for (int i = begin; i < end; ++i) own += g.before[i * 2 + which];
    unsigned upto = warp_scan(own);
    __syncthreads();
    if (lane_of_warp() == 31) totals[threadIdx.x / 32] = upto;
    __syncthreads();
    for (int w = 0; w < (int)threadIdx.x / 32; ++w) upto += totals[w];
    upto -= own;
    for (int i = begin; i < end; ++i) {
      const unsigned n = g.before[i * 2 + which];
      g.before[i * 2 + which] = upto;
      upto += n;
    }
  }
}

// grid and block as transport_scores; shared: 20 KB. The position of each key that is kept, in the order (i, j): its place
// is the number of kept keys before it.
template <bool stored>
__global__ void __launch_bounds__(TransportLaunch::threads, stored ? TransportLaunch::reading : TransportLaunch::collecting)
    transport_collect(const TransportArrays g) {
  __shared__ uint32_t mark[2][Tile<double>::size][2];  // a bit per column: before the cut, equal to it
  __shared__ unsigned start[Tile<double>::size * 2];   // of each row, both kinds in turn: those in earlier columns and rows
  const int segments = transport_segments(g.N);
  each_tile(g.N, [&](int i0, int j0, int segment, bool first, bool) {
    const int own_row = (int)threadIdx.x / 2, own_kind = (int)threadIdx.x % 2;
    __syncthreads();
    for (int w = (int)threadIdx.x; w < 4 * Tile<double>::size; w += TransportLaunch::threads) (&mark[0][0][0])[w] = 0;
    if (first) {
      unsigned sum = 0;
      if (i0 + own_row < g.N) {
        sum = g.before[(i0 + own_row) * 2 + own_kind];
        for (int s = 0; s < segment; ++s) sum += g.count[((i0 + own_row) * segments + s) * 2 + own_kind];
      }
      start[threadIdx.x] = sum;
    }
    uint32_t key[8][4];
    get_keys<stored>(g, i0, j0, key);
    __syncthreads();
    SHAMISA_UNROLL
    for (int r = 0; r < 8; ++r) {
      const int row = Tile<double>::row(r);
      const uint32_t cut = i0 + row < g.N ? g.cut[g.per_row ? i0 + row : 0].key : 0;
      SHAMISA_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int column = Tile<double>::column(c);
        if (key[r][c] != no_key && key[r][c] <= cut) atomicOr(&mark[key[r][c] == cut][row][column / 32], 1u << column % 32);
      }
    }
    __syncthreads();
    // from here on a thread has half a row: 32 columns
    const int word = (int)threadIdx.x % 2, row = (int)threadIdx.x / 2, i = i0 + row;
    const uint32_t before = mark[0][row][word], equal = mark[1][row][word];
    uint32_t n = start[2 * row], ties = start[2 * row + 1];
    if (word) n += (uint32_t)count_bits(mark[0][row][0]), ties += (uint32_t)count_bits(mark[1][row][0]);
    if (before | equal) {
      const uint32_t most = g.cut[g.per_row ? i : 0].ties;
      uint32_t* at = g.at + (g.per_row ? i * g.edges : 0);
      for (uint32_t bits = before | equal; bits; bits &= bits - 1) {
        const int bit = lowest_bit(bits);
        const bool tie = equal >> bit & 1;
        if (!tie || ties < most) at[n + min_of(ties, most)] = position_of(g, i, j0 + 32 * word + bit);
        tie ? ++ties : ++n;
      }
    }
    __syncthreads();
    start[threadIdx.x] += (uint32_t)(count_bits(mark[own_kind][own_row][0]) + count_bits(mark[own_kind][own_row][1]));
  });
}

// grid: ceil(M / warps) for M = groups edges; block: threads, a warp per edge. Reads 2 K doubles an edge.
template <class T>
__global__ void __launch_bounds__(TransportLaunch::threads)
    transport_weights(const TransportArrays g, int64_t M, T* weight, int64_t* index) {
  const int64_t e = (int64_t)blockIdx.x * TransportLaunch::warps + threadIdx.x / 32;
  if (e >= M) return;
  const uint32_t at = g.at[e];
  const double low = g.ends[0], span = span_of(low, g.ends[1]), score = warp_score(g, at);
  if (lane_of_warp() == 0) {
    weight[e] = (T)((score - low) / span);
    index[e] = at / (uint32_t)g.N;
    index[M + e] = at % (uint32_t)g.N;
  }
}

SHAMISA_END
