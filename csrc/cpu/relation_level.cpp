// The relation kernels of one x86-64 level: compiled once for each; see levels.h.
#include "../relation/graph.h"
#include "../relation/loss.h"
#include "../relation/neighbors.h"
#include "../relation/transport.h"

#define SHAMISA_PASTE_(a, b) a##b
#define SHAMISA_PASTE(a, b) SHAMISA_PASTE_(a, b)
namespace shamisa {
#define SHAMISA_KERNELS(T)                                                                                          \
  {panel_rows<T>,       tile_rows<T>, pack_panels<T>,   neighbors_center<T>, neighbors_begin<T>, neighbors_pair<T>, \
   neighbors_finish<T>, distances<T>, neighbors_row<T>, laplacian<T>,        pair_squared<T>,    transport_rows<T>}
extern const RelationKernels SHAMISA_PASTE(relation_, SHAMISA_LEVEL);
const RelationKernels SHAMISA_PASTE(relation_, SHAMISA_LEVEL) = {SHAMISA_KERNELS(float), SHAMISA_KERNELS(double), shrink};
}  // namespace shamisa
