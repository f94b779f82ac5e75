// x86-64 with AVX2 and F16C; compiled with those flags and run only where the CPU has them.
#include "simd_avx2.h"
// After the lanes.
#include "bags.h"
#include "interaction.h"
#include "quantize_table.h"
#include "run.h"

recpress::Status recpress::run_avx2(const Call& call) { return run(call); }
recpress::Status recpress::bags_avx2(const Bags& call) { return bags(call); }
recpress::Status recpress::quantize_rows_avx2(const RowsToQuantize& call) { return quantize_table(call); }
recpress::Status recpress::dots_avx2(const Interaction& call) { return dots(call); }
recpress::Status recpress::second_order_avx2(const Interaction& call) { return second_order(call); }
