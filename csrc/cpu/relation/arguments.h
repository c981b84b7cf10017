// Arguments of the relation kernels of the CPU (see shamisa/reference/relations.py for what they compute).
//
// Plain data outside the namespaces of the x86-64 levels: it travels between code of different levels.
#pragma once

#include "../../relation/constants.h"

namespace shamisa {

constexpr int segment_rows = 24;  // rows of scores are shared out in multiples of this (of tile_rows)
constexpr int block_rows = 96;    // rows whose products are made together
constexpr int list_lanes = 16;    // lists of candidates are multiples of this
constexpr int center_groups = 8;  // the rows of the center come in so many groups

// a row number as wide as T, so that vectors of both have as many lanes
template <class T>
struct RowNumber {
  typedef int64_t type;
};
template <>
struct RowNumber<float> {
  typedef int32_t type;
};
template <class T>
using RowOf = typename RowNumber<T>::type;

template <class T>
struct Neighbors {
  const T* h;  // [N, F]
  int64_t N, F;
  int k, candidates;  // candidates = min(k + neighbor_margin, N - 1)
  int stride;         // places of a list: candidates up to whole list_lanes, and one before them
  T* center;          // [F], common to all rows
  T* packed;          // [panels of N][F][panel_rows], h - center
  T* norm;            // [N], |h - center|^2
  T* key;             // [N, stride], squared distances, ascending; the first is less than all
  RowOf<T>* row;      // [N, stride]; N while free
  uint8_t* doubt;     // [N], whether the choice of neighbours is in doubt: set by neighbors_finish

  T* keys(int64_t i) const { return key + i * stride + 1; }
  RowOf<T>* rows(int64_t i) const { return row + i * stride + 1; }
};

// For each node its edges, in both directions: node n has other[e], value[e] for offset[n] <= e < offset[n + 1].
template <class T>
struct Incidence {
  int64_t* offset;  // [N + 1]
  int32_t* other;   // [2 M]
  T* value;         // [2 M]
};

struct Transport {
  const double* log_p;  // packed, [panels of N][K][panel_rows]
  const double* p;      // packed likewise
  int64_t N, K;
  int64_t edges;  // per row; 0: the largest of the whole matrix are collected
  bool diagonal;
};

// Columns that are summed over edges together: so many of all N rows stay in the second cache.
template <class T>
constexpr int most_columns = 256 / (int)sizeof(T);
template <class T>
inline int64_t strip_columns(int64_t N) {
  int64_t columns = most_columns<T>;
  while (columns * (int64_t)sizeof(T) > 64 && N * columns * (int64_t)sizeof(T) > 640 * 1024) columns /= 2;
  return columns;
}

// The m smallest of a stream of numbers that differ
struct Smallest {
  uint64_t* v;         // [room], room > m
  int64_t m, room, n;  // n so far
  float bound;         // a smaller score cannot be among them any more
};

struct Extreme {  // first smallest and first largest score and their positions i N + j
  double low, high;
  int64_t low_at, high_at;
};

// Round-robin tournament of blocks: in round r of rounds_of, pair p of pairs_of; every two blocks meet once, and no block
// twice in one round, so that the pairs of a round can run in parallel. False: this pair has nobody to meet.
inline int64_t blocks_of(int64_t N) { return (N + block_rows - 1) / block_rows; }
inline int64_t rounds_of(int64_t blocks) { return blocks % 2 ? blocks : blocks - 1; }
inline int64_t pairs_of(int64_t blocks) { return (blocks + 1) / 2; }
inline bool meeting(int64_t blocks, int64_t round, int64_t pair, int64_t* a, int64_t* b) {
  const int64_t circle = blocks + blocks % 2 - 1;
  *a = pair == 0 ? circle : (round + pair) % circle;
  *b = (round + circle - pair) % circle;
  return *a < blocks && *b < blocks;
}

}  // namespace shamisa
