// A chunk of rows through all layers of a call. Included after a simd_*.h; each translation unit makes one `run`.
#pragma once

#include "abi.h"
#include "halves.h"
#include "multiply.h"
#include "pack.h"

namespace {

using recpress::Call;
using recpress::Layer;

inline int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

inline void widen(const uint16_t* x, int64_t count, int32_t dtype, float* to) {
    if (dtype == recpress::kBFloat16) {
        for (int64_t i = 0; i < count; i++) to[i] = bfloat_to_float(x[i]);
        return;
    }
    int64_t i = 0;
#ifdef RP_HALF_IN_LANES
    for (; i + W <= count; i += W) store(to + i, load_half(x + i));
#endif
    for (; i < count; i++) to[i] = half_to_float(x[i]);
}

inline void narrow(const float* y, int64_t count, int32_t dtype, uint16_t* to) {
    if (dtype == recpress::kBFloat16) {
        for (int64_t i = 0; i < count; i++) to[i] = float_to_bfloat(y[i]);
        return;
    }
    int64_t i = 0;
#ifdef RP_HALF_IN_LANES
    for (; i + W <= count; i += W) store_half(to + i, load(y + i));
#endif
    for (; i < count; i++) to[i] = float_to_half(y[i]);
}

// What one call a layer would have rounded its output to.
inline void round_through(float* y, int64_t count, int32_t dtype, uint16_t* halves) {
    narrow(y, count, dtype, halves);
    widen(halves, count, dtype, y);
}

// clamp(rne(y / scale) + zero_point, 0, 127); false where y holds a NaN. Infinity meets a bound.
inline bool quantize_output(const float* y, int64_t count, recpress::Static pair, uint8_t* to) {
    Quotient by(pair.scale, pair.zero_point);
    F most = set1(200.0f * pair.scale);
    bool clean = true;
    for (int64_t i = 0; i < count; i += W) {
        F value = i + W <= count ? load(y + i) : load(y + i, count - i);
        clean &= !any_nan(value);
        I whole[1] = {by.whole(by.exact(max(set1(0.0f) - most, min(most, value))))};
        uint8_t bytes[W];
        store_clamped(bytes, whole);
        std::memcpy(to + i, bytes, size_t(count - i < W ? count - i : W));
    }
    return clean;
}

// The scratch of one call, made once for all its layers.
struct Buffers {
    // A chunk's floats stay in the second-level cache from one layer to the next.
    static constexpr int64_t kChunkRows = 48;

    int64_t chunk, q_stride, y_stride;
    float *y[2], *wide;  // wide: one row of halves as floats
    float* floats;       // [chunk, q_stride], where the first layer keeps them
    uint16_t* halves;
    uint8_t* q;
    Row* rows;
    int8_t* panel;  // one panel packed on the fly, with its sums

    bool make(const Call& call) {
        int64_t k = 0, n = 0;
        for (int32_t i = 0; i < call.layer_count; i++) {
            k = k < call.layers[i].k_padded ? call.layers[i].k_padded : k;
            n = n < call.layers[i].n ? call.layers[i].n : n;
        }
        // 64 bytes more than a power of two: rows 4 KiB apart would all fall into one set of the first-level cache.
        q_stride = round_up(k, 64) + 64;
        y_stride = round_up(n, recpress::kPanel) + recpress::kPanel;
        chunk = call.rows < kChunkRows ? call.rows : kChunkRows;
        int64_t y_bytes = chunk * y_stride * 4, q_bytes = chunk * q_stride;
        int64_t wide_bytes = call.x_dtype == recpress::kFloat32 ? 0 : q_stride * 4;
        int64_t row_bytes = round_up(chunk * int64_t(sizeof(Row)), 64);
        int64_t panel_bytes = call.canonical ? k * recpress::kPanel : 0;
        int64_t float_bytes = call.layers[0].kind == recpress::Kind::kFloats ? chunk * q_stride * 4 : 0;
        auto* at = static_cast<uint8_t*>(recpress::scratch(
            size_t(2 * y_bytes + q_bytes + wide_bytes + y_stride * 2 + row_bytes + panel_bytes + float_bytes)));
        if (!at) return false;
        y[0] = reinterpret_cast<float*>(at), at += y_bytes;
        y[1] = reinterpret_cast<float*>(at), at += y_bytes;
        q = at, at += q_bytes;
        wide = reinterpret_cast<float*>(at), at += wide_bytes;
        floats = reinterpret_cast<float*>(at), at += float_bytes;
        rows = reinterpret_cast<Row*>(at), at += row_bytes;
        halves = reinterpret_cast<uint16_t*>(at), at += y_stride * 2;
        panel = reinterpret_cast<int8_t*>(at);
        return true;
    }
};

// The chunk's rows as floats, for a layer that does not quantise them.
inline void keep_chunk(const Call& call, int32_t layer, int64_t first, const Buffers& b, Chunk* c) {
    int64_t k = call.layers[layer].k;
    c->floats = layer > 0 ? b.y[(layer - 1) & 1] : b.floats;
    c->floats_stride = layer > 0 ? b.y_stride : b.q_stride;
    for (int64_t r = 0; r < c->count; r++) {
        float* row = c->floats + r * c->floats_stride;
        int64_t at = (first + r) * call.x_stride;
        if (layer > 0 && call.x_dtype != recpress::kFloat32)
            round_through(row, k, call.x_dtype, b.halves);
        else if (layer == 0 && call.x_dtype != recpress::kFloat32)
            widen(static_cast<const uint16_t*>(call.x) + at, k, call.x_dtype, row);
        else if (layer == 0)
            std::memcpy(row, static_cast<const float*>(call.x) + at, size_t(k) * sizeof(float));
    }
}

// The calibrated pair of a layer's inputs; the call's stands in place of the first layer's.
inline recpress::Static input_pair(const Call& call, int32_t layer) {
    return layer == 0 && call.x_pair.scale != 0.0f ? call.x_pair : call.layers[layer].x_pair;
}

// Quantise the chunk's rows of the first layer's input.
inline recpress::Status quantize_input(const Call& call, int64_t first, const Buffers& b, int64_t count) {
    int64_t k = call.layers[0].k, k_padded = call.layers[0].k_padded;
    recpress::Static pair = input_pair(call, 0);
    if (call.x_dtype == recpress::kFloat32) {
        const float* x = static_cast<const float*>(call.x) + first * call.x_stride;
        quantize_rows(x, call.x_stride, count, k, k_padded, pair, b.rows, b.q, b.q_stride);
        return recpress::kOk;
    }
    for (int64_t r = 0; r < count; r++) {
        uint8_t* q = b.q + r * b.q_stride;
        int64_t at = (first + r) * call.x_stride;
        if (call.x_dtype == recpress::kUInt8) {
            if (!copy_row(static_cast<const uint8_t*>(call.x) + at, k, k_padded, q)) return recpress::kAbove127;
            b.rows[r] = {pair.scale, pair.zero_point};
            continue;
        }
        widen(static_cast<const uint16_t*>(call.x) + at, k, call.x_dtype, b.wide);
        quantize_rows(b.wide, 0, 1, k, k_padded, pair, b.rows + r, q, 0);
    }
    return recpress::kOk;
}

// Quantise what the layer before left.
inline void quantize_between(const Call& call, int32_t layer, const Buffers& b, int64_t count) {
    int64_t k = call.layers[layer].k;
    float* y = b.y[(layer - 1) & 1];
    if (call.x_dtype != recpress::kFloat32)
        for (int64_t r = 0; r < count; r++) round_through(y + r * b.y_stride, k, call.x_dtype, b.halves);
    int64_t k_padded = call.layers[layer].k_padded;
    quantize_rows(y, b.y_stride, count, k, k_padded, input_pair(call, layer), b.rows, b.q, b.q_stride);
}

// The only layer, from canonical weights: each panel is packed into scratch, then used for the whole chunk.
inline void multiply_canonical(const Call& call, const Buffers& b, const Chunk& chunk) {
    const Layer& whole = call.layers[0];
    for (int64_t n = 0; n < whole.n; n += recpress::kPanel) {
        int64_t columns = whole.n - n < recpress::kPanel ? whole.n - n : recpress::kPanel;
        int32_t sums[recpress::kPanel] = {};
        float scales[recpress::kPanel] = {}, bias[recpress::kPanel] = {};
        auto* pack = whole.kind == recpress::Kind::kFloats ? recpress::pack_float_panel : recpress::pack_panel;
        pack(call.canonical + n * whole.k, columns, whole.k, whole.k_padded, b.panel, sums);
        std::memcpy(scales, whole.scales + n, size_t(columns) * 4);
        if (whole.bias) std::memcpy(bias, whole.bias + n, size_t(columns) * 4);
        Layer one = whole;
        one.n = columns, one.weights = b.panel, one.sums = sums, one.scales = scales, one.bias = bias;
        Chunk part = chunk;
        part.y = chunk.y + n;
        multiply(one, part);
    }
}

// Bring the chunk's floats into the dtype of y.
inline recpress::Status write_chunk(const Call& call, int64_t first, const Chunk& chunk) {
    int64_t n = call.layers[call.layer_count - 1].n;
    for (int64_t r = 0; r < chunk.count; r++) {
        const float* y = chunk.y + r * chunk.y_stride;
        int64_t at = (first + r) * n;
        if (call.y_dtype == recpress::kUInt8) {
            if (!quantize_output(y, n, call.y_pair, static_cast<uint8_t*>(call.y) + at)) return recpress::kNanToInteger;
        } else {
            narrow(y, n, call.y_dtype, static_cast<uint16_t*>(call.y) + at);
        }
    }
    return recpress::kOk;
}

// y = cross * y + x, each rounded by itself: the cross layer of DCN-v2.
inline void cross_chunk(const Call& call, int64_t first, int64_t n, const Chunk& chunk) {
    for (int64_t r = 0; r < chunk.count; r++) {
        float* y = chunk.y + r * chunk.y_stride;
        const float* by = call.cross + (first + r) * call.cross_stride;
        const float* x = static_cast<const float*>(call.x) + (first + r) * call.x_stride;
        int64_t i = 0;
        for (; i + W <= n; i += W) store(y + i, load(by + i) * load(y + i) + load(x + i));
        for (; i < n; i++) y[i] = by[i] * y[i] + x[i];
    }
}

inline recpress::Status run(const Call& call) {
    if (call.rows == 0) return recpress::kOk;
    Buffers b;
    if (!b.make(call)) return recpress::kNoMemory;
    bool direct = call.y_dtype == recpress::kFloat32;
    for (int64_t first = 0; first < call.rows; first += b.chunk) {
        int64_t count = call.rows - first < b.chunk ? call.rows - first : b.chunk;
        for (int32_t i = 0; i < call.layer_count; i++) {
            Chunk chunk{b.q, b.q_stride, b.rows, count, b.y[i & 1], b.y_stride, nullptr, 0};
            bool last = i + 1 == call.layer_count;
            if (last && direct) {
                chunk.y = static_cast<float*>(call.y) + first * call.layers[i].n;
                chunk.y_stride = call.layers[i].n;
            }
            if (call.layers[i].kind == recpress::Kind::kFloats)
                keep_chunk(call, i, first, b, &chunk);
            else if (i > 0)
                quantize_between(call, i, b, count);
            else if (auto status = quantize_input(call, first, b, count))
                return status;
            call.canonical ? multiply_canonical(call, b, chunk) : multiply(call.layers[i], chunk);
            if (last && call.cross) cross_chunk(call, first, call.layers[i].n, chunk);
            if (last && !direct)
                if (auto status = write_chunk(call, first, chunk)) return status;
        }
    }
    return recpress::kOk;
}

}  // namespace
