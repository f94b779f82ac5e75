// Any CPU.
#include "simd_portable.h"
// After the lanes.
#include "run.h"

recpress::Status recpress::run_portable(const Call& call) { return run(call); }
