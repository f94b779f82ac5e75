// Pooled look-ups in tables of int8 and int4 rows. Included after a simd_*.h; each translation unit makes one `bags`.
//
//   out = sum_i weight[i] * (scale_i * code_i + bias_i), divided by the count where the pooling is "mean"
//
// Each product and each sum is rounded by itself, the indices in their order, from 0: the reference's bits.
#pragma once

#include "abi.h"
#include "halves.h"

namespace {

using recpress::Bags;
using recpress::Table;

// Rows asked for ahead of their use. A row is one to three cache lines anywhere in a table, some 100 ns away, of which
// a core fetches about 20 at a time. Of bags 16 are as good for rows of one line and better by 2 to 4 % for longer ones.
constexpr int64_t kAhead = 32, kAheadInBags = 16;

#ifndef RP_CODES_IN_LANES
// n < W codes with zeros behind them, the first n lanes, and the pair behind the codes, without masks.
inline F load_codes(const uint8_t* p, int64_t n) {
    uint8_t codes[W] = {};
    for (int64_t i = 0; i < n; i++) codes[i] = p[i];
    return load_codes(codes);
}
inline F load_nibbles(const uint8_t* p, int64_t n) {
    uint8_t codes[W / 2] = {};
    for (int64_t i = 0; i < (n + 1) / 2; i++) codes[i] = p[i];
    return load_nibbles(codes);
}
inline void store(float* p, F a, int64_t n) {
    float lanes[W];
    store(lanes, a);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}
inline void load_scale_bias(const uint8_t* p, F* scale, F* bias) {
    uint16_t pair[2];
    std::memcpy(pair, p, 4);
    *scale = set1(half_to_float(pair[0]));
    *bias = set1(half_to_float(pair[1]));
}
#endif

// Bytes of a row's codes.
inline int64_t code_bytes(const Table& table) { return (table.dim * table.bits + 7) / 8; }

inline int64_t last_byte(const Table& table) { return code_bytes(table) + recpress::kTail - 1; }

// As many lines for each row of a table, so that no branch depends on where in a line the row begins.
inline void prefetch(const uint8_t* row, int64_t last) {
    for (int64_t at = 0; at < last; at += 64) __builtin_prefetch(row + at);
    __builtin_prefetch(row + last);
}

// W codes from column `at` on, an even one, or rest < W of them.
template <int BITS, bool PART>
inline F codes_at(const uint8_t* row, int64_t at, int64_t rest) {
    if (BITS == 8) return PART ? load_codes(row + at, rest) : load_codes(row + at);
    return PART ? load_nibbles(row + at / 2, rest) : load_nibbles(row + at / 2);
}

// One bag of one table.
template <class Index>
struct Bag {
    const Table& table;
    const Index* indices;
    int64_t count;
    const float* weights;  // null: none
    bool mean;
};

// Columns [at, at + N * W + rest) of a bag; the sums stay in registers. rest < W is 0 unless N is 0.
// Before each row `ask` asks for a later one: a whole bag's rows asked for at once would wait for each other.
template <int BITS, int N, bool WEIGHTED, class Index, class Ask>
inline void pool_columns(const Bag<Index>& bag, int64_t at, int64_t rest, float* out, Ask ask) {
    constexpr int kLanes = N ? N : 1;
    F sum[kLanes];
    for (int c = 0; c < kLanes; c++) sum[c] = set1(0.0f);
    int64_t tail = code_bytes(bag.table);
    for (int64_t i = 0; i < bag.count; i++) {
        ask();
        const uint8_t* row = bag.table.rows + int64_t(bag.indices[i]) * bag.table.stride;
        F scale, bias;
        load_scale_bias(row + tail, &scale, &bias);
        for (int c = 0; c < kLanes; c++) {
            F codes = codes_at<BITS, N == 0>(row, at + c * W, rest);
            F value = codes * scale + bias;
            if (WEIGHTED) value = value * set1(bag.weights[i]);
            sum[c] = sum[c] + value;
        }
    }
    F count = set1(float(bag.count));
    for (int c = 0; c < kLanes; c++) {
        if (bag.mean && bag.count > 1) sum[c] = sum[c] / count;
        if (N) store(out + at + c * W, sum[c]);
        else store(out + at, sum[c], rest);
    }
}

template <int BITS, int N, bool WEIGHTED, class Index, class Ask>
inline void next_columns(const Bag<Index>& bag, int64_t* at, float* out, Ask ask) {
    int64_t rest = N ? 0 : bag.table.dim - *at;
    if (*at == 0) pool_columns<BITS, N, WEIGHTED>(bag, 0, rest, out, ask);
    else pool_columns<BITS, N, WEIGHTED>(bag, *at, rest, out, [] {});
    *at += N ? N * W : rest;
}

template <int BITS, bool WEIGHTED, class Index, class Ask>
inline void pool_codes(const Bag<Index>& bag, float* out, Ask ask) {
    int64_t dim = bag.table.dim, at = 0;
    while (at + 8 * W <= dim) next_columns<BITS, 8, WEIGHTED>(bag, &at, out, ask);
    if (at + 4 * W <= dim) next_columns<BITS, 4, WEIGHTED>(bag, &at, out, ask);
    if (at + 2 * W <= dim) next_columns<BITS, 2, WEIGHTED>(bag, &at, out, ask);
    if (at + W <= dim) next_columns<BITS, 1, WEIGHTED>(bag, &at, out, ask);
    if (at < dim) next_columns<BITS, 0, WEIGHTED>(bag, &at, out, ask);
}

template <bool WEIGHTED, class Index, class Ask>
inline void pool(const Bag<Index>& bag, float* out, Ask ask) {
    if (bag.table.bits == 8) pool_codes<8, WEIGHTED>(bag, out, ask);
    else pool_codes<4, WEIGHTED>(bag, out, ask);
}

template <class Index>
inline bool outside(const Table& table, Index index) { return uint64_t(int64_t(index)) >= uint64_t(table.count); }

// Bags: table by table, as the indices lie.

template <class Index>
recpress::Status check_bags(const Bags& call, const Index* indices, const Index* offsets) {
    int64_t bags = call.table_count * call.batch;
    if (offsets[0] != 0 || int64_t(offsets[bags]) != call.index_count) return recpress::kOffsets;
    bool down = false;
    for (int64_t i = 0; i < bags; i++) down |= offsets[i + 1] < offsets[i];
    if (down) return recpress::kOffsets;
    for (int64_t t = 0; t < call.table_count; t++) {
        bool bad = false;
        int64_t end = offsets[(t + 1) * call.batch];
        for (int64_t i = offsets[t * call.batch]; i < end; i++) bad |= outside(call.tables[t], indices[i]);
        if (bad) return recpress::kIndex;
    }
    return recpress::kOk;
}

// Asks for the rows of bags in their order, across tables. What it needs of a table stays in registers: to read it anew
// for each row took 3 to 15 % of all of the time.
template <class Index>
struct Ahead {
    const Bags& call;
    const Index *indices, *offsets;
    int64_t at = 0, end = 0, next = 0, stride = 0, last = 0;
    const uint8_t* rows = nullptr;

    void one() {
        if (__builtin_expect(at == end, 0) && !next_table()) return;
        prefetch(rows + int64_t(indices[at++]) * stride, last);
    }

    // Whether there are rows left; the table of the next one is `rows`.
    __attribute__((noinline)) bool next_table() {
        while (at == end) {
            if (next == call.table_count) return false;
            const Table& table = call.tables[next++];
            rows = table.rows, stride = table.stride, last = last_byte(table);
            end = offsets[next * call.batch];
        }
        return true;
    }
};

template <bool WEIGHTED, class Index>
recpress::Status run_bags(const Bags& call) {
    auto indices = static_cast<const Index*>(call.indices);
    auto offsets = static_cast<const Index*>(call.offsets);
    if (auto status = check_bags(call, indices, offsets)) return status;
    int64_t width = 0;
    for (int64_t t = 0; t < call.table_count; t++) width += call.tables[t].dim;
    Ahead<Index> ahead{call, indices, offsets};
    for (int64_t i = 0; i < kAheadInBags; i++) ahead.one();
    float* out = call.out;
    for (int64_t t = 0; t < call.table_count; t++) {
        const Index* bounds = offsets + t * call.batch;
        for (int64_t b = 0; b < call.batch; b++) {
            int64_t begin = bounds[b], end = bounds[b + 1];
            Bag<Index> bag{call.tables[t], indices + begin, end - begin, WEIGHTED ? call.weights + begin : nullptr,
                           call.mean};
            pool<WEIGHTED>(bag, out + b * width, [&] { ahead.one(); });
        }
        out += call.tables[t].dim;
    }
    return recpress::kOk;
}

// Single look-ups: a block of rows of the batch in one table after the other. Up to kSmall rows, a block is one row,
// whose look-ups are all asked for at once: 0.65 to 0.75 of the time of larger blocks at 16 to 256 rows, 26 tables.
// Beyond, larger blocks keep fewer pages in use: 0.75 to 0.9 at 4096 rows of 16 or 64 numbers, and 1.1 of 128.

constexpr int64_t kSmall = 512;
constexpr int64_t kBlock = 512;

template <class Index>
struct Column {
    const Index* first;
    int64_t stride;
    const Index& operator[](int64_t b) const { return first[b * stride]; }
};

template <class Index>
Column<Index> column(const Bags& call, int64_t row, int64_t table) {
    int64_t at = row * call.row_stride + call.tables[table].column * call.column_stride;
    return {static_cast<const Index*>(call.indices) + at, call.row_stride};
}

// Asks for the rows of a block, table by table.
template <class Index>
struct AheadInBlock {
    const Bags& call;
    int64_t row, rows, at = 0, table = 0;

    void one() {
        if (table == call.table_count) return;
        const Table& from = call.tables[table];
        prefetch(from.rows + int64_t(column<Index>(call, row, table)[at]) * from.stride, last_byte(from));
        if (++at == rows) at = 0, table++;
    }
};

template <class Index>
void run_block(const Bags& call, int64_t row, int64_t rows, int64_t width, float* out) {
    AheadInBlock<Index> ahead{call, row, rows};
    for (int64_t i = 0; i < kAhead; i++) ahead.one();
    if (call.front)
        for (int64_t b = 0; b < rows; b++)
            std::memcpy(out + b * width, call.front + (row + b) * call.front_stride, size_t(call.front_width) * 4);
    out += call.front_width;
    for (int64_t t = 0; t < call.table_count; t++) {
        auto indices = column<Index>(call, row, t);
        for (int64_t b = 0; b < rows; b++) {
            Bag<Index> bag{call.tables[t], &indices[b], 1, nullptr, false};
            pool<false>(bag, out + b * width, [&] { ahead.one(); });
        }
        out += call.tables[t].dim;
    }
}

template <class Index>
recpress::Status run_rows(const Bags& call) {
    int64_t width = call.front_width;
    bool bad = false;
    for (int64_t t = 0; t < call.table_count; t++) {
        auto indices = column<Index>(call, 0, t);
        for (int64_t b = 0; b < call.batch; b++) bad |= outside(call.tables[t], indices[b]);
        width += call.tables[t].dim;
    }
    if (bad) return recpress::kIndex;
    int64_t block = call.batch > kSmall ? kBlock : 1;
    for (int64_t row = 0; row < call.batch; row += block) {
        int64_t rows = call.batch - row < block ? call.batch - row : block;
        run_block<Index>(call, row, rows, width, call.out + row * width);
    }
    return recpress::kOk;
}

template <class Index>
recpress::Status bags(const Bags& call) {
    if (!call.offsets) return run_rows<Index>(call);
    return call.weights ? run_bags<true, Index>(call) : run_bags<false, Index>(call);
}

recpress::Status bags(const Bags& call) { return call.wide ? bags<int64_t>(call) : bags<int32_t>(call); }

}  // namespace
