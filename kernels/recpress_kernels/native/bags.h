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

// Rows asked for ahead of their use, into the second-level cache: of the first level's misses a core keeps some 20 in
// flight, of the second's more. Asked for into the first level, rows of 16, 64 and 128 numbers took 7.5, 16 and 27 ns each
// in bags of 20, at any distance; so 3, 5 and 11 (Zen 4).
constexpr int64_t kAhead = 64;

// An output beyond this is out of the caches before anybody reads it: written past them, its lines are not read first.
constexpr int64_t kStreamBytes = 16 << 20;

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

// As many lines for each row of a table, so that no branch depends on where in a line the row begins. A last line that
// holds less than 4 bytes more than those before is that of the last byte, in tables whose rows begin at multiples of 4.
inline void prefetch(const uint8_t* row, int64_t last) {
    for (int64_t at = 0; at < last - 3; at += 64) __builtin_prefetch(row + at, 0, 2);
    __builtin_prefetch(row + last, 0, 2);
}

// The values of a row, whose scale and bias are at `tail`; get() gives W of them from column `at` on, an even one, or
// rest < W of them.
template <int BITS>
struct Values;

template <>
struct Values<8> {
    F scale, bias;

    explicit Values(const uint8_t* tail) { load_scale_bias(tail, &scale, &bias); }

    template <bool PART>
    F get(const uint8_t* row, int64_t at, int64_t rest) const {
        return (PART ? load_codes(row + at, rest) : load_codes(row + at)) * scale + bias;
    }
};

#ifdef RP_NIBBLES_LOOKED_UP
template <>
struct Values<4> {
    F all;

    explicit Values(const uint8_t* tail) {
        F scale, bias;
        load_scale_bias(tail, &scale, &bias);
        all = nibble_values(scale, bias);
    }

    template <bool PART>
    F get(const uint8_t* row, int64_t at, int64_t rest) const {
        return PART ? look_up_nibbles(all, row + at / 2, rest) : look_up_nibbles(all, row + at / 2);
    }
};
#else
template <>
struct Values<4> : Values<8> {
    using Values<8>::Values;

    template <bool PART>
    F get(const uint8_t* row, int64_t at, int64_t rest) const {
        return (PART ? load_nibbles(row + at / 2, rest) : load_nibbles(row + at / 2)) * scale + bias;
    }
};
#endif

// One bag of one table. STREAM: its sums are written past the caches; known when compiled, since a branch at each store
// took 25 % of bags of one.
template <bool PAST, class Index>
struct Bag {
    static constexpr bool STREAM = PAST;
    const Table& table;
    const Index* indices;
    int64_t count;
    const float* weights;  // null: none
    bool mean;
};

// Columns [at, at + N * W + rest) of a bag; the sums stay in registers. rest < W is 0 unless N is 0.
// Before each row `ask` asks for a later one: a whole bag's rows asked for at once would wait for each other.
template <int BITS, int N, bool WEIGHTED, class AnyBag, class Ask>
inline void pool_columns(const AnyBag& bag, int64_t at, int64_t rest, float* out, Ask ask) {
    constexpr int kLanes = N ? N : 1;
    F sum[kLanes];
    for (int c = 0; c < kLanes; c++) sum[c] = set1(0.0f);
    int64_t tail = code_bytes(bag.table);
    for (int64_t i = 0; i < bag.count; i++) {
        ask();
        const uint8_t* row = bag.table.rows + int64_t(bag.indices[i]) * bag.table.stride;
        Values<BITS> values(row + tail);
        for (int c = 0; c < kLanes; c++) {
            F value = values.template get<N == 0>(row, at + c * W, rest);
            if (WEIGHTED) value = value * set1(bag.weights[i]);
            sum[c] = sum[c] + value;
        }
    }
    F count = set1(float(bag.count));
    for (int c = 0; c < kLanes; c++) {
        if (bag.mean && bag.count > 1) sum[c] = sum[c] / count;
        if (N == 0) store(out + at, sum[c], rest);
        else if (AnyBag::STREAM) stream(out + at + c * W, sum[c]);
        else store(out + at + c * W, sum[c]);
    }
}

template <int BITS, int N, bool WEIGHTED, class AnyBag, class Ask>
inline void next_columns(const AnyBag& bag, int64_t* at, float* out, Ask ask) {
    int64_t rest = N ? 0 : bag.table.dim - *at;
    if (*at == 0) pool_columns<BITS, N, WEIGHTED>(bag, 0, rest, out, ask);
    else pool_columns<BITS, N, WEIGHTED>(bag, *at, rest, out, [] {});
    *at += N ? N * W : rest;
}

template <int BITS, bool WEIGHTED, class AnyBag, class Ask>
inline void pool_codes(const AnyBag& bag, float* out, Ask ask) {
    int64_t dim = bag.table.dim, at = 0;
    while (at + 8 * W <= dim) next_columns<BITS, 8, WEIGHTED>(bag, &at, out, ask);
    if (at + 4 * W <= dim) next_columns<BITS, 4, WEIGHTED>(bag, &at, out, ask);
    if (at + 2 * W <= dim) next_columns<BITS, 2, WEIGHTED>(bag, &at, out, ask);
    if (at + W <= dim) next_columns<BITS, 1, WEIGHTED>(bag, &at, out, ask);
    if (at < dim) next_columns<BITS, 0, WEIGHTED>(bag, &at, out, ask);
}

template <bool WEIGHTED, class AnyBag, class Ask>
inline void pool(const AnyBag& bag, float* out, Ask ask) {
    if (bag.table.bits == 8) pool_codes<8, WEIGHTED>(bag, out, ask);
    else pool_codes<4, WEIGHTED>(bag, out, ask);
}

template <class Index>
inline bool outside(const Table& table, Index index) { return uint64_t(int64_t(index)) >= uint64_t(table.count); }

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

// The indices of one table: those of all its bags, or a column of single look-ups.
template <class Index>
struct Column {
    const Index* first;
    int64_t count, step;  // of indices, and from one to the next
};

template <class Index>
inline Column<Index> column(const Bags& call, int64_t table) {
    auto indices = static_cast<const Index*>(call.indices);
    if (!call.offsets) return {indices + call.tables[table].column * call.column_stride, call.batch, call.row_stride};
    auto offsets = static_cast<const Index*>(call.offsets) + table * call.batch;
    return {indices + offsets[0], offsets[call.batch] - offsets[0], 1};
}

template <class Index>
recpress::Status check_rows(const Bags& call) {
    for (int64_t t = 0; t < call.table_count; t++) {
        bool bad = false;
        auto rows = column<Index>(call, t);
        for (int64_t b = 0; b < rows.count; b++) bad |= outside(call.tables[t], rows.first[b * rows.step]);
        if (bad) return recpress::kIndex;
    }
    return recpress::kOk;
}

// Asks for rows in the order of their use, table by table. What it needs of a table stays in registers: to read it anew
// for each row took 3 to 15 % of all of the time.
template <class Index>
struct Ahead {
    const Bags& call;
    int64_t next = 0;  // table
    Column<Index> left{nullptr, 0, 0};
    int64_t stride = 0, last = 0;
    const uint8_t* rows = nullptr;

    void one() {
        if (__builtin_expect(left.count == 0, 0) && !next_table()) return;
        prefetch(rows + int64_t(*left.first) * stride, last);
        left.first += left.step;
        left.count--;
    }

    // Whether there are rows left; the table of the next one is `rows`.
    __attribute__((noinline)) bool next_table() {
        while (left.count == 0) {
            if (next == call.table_count) return false;
            const Table& table = call.tables[next];
            rows = table.rows, stride = table.stride, last = last_byte(table);
            left = column<Index>(call, next++);
        }
        return true;
    }
};

// Whether the output is written past the caches: where it is large, and each table's part of a row made of whole lines.
inline bool streams(const Bags& call, int64_t width) {
    int64_t odd = int64_t(reinterpret_cast<uintptr_t>(call.out) / 4) | call.front_width;
    for (int64_t t = 0; t < call.table_count; t++) odd |= call.tables[t].dim;
    return call.batch * width * 4 >= kStreamBytes && odd % 16 == 0;
}

template <bool WEIGHTED, bool STREAM, class Index>
void run_bags(const Bags& call, int64_t width) {
    for (int64_t b = 0; b < call.batch && call.front; b++)
        std::memcpy(call.out + b * width, call.front + b * call.front_stride, size_t(call.front_width) * 4);
    Ahead<Index> ahead{call};
    for (int64_t i = 0; i < kAhead; i++) ahead.one();
    float* out = call.out + call.front_width;
    const float* weights = call.weights;
    for (int64_t t = 0; t < call.table_count; t++) {
        auto indices = column<Index>(call, t);
        auto offsets = call.offsets ? static_cast<const Index*>(call.offsets) + t * call.batch : nullptr;
        for (int64_t b = 0; b < call.batch; b++) {
            int64_t count = offsets ? offsets[b + 1] - offsets[b] : 1;
            Bag<STREAM, Index> bag{call.tables[t], indices.first, count, weights, call.mean};
            pool<WEIGHTED>(bag, out + b * width, [&] { ahead.one(); });
            indices.first += count * indices.step;
            if (WEIGHTED) weights += count;
        }
        out += call.tables[t].dim;
    }
    if (STREAM) fence();
}

template <class Index>
recpress::Status bags(const Bags& call) {
    auto status = call.offsets ? check_bags(call, static_cast<const Index*>(call.indices),
                                            static_cast<const Index*>(call.offsets))
                               : check_rows<Index>(call);
    if (status) return status;
    int64_t width = call.front_width;
    for (int64_t t = 0; t < call.table_count; t++) width += call.tables[t].dim;
    if (call.weights) run_bags<true, false, Index>(call, width);
    else if (streams(call, width)) run_bags<false, true, Index>(call, width);
    else run_bags<false, false, Index>(call, width);
    return recpress::kOk;
}

recpress::Status bags(const Bags& call) { return call.wide ? bags<int64_t>(call) : bags<int32_t>(call); }

}  // namespace
