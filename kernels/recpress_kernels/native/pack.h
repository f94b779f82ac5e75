// One panel of canonical weights in the packed order.
#pragma once

#include "abi.h"

namespace recpress {

// weight int8 [columns, k] -> panel int8 [k_padded / 4][16][4] with zeros where there is no weight; sums [columns].
void pack_panel(const int8_t* weight, int64_t columns, int64_t k, int64_t k_padded, int8_t* panel, int32_t* sums);
// The same -> panel int8 [k_padded][16], for a layer that keeps floats; no sums.
void pack_float_panel(const int8_t* weight, int64_t columns, int64_t k, int64_t k_padded, int8_t* panel, int32_t* sums);

}  // namespace recpress
