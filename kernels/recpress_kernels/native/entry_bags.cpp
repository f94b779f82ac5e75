// The exported functions of tables of int8 and int4 rows.
#include "abi.h"
#include "map_ids.h"

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

bool any_map(const Bags& call) {
    for (int64_t t = 0; t < call.table_count; t++)
        if (call.tables[t].map) return true;
    return false;
}

// A run of ids of one table to where its rows go; false where one is outside and that is an error.
template <class Index>
bool to_rows(const Table& table, const Index* ids, int64_t stride, int64_t count, Index* out) {
    if (table.map) return !map_ids(*table.map, ids, stride, count, out);
    for (int64_t i = 0; i < count; i++) out[i] = ids[i * stride];
    return true;
}

// Bags: the ids of a table lie side by side. Offsets are checked here as far as these runs need it.
template <class Index>
Status map_bags(Bags* call, Index* rows) {
    auto ids = static_cast<const Index*>(call->indices);
    auto offsets = static_cast<const Index*>(call->offsets);
    if (offsets[0] != 0 || int64_t(offsets[call->table_count * call->batch]) != call->index_count) return kOffsets;
    for (int64_t t = 0; t < call->table_count; t++) {
        int64_t begin = offsets[t * call->batch], end = offsets[(t + 1) * call->batch];
        if (begin < 0 || end < begin || end > call->index_count) return kOffsets;
        if (!to_rows(call->tables[t], ids + begin, 1, end - begin, rows + begin)) return kIndex;
    }
    call->indices = rows;
    return kOk;
}

// Single look-ups: the rows of table t become column t.
template <class Index>
Status map_columns(Bags* call, Table* tables, Index* rows) {
    for (int64_t t = 0; t < call->table_count; t++) {
        auto ids = static_cast<const Index*>(call->indices) + call->tables[t].column * call->column_stride;
        if (!to_rows(call->tables[t], ids, call->row_stride, call->batch, rows + t * call->batch)) return kIndex;
        tables[t] = call->tables[t];
        tables[t].column = t;
    }
    call->tables = tables;
    call->indices = rows;
    call->row_stride = 1;
    call->column_stride = call->batch;
    return kOk;
}

// The rows lie in this thread's scratch memory, which the kernels of tables leave alone.
template <class Index>
Status map_call(Bags* call) {
    int64_t count = call->offsets ? call->index_count : call->table_count * call->batch;
    size_t bytes = size_t(call->table_count) * sizeof(Table) + size_t(count) * sizeof(Index);
    auto* tables = static_cast<Table*>(scratch(bytes));
    if (!tables) return kNoMemory;
    auto* rows = reinterpret_cast<Index*>(tables + call->table_count);
    return call->offsets ? map_bags<Index>(call, rows) : map_columns<Index>(call, tables, rows);
}

Status run(int32_t isa, Bags call) {
    if (any_map(call))
        if (auto status = call.wide ? map_call<int64_t>(&call) : map_call<int32_t>(&call)) return status;
    return dispatch(isa, call);
}

}  // namespace

// Bags in the table-batched form. Nothing is read of a table, and nothing written, before all offsets and indices are
// found valid.
RP_EXPORT int32_t recpress_bags(const Table* tables, int64_t table_count, const void* indices, int64_t index_count,
                                int32_t wide, const void* offsets, int64_t batch, const float* weights, int32_t mean,
                                float* out, int32_t isa) {
    return run(isa, {tables, table_count, batch, indices, wide != 0, mean != 0, out, offsets, index_count, weights});
}

// One look-up a table and row of the batch, each table's indices in its own column, behind the numbers of `front`.
RP_EXPORT int32_t recpress_rows(const Table* tables, int64_t table_count, const void* indices, int64_t batch,
                                int64_t row_stride, int64_t column_stride, int32_t wide, const float* front,
                                int64_t front_width, int64_t front_stride, float* out, int32_t isa) {
    return run(isa, {tables,  table_count, batch,      indices,       wide != 0, false,       out,         nullptr,
                     0,       nullptr,     row_stride, column_stride, front,     front_width, front_stride});
}

// Ids [count] to rows of a table, [count].
RP_EXPORT int32_t recpress_map_ids(const IdMap* map, const void* ids, int64_t count, int32_t wide, void* out) {
    bool bad = wide ? map_ids(*map, static_cast<const int64_t*>(ids), 1, count, static_cast<int64_t*>(out))
                    : map_ids(*map, static_cast<const int32_t*>(ids), 1, count, static_cast<int32_t*>(out));
    return bad ? kIndex : kOk;
}

// Float rows to int8 or int4 rows. Ends at the first row that cannot be described; those before it are written.
RP_EXPORT int32_t recpress_quantize_rows(const float* x, int64_t rows, int64_t dim, int64_t x_stride, int32_t bits,
                                         int32_t greedy, uint8_t* out, int64_t out_stride, int32_t isa) {
    return dispatch(isa, RowsToQuantize{x, rows, dim, x_stride, bits, greedy, out, out_stride});
}
