// Any CPU.
#include "simd_portable.h"
// After the lanes.
#include "bags.h"
#include "interaction.h"
#include "quantize_table.h"
#include "run.h"

recpress::Status recpress::run_portable(const Call& call) { return run(call); }
recpress::Status recpress::bags_portable(const Bags& call) { return bags(call); }
recpress::Status recpress::quantize_rows_portable(const RowsToQuantize& call) { return quantize_table(call); }
recpress::Status recpress::dots_portable(const Interaction& call) { return dots(call); }
recpress::Status recpress::second_order_portable(const Interaction& call) { return second_order(call); }
