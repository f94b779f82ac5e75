// The exported functions of tables of int8 and int4 rows.
#include "abi.h"

using namespace recpress;

namespace {

Status dispatch(int32_t isa, const Bags& call) {
    isa = resolve(isa);
    if (isa < 0) return kUnknownIsa;
#if defined(RP_X86) || defined(RECPRESS_SIMDE)
    if (isa == kAvx512Vnni) return bags_vnni(call);
#endif
#if defined(RP_X86)
    if (isa == kAvx2) return bags_avx2(call);
#endif
    return bags_portable(call);
}

Status dispatch(int32_t isa, const RowsToQuantize& call) {
    isa = resolve(isa);
    if (isa < 0) return kUnknownIsa;
#if defined(RP_X86) || defined(RECPRESS_SIMDE)
    if (isa == kAvx512Vnni) return quantize_rows_vnni(call);
#endif
#if defined(RP_X86)
    if (isa == kAvx2) return quantize_rows_avx2(call);
#endif
    return quantize_rows_portable(call);
}

}  // namespace

// Bags in the table-batched form. Nothing is read of a table, and nothing written, before all offsets and indices are
// found valid.
RP_EXPORT int32_t recpress_bags(const Table* tables, int64_t table_count, const void* indices, int64_t index_count,
                                int32_t wide, const void* offsets, int64_t batch, const float* weights, int32_t mean,
                                float* out, int32_t isa) {
    Bags call{tables, table_count, batch, indices, wide != 0, mean != 0, out, offsets, index_count, weights};
    return dispatch(isa, call);
}

// One look-up a table and row of the batch, each table's indices in its own column, behind the numbers of `front`.
RP_EXPORT int32_t recpress_rows(const Table* tables, int64_t table_count, const void* indices, int64_t batch,
                                int64_t row_stride, int64_t column_stride, int32_t wide, const float* front,
                                int64_t front_width, int64_t front_stride, float* out, int32_t isa) {
    Bags call{tables,  table_count, batch,   indices,    wide != 0,     false, out,        nullptr,
              0,       nullptr,     row_stride, column_stride, front, front_width, front_stride};
    return dispatch(isa, call);
}

// Float rows to int8 or int4 rows. Ends at the first row that cannot be described; those before it are written.
RP_EXPORT int32_t recpress_quantize_rows(const float* x, int64_t rows, int64_t dim, int64_t x_stride, int32_t bits,
                                         uint8_t* out, int64_t out_stride, int32_t isa) {
    return dispatch(isa, RowsToQuantize{x, rows, dim, x_stride, bits, out, out_stride});
}
