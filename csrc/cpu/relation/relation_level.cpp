// The relation kernels of one x86-64 level: compiled once for each; see cpu/levels.h.
#include "../levels.h"
#include "assignment.h"
#include "incidence.h"
#include "neighbors.h"
#include "pair.h"
#include "terms.h"
#include "transport.h"

namespace shamisa {
#define SHAMISA_TYPED(T)                                                                                \
  {panel_rows<T>,     tile_rows<T>,        pack_panels<T>,     neighbors_center<T>, neighbors_begin<T>, \
   neighbors_pair<T>, neighbors_finish<T>, distances<T>,       neighbors_row<T>,    laplacian<T>,       \
   pair_squared<T>,   transport_rows<T>,   padded<T>,          column_moments<T>,   subtract_mean<T>,   \
   pack_columns<T>,   gram_panels<T>,      covariance_rows<T>, pack_anchors<T>,     logits_forward<T>,  \
   logits_slopes<T>,  logits_backward<T>,  codes_largest<T>,   codes_columns<T>,    codes_rows<T>}
const RelationKernels SHAMISA_PART(relation) = {SHAMISA_TYPED(float), SHAMISA_TYPED(double), shrink};
}  // namespace shamisa
