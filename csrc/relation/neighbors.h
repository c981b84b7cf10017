// What the neighbours of a row depend on beside sums of many columns, for every device.
#pragma once

#include "../core/math.h"
#include "constants.h"

SHAMISA_BEGIN

// A float product of two rows of F columns, summed in stretches of `stretch` columns, is wrong by at most (stretch + number of
// stretches) u |x_i| |x_j|, u = 2^-24; norms, center and the subtractions add at most `others` u (|x_i|^2 + |x_j|^2). So this
// times (|x_i|^2 + |x_j|^2) bounds the error of a squared distance that is made from products.
SHAMISA_HD double product_error(int64_t F, int64_t stretch, int others) {
  return (double)(stretch + (F + stretch - 1) / stretch + others) / (1 << 24);
}

// the factor of the difference of two rows in the gradient of their distance: 0 at distance 0, and NaN stays NaN
template <class T>
SHAMISA_HD T distance_slope(T grad, T distance) {
  return distance > 0 ? grad / distance : distance == 0 ? T(0) : distance;
}

// where row i stands among the neighbours [N, k] of its neighbour c: a place in [N, k], or -1
SHAMISA_HD int64_t way_back(const int64_t* neighbor, int64_t k, int64_t i, int64_t c) {
  const int64_t j = neighbor[i * k + c];
  const int64_t* back = neighbor + j * k;
  int64_t found = -1;
  for (int64_t b = 0; b < k; ++b) found = back[b] == i ? b : found;
  return found < 0 ? found : j * k + found;
}

SHAMISA_END
