// What is compiled once for each x86-64 level, of csrc/relation/terms.h
#pragma once

#include <stdint.h>

namespace shamisa {

template <class T>
struct TypedTermKernels {
  int64_t panel;                 // columns of a packed panel
  int64_t (*padded)(int64_t K);  // anchors as they are packed
  void (*column_moments)(const T* x, int64_t n, int64_t E, int64_t first, int64_t last, T* mean, double* square);
  void (*subtract_mean)(const T* x, int64_t E, const T* mean, const T* scale, int64_t first, int64_t last, T* out);
  void (*pack_rows)(const T* x, const T* center, int64_t m, int64_t D, int64_t first, int64_t last, T* packed);
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

struct TermKernels {
  TypedTermKernels<float> f32;
  TypedTermKernels<double> f64;
};

}  // namespace shamisa
