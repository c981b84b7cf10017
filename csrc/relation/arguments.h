// Arguments of the relation kernels (see shamisa/reference/relations.py for what they compute).
//
// Plain data outside the namespaces of the x86-64 levels: it travels between code of different levels.
#pragma once

#include <stdint.h>

namespace shamisa {

constexpr int neighbor_margin = 5;              // candidates beyond k: more than can lie within rounding of the last place
constexpr int segment_rows = 12;                // rows of scores are shared out in multiples of this (of tile_rows)
constexpr int block_rows = 96;                  // rows whose products are made together
constexpr int laplacian_columns = 64;           // columns summed together: so many of all rows stay in the second cache
constexpr int64_t transport_nodes = 1LL << 16;  // positions i N + j fit in 32 bits

template <class T>
struct Neighbors {
  const T* h;  // [N, F]
  int64_t N, F;
  int k, candidates;  // candidates = min(k + neighbor_margin, N - 1)
  T* packed;          // [panels of N][F][panel_rows]
  T* norm;            // [N], |h|^2
  T* key;             // [N, candidates], squared distances, ascending
  int32_t* row;       // [N, candidates]; -1 while free
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

// What is compiled once for each x86-64 level
template <class T>
struct TypedRelationKernels {
  int panel_rows;  // rows of a packed panel of T
  int tile_rows;   // rows of scores made at a time
  void (*pack)(const T* x, int64_t N, int64_t D, int64_t first_panel, int64_t last_panel, T* packed);
  void (*neighbors_begin)(const Neighbors<T>&, int64_t first, int64_t last);
  void (*neighbors_pair)(const Neighbors<T>&, int64_t block_a, int64_t block_b, T* scratch);
  void (*neighbors_finish)(const Neighbors<T>&, int64_t first, int64_t last, T* distance, int64_t* neighbor, double* exact);
  void (*laplacian)(const T* x, int64_t N, int64_t D, Incidence<T>, int64_t column, int64_t width, T* out);
  void (*pair_squared)(const T* z, int64_t D, const int64_t* i, const int64_t* j, int64_t first, int64_t last, T* squared);
  Extreme (*transport_rows)(const Transport&, int64_t first, int64_t last, double* score, Smallest*, int64_t* index_j);
};

struct RelationKernels {
  TypedRelationKernels<float> f32;
  TypedRelationKernels<double> f64;
  void (*shrink)(Smallest*);
};

}  // namespace shamisa
