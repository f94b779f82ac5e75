// One row of activations to 7 bits, by int8_linear/reference.py. Included after a simd_*.h.
#pragma once

#include <limits>

#include "abi.h"

namespace {

struct Row {
    float scale;  // NaN where the row is not finite
    int32_t zero;
};

inline float lanes_min(F a) {
    float v[W];
    store(v, a);
    float m = v[0];
    for (int i = 1; i < W; i++) m = v[i] < m ? v[i] : m;
    return m;
}
inline float lanes_max(F a) { return -lanes_min(set1(0.0f) - a); }

// The last k % W values of a row with zeros behind them; a zero never widens a range that holds zero.
inline F load_tail(const float* x, int64_t count) {
    float padded[W] = {};
    std::memcpy(padded, x, size_t(count) * sizeof(float));
    return load(padded);
}

// low = min(0, x), high = max(0, x); whether every value is finite.
inline bool range(const float* x, int64_t k, float* low, float* high) {
    // Two of each: one chain of minimums would wait for its own latency.
    F lo0 = set1(0.0f), lo1 = lo0, hi0 = lo0, hi1 = lo0, poison0 = lo0, poison1 = lo0, zero = lo0;
    int64_t i = 0;
    for (; i + 2 * W <= k; i += 2 * W) {
        F a = load(x + i), b = load(x + i + W);
        lo0 = min(a, lo0), hi0 = max(a, hi0), poison0 = poison0 + a * zero;
        lo1 = min(b, lo1), hi1 = max(b, hi1), poison1 = poison1 + b * zero;
    }
    for (; i < k; i += W) {
        F a = i + W <= k ? load(x + i) : load_tail(x + i, k - i);
        lo0 = min(a, lo0), hi0 = max(a, hi0), poison0 = poison0 + a * zero;
    }
    *low = lanes_min(min(lo0, lo1));
    *high = lanes_max(max(hi0, hi1));
    return !any_nan(poison0 + poison1);  // infinity times zero is NaN
}

// rne(x / scale), clamped to [floor, ceiling], whole numbers; x finite.
//
// x * (1 / scale) differs from the rounded quotient by less than 3e-5 here (two roundings of a value below 128), so
// it rounds to the same whole number unless it lies that near to a half. Then, and only then, divide: a division
// of 8 floats costs as much as all the rest of this loop.
struct Quotient {
    F scale, inverse, floor, ceiling;
    bool divide;  // the inverse of a tiny scale overflows

    Quotient(float s, int32_t zero)
        : scale(set1(s)), inverse(set1(1.0f / s)), floor(set1(float(-zero))), ceiling(set1(float(127 - zero))),
          divide(!(s > 1e-37f && s < 1e37f)) {}

    F clamp(F t) const { return min(max(t, floor), ceiling); }
    F exact(F x) const { return clamp(x / scale); }
    F fast(F x) const { return clamp(x * inverse); }
};

constexpr float kSure = 0.5f - 5e-5f;

template <int C>
inline void quantize_block(const Quotient& by, const float* x, I zero, uint8_t* q) {
    F t[C], whole[C], away = set1(0.0f);
    for (int c = 0; c < C; c++) {
        t[c] = by.fast(load(x + c * W));
        whole[c] = round_even(t[c]);
        away = max(abs(t[c] - whole[c]), away);
    }
    if (by.divide || !all_at_most(away, set1(kSure))) {
        for (int c = 0; c < C; c++) whole[c] = by.exact(load(x + c * W));
    }
    for (int c = 0; c < C; c++) store_bytes(q + c * W, to_int(whole[c]) + zero);
}

// q[0, k_padded) = clamp(rne(x / scale) + zero, 0, 127); what lies beyond k meets zero weights.
inline void quantize_values(const float* x, int64_t k, int64_t k_padded, Row row, uint8_t* q) {
    Quotient by(row.scale, row.zero);
    I zero = set1(row.zero);
    int64_t i = 0;
    for (; i + 4 * W <= k; i += 4 * W) quantize_block<4>(by, x + i, zero, q + i);
    for (; i + W <= k; i += W) quantize_block<1>(by, x + i, zero, q + i);
    if (i < k) {
        float padded[W] = {};
        std::memcpy(padded, x + i, size_t(k - i) * sizeof(float));
        uint8_t last[W];
        quantize_block<1>(by, padded, zero, last);
        std::memcpy(q + i, last, size_t(k - i));
    }
    std::memset(q + k, 0, size_t(k_padded - k));
}

inline Row not_finite(int64_t k_padded, uint8_t* q) {
    std::memset(q, 0, size_t(k_padded));
    return {std::numeric_limits<float>::quiet_NaN(), 0};
}

// Dynamic: the range of this row.
inline Row quantize_row(const float* x, int64_t k, int64_t k_padded, uint8_t* q) {
    float lo, hi;
    bool finite = range(x, k, &lo, &hi);
    float span = hi - lo;
    if (!finite || !(span <= std::numeric_limits<float>::max())) return not_finite(k_padded, q);
    float scale = span / 127.0f;
    if (scale == 0.0f) scale = 1.0f;
    float z[W];
    store(z, min(max(round_even(set1(-lo / scale)), set1(0.0f)), set1(127.0f)));
    Row row{scale, int32_t(z[0])};
    quantize_values(x, k, k_padded, row, q);
    return row;
}

// Static: a calibrated pair.
inline Row quantize_row(const float* x, int64_t k, int64_t k_padded, recpress::Static pair, uint8_t* q) {
    float lo, hi;
    if (!range(x, k, &lo, &hi)) return not_finite(k_padded, q);
    Row row{pair.scale, pair.zero_point};
    quantize_values(x, k, k_padded, row, q);
    return row;
}

// Already quantised; false where a value is above 127.
inline bool copy_row(const uint8_t* x, int64_t k, int64_t k_padded, uint8_t* q) {
    uint8_t seen = 0;
    for (int64_t i = 0; i < k; i++) seen |= x[i];
    std::memcpy(q, x, size_t(k));
    std::memset(q + k, 0, size_t(k_padded - k));
    return seen < 128;
}

}  // namespace
