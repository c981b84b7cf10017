// Constants that decide results of the relation ops, for every device (what they compute: shamisa/reference/relations.py).
#pragma once

#include <stdint.h>

namespace shamisa {

// ---- nearest neighbours ----------------------------------------------------------------------------------------------
constexpr int neighbor_margin = 5;  // candidates beyond k: more than can lie within rounding of the last place
constexpr int center_rows = 128;    // rows from which the center of all is made
// the relative error that a squared distance from a product may have, or else it is measured again by differences
constexpr double of_product = 1.5e-5;
constexpr double close_call = 2.5;  // two that are closer than so many relative errors do not tell their order

// ---- transport -------------------------------------------------------------------------------------------------------
constexpr double least_norm = 1e-12;            // of a row, against division by zero
constexpr double flat_score = 1e-6;             // a smaller range of scores is rounding, not information
constexpr int64_t transport_nodes = 1LL << 16;  // positions i N + j fit in 32 bits

// ---- terms -----------------------------------------------------------------------------------------------------------
constexpr double variance_eps = 1e-4;  // under the square root

}  // namespace shamisa
