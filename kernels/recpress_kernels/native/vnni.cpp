// x86-64 with AVX-512 F, BW, VL and VNNI; compiled with those flags and run only where the CPU has them.
// Checked on hardware (Zen 4), and under SIMDe's emulation where there is none (tests/kernels/test_native_vnni.py).
#include "simd_avx512.h"
// After the lanes.
#include "bags.h"
#include "interaction.h"
#include "quantize_table.h"
#include "run.h"

recpress::Status recpress::run_vnni(const Call& call) { return run(call); }
recpress::Status recpress::bags_vnni(const Bags& call) { return bags(call); }
recpress::Status recpress::quantize_rows_vnni(const RowsToQuantize& call) { return quantize_table(call); }
recpress::Status recpress::dots_vnni(const Interaction& call) { return dots(call); }
recpress::Status recpress::second_order_vnni(const Interaction& call) { return second_order(call); }
