// The kernels of variance, covariance and transport of one x86-64 level: compiled once for each; see levels.h.
#include "terms.h"

#include "../relation/terms.h"

#define SHAMISA_PASTE_(a, b) a##b
#define SHAMISA_PASTE(a, b) SHAMISA_PASTE_(a, b)
namespace shamisa {
#define SHAMISA_KERNELS(T)                                                                        \
  {panel_rows<T>,    padded<T>,          column_moments<T>,  subtract_mean<T>, pack_panels<T>,    \
   pack_columns<T>,  gram_panels<T>,     covariance_rows<T>, pack_anchors<T>,  logits_forward<T>, \
   logits_slopes<T>, logits_backward<T>, codes_largest<T>,   codes_columns<T>, codes_rows<T>}
extern const TermKernels SHAMISA_PASTE(terms_, SHAMISA_LEVEL);
const TermKernels SHAMISA_PASTE(terms_, SHAMISA_LEVEL) = {SHAMISA_KERNELS(float), SHAMISA_KERNELS(double)};
}  // namespace shamisa
