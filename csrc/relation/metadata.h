// What the sizes and severities of a batch say of its graphs, for every device: numbers of nodes, classes of views, gaps of
// severity and their weights.
#pragma once

#include "../core/math.h"
#include "libm.h"

SHAMISA_BEGIN

// The sizes of a batch. Nodes: B V references (b, v), then the distorted (b, v, c, l).
struct BatchShape {
  int64_t B, V, C, L;
  SHAMISA_HD int64_t references() const { return B * V; }
  SHAMISA_HD int64_t images() const { return C * L; }  // made from a reference
  SHAMISA_HD int64_t distorted() const { return references() * images(); }
  SHAMISA_HD int64_t node(int64_t b, int64_t v, int64_t c, int64_t l) const {
    return references() + ((b * V + v) * C + c) * L + l;
  }
};

// Structural edges join different views of one class: views that are equal modulo `size`, or, with `blocks`, views of one
// block of that size.
struct ViewClasses {
  int size, views;
  bool blocks;

  SHAMISA_HD int members(int v) const {
    if (blocks) return min_of(size, views - v / size * size);
    return (views - v % size + size - 1) / size;
  }
  SHAMISA_HD int rank(int v) const { return blocks ? v % size : v / size; }
  // the n-th other view of the class of v
  SHAMISA_HD int mate(int v, int n) const {
    n += n >= rank(v);
    return blocks ? v / size * size + n : v % size + size * n;
  }
  // ordered pairs of different views of one class
  SHAMISA_HD int64_t pairs() const {
    int64_t sum = 0;
    for (int v = 0; v < views; ++v) sum += members(v) - 1;
    return sum;
  }
};

// NaN where a severity is
template <class T>
SHAMISA_HD T severity_gap(T a, T b) {
  return a < b ? b - a : a - b;
}

// the weight of a gap of severities
enum class Decay { exponential, reciprocal };
template <class T>
SHAMISA_HD T decayed(T gap, Decay decay) {
  return decay == Decay::exponential ? exponential(T(-0.75) * gap) : 1 / (1 + gap / 4);
}

SHAMISA_END
