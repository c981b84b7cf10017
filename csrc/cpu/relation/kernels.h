// The relation kernels of one x86-64 level; see cpu/levels.h.
#pragma once

#include "arguments.h"

namespace shamisa {

template <class T>
struct TypedRelationKernels {
  int panel_rows;  // rows of a packed panel of T
  int tile_rows;   // rows of scores made at a time
  void (*pack_rows)(const T* x, const T* center, int64_t N, int64_t D, int64_t first_panel, int64_t last_panel, T* packed);
  void (*neighbors_center)(const Neighbors<T>&, int64_t first_column, int64_t last_column);
  void (*neighbors_begin)(const Neighbors<T>&, int64_t first, int64_t last);
  void (*neighbors_pair)(const Neighbors<T>&, int64_t block_a, int64_t block_b, T* scratch);
  void (*neighbors_finish)(const Neighbors<T>&, int64_t first, int64_t last, T* distance, int64_t* neighbor, double* exact);
  void (*distances)(const Neighbors<T>&, int64_t i, int64_t first, int64_t last, T* squared);
  void (*neighbors_row)(const Neighbors<T>&, int64_t i, const T* squared, T* distance, int64_t* neighbor, double* exact);
  void (*laplacian)(const T* x, int64_t N, int64_t D, Incidence<T>, int64_t column, int64_t width, int64_t columns, T* strip,
                    T* out);
  void (*pair_squared)(const T* z, int64_t D, const int64_t* i, const int64_t* j, int64_t first, int64_t last, T* squared);
  Extreme (*transport_rows)(const Transport&, int64_t first, int64_t last, double* score, Smallest*, int64_t* index_j);
  // terms and assignment
  int64_t (*padded)(int64_t K);  // anchors as they are packed
  void (*column_moments)(const T* x, int64_t n, int64_t E, int64_t first, int64_t last, T* mean, double* square);
  void (*subtract_mean)(const T* x, int64_t E, const T* mean, const T* scale, int64_t first, int64_t last, T* out);
  void (*pack_columns)(const T* x, const T* center, int64_t D, int64_t m, int64_t first, int64_t last, T* packed);
  double (*gram_panels)(const T* packed, int64_t m, int64_t D, int64_t i, int64_t j, T scale, bool diagonal, T* moment);
  void (*covariance_rows)(const T* a, const T* packed, const T* y, const T* diagonal, T scale, int64_t E, int64_t D,
                          int64_t first, int64_t last, T* block, T* out);
  void (*pack_anchors)(const T* anchors, int64_t K, int64_t F, T* packed);
  void (*logits_forward)(const T* h, const double* packed, int64_t N, int64_t F, int64_t K, int64_t first, int64_t last,
                         double* block, T* logits, T* norm);
  void (*logits_slopes)(const T* grad, const T* logits, const T* norm, int64_t K, int64_t first, int64_t last, T* g, T* along);
  void (*logits_backward)(const T* h, const T* anchors, const T* g, const T* along, int64_t N, int64_t F, int64_t K,
                          int64_t unit, T* scratch, T* dh, T* dw);
  void (*codes_largest)(const T* u, int64_t K, T temperature, int64_t first, int64_t last, T* high);
  void (*codes_columns)(const T* u, int64_t K, T temperature, const T* high, int64_t first, int64_t last, T* sum);
  void (*codes_rows)(const T* u, int64_t K, T temperature, const T* high, const T* low, int64_t first, int64_t last, T* row,
                     T* q, T* sum);
};

struct RelationKernels {
  TypedRelationKernels<float> f32;
  TypedRelationKernels<double> f64;
  void (*shrink)(Smallest*);
};

}  // namespace shamisa
