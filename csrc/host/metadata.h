// Arguments of the metadata graphs, checked, as the kernels of every device take them.
#pragma once

#include "../relation/metadata.h"
#include "tensors.h"

namespace shamisa {

inline BatchShape batch_of(const Tensor& severity, int64_t views) {
  STD_TORCH_CHECK(severity.dim() == 3, "severity must be [B, C, L], got ", shape_of(severity));
  STD_TORCH_CHECK(views >= 1 && views < (1 << 15), "views must be in 1..32767, got ", views);
  STD_TORCH_CHECK(severity.size(2) < (1 << 15), "L must be below 32768, got ", severity.size(2));
  return {severity.size(0), views, severity.size(1), severity.size(2)};
}

inline ViewClasses view_classes(const std::string& classes, int64_t views) {
  STD_TORCH_CHECK(classes == "parity" || classes == "same_scale" || classes == "same_reference",
                  "classes must be parity, same_scale or same_reference, got ", classes);
  const int half = views / 2 > 1 ? (int)views / 2 : 1;
  return {classes == "parity" ? 2 : half, (int)views, classes == "same_scale"};
}

inline Decay decay_of(const std::string& decay) {
  STD_TORCH_CHECK(decay == "exponential" || decay == "reciprocal", "decay must be exponential or reciprocal, got ", decay);
  return decay == "reciprocal" ? Decay::reciprocal : Decay::exponential;
}

// Which edges dist_dist keeps: the `kept` smallest gaps of each group of samples.
struct KeptEdges {
  int64_t groups, samples, kept;
  int64_t count() const { return groups * kept; }
};
inline KeptEdges kept_edges(const BatchShape& s, int64_t edges, bool per_sample) {
  STD_TORCH_CHECK(edges >= 0, "edges must be at least 0, got ", edges);
  const int64_t groups = per_sample ? s.B : 1, samples = per_sample ? 1 : s.B;
  const int64_t pairs = samples * s.C * s.V * s.L * (s.V * s.L - 1);
  return {groups, samples, edges < pairs ? edges : pairs};
}

}  // namespace shamisa
