// One row of activations to 7 bits, by int8_linear/reference.py. Included after a simd_*.h.
#pragma once

#include <limits>

#include "abi.h"

namespace {

struct Row {
    float scale;  // NaN where the row is not finite
    int32_t zero;
};

// low = min(0, x), high = max(0, x); false where a value is NaN. Infinity shows in low or high.
inline bool range(const float* x, int64_t k, float* low, float* high) {
    // Two of each: one chain of minimums would wait for its own latency. The sum tells of NaN: additions run beside
    // the minimums, which comparisons would not.
    F lo0 = set1(0.0f), lo1 = lo0, hi0 = lo0, hi1 = lo0, sum0 = lo0, sum1 = lo0;
    int64_t i = 0;
    for (; i + 2 * W <= k; i += 2 * W) {
        F a = load(x + i), b = load(x + i + W);
        lo0 = min(a, lo0), hi0 = max(a, hi0), sum0 = sum0 + a;
        lo1 = min(b, lo1), hi1 = max(b, hi1), sum1 = sum1 + b;
    }
    for (; i < k; i += W) {
        F a = i + W <= k ? load(x + i) : load(x + i, k - i);  // a zero never widens a range that holds zero
        lo0 = min(a, lo0), hi0 = max(a, hi0), sum0 = sum0 + a;
    }
    *low = lowest(min(lo0, lo1));
    *high = highest(max(hi0, hi1));
    if (!any_nan(sum0 + sum1)) return true;
    // Huge values of both signs make a NaN of their sum too.
    for (i = 0; i < k; i++)
        if (x[i] != x[i]) return false;
    return true;
}

// rne(x / scale) + zero, to be clamped to [0, 127]; x finite, |x / scale| below 2^21.
//
// A division of 8 floats costs more than all the rest of this loop, so multiply by the inverse, once a little too
// far and once not far enough: 2^-21 covers the roundings of the inverse, of the quotient and of the product. Where
// both round to the same whole number, so does the quotient; elsewhere, in about one of a thousand blocks of 32 values, divide.
struct Quotient {
    F scale, more, less;
    I offset;
    bool divide;  // the inverse of a tiny scale overflows

    Quotient(float s, int32_t zero)
        : scale(set1(s)), more(set1(1.0f / s * (1.0f + 0x1p-21f))), less(set1(1.0f / s * (1.0f - 0x1p-21f))),
          offset(set1(zero - 0x4b400000)), divide(!(s > 1e-37f && s < 1e37f)) {}

    // Adding 1.5 * 2^23 rounds half to even and leaves the whole number in the low bits.
    F fast(F x, F by) const { return multiply_add(x, by, set1(0x1.8p23f)); }
    F exact(F x) const { return x / scale + set1(0x1.8p23f); }
    I whole(F shifted) const { return bits(shifted) + offset; }
};

// LIMIT keeps calibrated quotients in bounds: beyond 200 steps every value meets one, whatever the zero point.
template <bool LIMIT>
inline F limited(const Quotient& by, F a) {
    F most = set1(200.0f) * by.scale;
    return LIMIT ? min(max(a, set1(0.0f) - most), most) : a;
}

// C vectors of x by division. Out of line, so that the fast loop keeps its registers; it reads x anew.
template <bool LIMIT, int C>
__attribute__((noinline, cold)) void quantize_exactly(const Quotient& by, const float* x, uint8_t* q) {
    I whole[C];
    for (int c = 0; c < C; c++) whole[c] = by.whole(by.exact(limited<LIMIT>(by, load(x + c * W))));
    store_clamped(q, whole);
}

template <bool LIMIT, int C>
inline void quantize_block(const Quotient& by, const float* x, uint8_t* q) {
    I whole[C], differ = set1(0);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
        F a = limited<LIMIT>(by, load(x + c * W)), more = by.fast(a, by.more);
        differ = differ | (bits(more) ^ bits(by.fast(a, by.less)));
        whole[c] = by.whole(more);
    }
    if (__builtin_expect(by.divide || !all_zero(differ), 0))
        quantize_exactly<LIMIT, C>(by, x, q);
    else
        store_clamped(q, whole);
}

// q[0, k) = clamp(rne(x / scale) + zero, 0, 127); what lies in q[k, k_padded) meets zero weights.
template <bool LIMIT>
inline void quantize_values(const float* x, int64_t k, int64_t k_padded, Row row, uint8_t* q) {
    const Quotient by(row.scale, row.zero);
    int64_t i = 0;
    for (; i + 4 * W <= k; i += 4 * W) quantize_block<LIMIT, 4>(by, x + i, q + i);
    for (; i + W <= k; i += W) quantize_block<LIMIT, 1>(by, x + i, q + i);
    if (i < k) {
        float last[W];
        store(last, load(x + i, k - i));
        quantize_block<LIMIT, 1>(by, last, q + i);  // k_padded is a multiple of W
        i += W;
    }
    if (i < k_padded) std::memset(q + i, 0, size_t(k_padded - i));
}

// Dynamic: scale and zero point by the range of a row; scale NaN where it is not finite.
inline Row dynamic_row(const float* x, int64_t k) {
    float lo, hi;
    bool finite = range(x, k, &lo, &hi);
    float span = hi - lo;
    if (!finite || !(span <= std::numeric_limits<float>::max())) return {std::numeric_limits<float>::quiet_NaN(), 0};
    float scale = span / 127.0f;
    if (scale == 0.0f) scale = 1.0f;
    // A quotient of at most 127 rounds half to even when 1.5 * 2^23 is added.
    float zero = (-lo / scale + 0x1.8p23f) - 0x1.8p23f;
    return {scale, int32_t(zero < 0.0f ? 0.0f : zero > 127.0f ? 127.0f : zero)};
}

// Static: a calibrated pair; scale NaN where the row is not finite.
inline Row static_row(const float* x, int64_t k, recpress::Static pair) {
    float lo, hi;
    constexpr float kMost = std::numeric_limits<float>::max();
    if (!range(x, k, &lo, &hi) || lo < -kMost || hi > kMost) return {std::numeric_limits<float>::quiet_NaN(), 0};
    return {pair.scale, pair.zero_point};
}

// `count` rows, a few ranges at a time: the reductions and divisions of one row overlap with the next row's, where one
// row after the other waits for them.
template <bool STATIC>
inline void quantize_rows(const float* x, int64_t x_stride, int64_t count, int64_t k, int64_t k_padded,
                          recpress::Static pair, Row* rows, uint8_t* q, int64_t q_stride) {
    constexpr int64_t kFew = 4;
    for (int64_t first = 0; first < count; first += kFew) {
        int64_t end = first + kFew < count ? first + kFew : count;
        for (int64_t r = first; r < end; r++)
            rows[r] = STATIC ? static_row(x + r * x_stride, k, pair) : dynamic_row(x + r * x_stride, k);
        for (int64_t r = first; r < end; r++) {
            bool finite = rows[r].scale == rows[r].scale;
            // A row's own range never meets the limit.
            if (finite) quantize_values<STATIC>(x + r * x_stride, k, k_padded, rows[r], q + r * q_stride);
            else std::memset(q + r * q_stride, 0, size_t(k_padded));
        }
    }
}

// By a calibrated pair, or each row by its own range where its scale is 0.
inline void quantize_rows(const float* x, int64_t x_stride, int64_t count, int64_t k, int64_t k_padded,
                          recpress::Static pair, Row* rows, uint8_t* q, int64_t q_stride) {
    if (pair.scale != 0.0f) return quantize_rows<true>(x, x_stride, count, k, k_padded, pair, rows, q, q_stride);
    quantize_rows<false>(x, x_stride, count, k, k_padded, pair, rows, q, q_stride);
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
