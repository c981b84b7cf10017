// The graphs that follow from the metadata alone, edge by edge, in the order of the reference. Host code, no torch, no
// allocation.
#pragma once

#include "../../relation/metadata.h"

SHAMISA_BEGIN

// i, j [B, classes.pairs(), C, L]
inline void structural_edges(const BatchShape& s, const ViewClasses& classes, int64_t* i, int64_t* j) {
  for (int64_t b = 0; b < s.B; ++b)
    for (int v = 0; v < classes.views; ++v)
      for (int n = 0; n < classes.members(v) - 1; ++n) {
        const int64_t from = s.node(b, v, 0, 0), to = s.node(b, classes.mate(v, n), 0, 0);
        for (int64_t k = 0; k < s.images(); ++k) *i++ = from + k, *j++ = to + k;
      }
}

// decay [B, C, L], weight, i, j [B, V, C, L]
template <class T>
inline void ref_dist_edges(const BatchShape& s, const T* decay, T* weight, int64_t* i, int64_t* j) {
  const int64_t images = s.images();
  for (int64_t r = 0; r < s.references(); ++r)
    for (int64_t n = 0; n < images; ++n) {
      *weight++ = decay[r / s.V * images + n];
      *i++ = r;
      *j++ = s.references() + r * images + n;
    }
}

// i, j [R, R - 1]
inline void ref_ref_edges(int64_t R, int64_t* i, int64_t* j) {
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t n = 0; n < R - 1; ++n) i[n] = r;
    for (int64_t n = 0; n < r; ++n) j[n] = n;
    for (int64_t n = r; n < R - 1; ++n) j[n] = n + 1;
    i += R - 1;
    j += R - 1;
  }
}

// ---- distorted to distorted ------------------------------------------------------------------------------------------
// A gap of severities and how many edges have it. NaN counts as the smallest, so that it is kept and shows.
template <class T>
struct Gap {
  T size;
  int64_t edges;
};

template <class T>
SHAMISA_HD T gap_of(T a, T b) {
  const T d = severity_gap(a, b);
  return d == d ? d : T(-1);
}

// the gaps of one sample: severity [C, L] -> gaps [C L (L + 1) / 2]
template <class T>
inline void sample_gaps(const T* severity, const BatchShape& s, Gap<T>* gaps) {
  for (int64_t c = 0; c < s.C; ++c)
    for (int64_t l = 0; l < s.L; ++l)
      for (int64_t m = l; m < s.L; ++m)
        *gaps++ = {gap_of(severity[c * s.L + l], severity[c * s.L + m]), l == m ? s.V * (s.V - 1) : 2 * s.V * s.V};
}

// Which edges are kept: all with a gap below `bound`, and the first `ties` of those with that gap.
template <class T>
struct Kept {
  T bound;
  int64_t ties;
};

// The `kept` smallest gaps; the gaps come in ascending order.
template <class T>
inline Kept<T> bound_gaps(const Gap<T>* gaps, int64_t count, int64_t kept) {
  Kept<T> found = {T(-2), 0};
  int64_t below = 0;  // edges with a smaller gap than the present one
  for (int64_t g = 0; g < count && below < kept;) {
    found = {gaps[g].size, kept - below};
    for (; g < count && gaps[g].size == found.bound; ++g) below += gaps[g].edges;
  }
  return found;
}

// The kept edges of one sample in the order (i, j); weight, i and j move on. table [C, L, L] is the weight of each gap.
template <class T>
inline void dist_dist_edges(const BatchShape& s, int64_t b, const T* severity, const T* table, Kept<T>* kept, T*& weight,
                            int64_t*& i, int64_t*& j) {
  for (int64_t v = 0; v < s.V; ++v)
    for (int64_t c = 0; c < s.C; ++c)
      for (int64_t l = 0; l < s.L; ++l) {
        const int64_t from = s.node(b, v, c, l);
        for (int64_t u = 0; u < s.V; ++u) {
          const int64_t to = s.node(b, u, c, 0);
          for (int64_t m = 0; m < s.L; ++m) {
            const T gap = gap_of(severity[c * s.L + l], severity[c * s.L + m]);
            if (gap > kept->bound || to + m == from || (gap == kept->bound && kept->ties == 0)) continue;
            kept->ties -= gap == kept->bound;
            *weight++ = table[(c * s.L + l) * s.L + m];
            *i++ = from;
            *j++ = to + m;
          }
        }
      }
}

SHAMISA_END
