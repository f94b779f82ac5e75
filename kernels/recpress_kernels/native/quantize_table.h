// Float rows of a table to int8 or int4 rows with their scale and bias, to the bytes of formats/rows.py. Included after a
// simd_*.h; each translation unit makes one `quantize_table`.
#pragma once

#include "abi.h"
#include "halves.h"

namespace {

using recpress::RowsToQuantize;

constexpr float kHalfMax = 65504.0f;

// float16 at most f, and at least f, for f that float16 can hold; at least: for f >= 0.
inline uint16_t half_below(float f) {
    uint16_t half = float_to_half(f);
    if (half_to_float(half) <= f) return half;
    return half & 0x8000 ? uint16_t(half + 1) : half ? uint16_t(half - 1) : uint16_t(0x8001);
}
inline uint16_t half_above(float f) {
    uint16_t half = float_to_half(f);
    return half_to_float(half) < f ? uint16_t(half + 1) : half;
}

// The extremes of a row, or false where it holds NaN, infinity or more than float16 can.
inline bool extremes(const float* x, int64_t dim, float* low, float* high) {
    F lowest_lanes = set1(x[0]), highest_lanes = lowest_lanes, poison = set1(0.0f);
    auto take = [&](F a) {
        lowest_lanes = min(lowest_lanes, a);
        highest_lanes = max(highest_lanes, a);
        poison = poison + (a - a);
    };
    int64_t at = 0;
    for (; at + W <= dim; at += W) take(load(x + at));
    if (at < dim) {
        float rest[W];
        for (int64_t i = 0; i < W; i++) rest[i] = x[at + i < dim ? at + i : at];
        take(load(rest));
    }
    // Adding 0 takes -0 to 0, of which a minimum might return either.
    *low = lowest(lowest_lanes) + 0.0f;
    *high = highest(highest_lanes) + 0.0f;
    return !any_nan(poison) && *low >= -kHalfMax && *high <= kHalfMax;
}

// Eight codes of 4 bits from eight bytes: each pair of neighbours is drawn together, three times.
inline void store_nibbles(uint8_t* out, const uint8_t* codes) {
    uint64_t v;
    std::memcpy(&v, codes, 8);
    v = (v | v >> 4) & 0x00ff00ff00ff00ff;
    v = (v | v >> 8) & 0x0000ffff0000ffff;
    v |= v >> 16;
    std::memcpy(out, &v, 4);
}

constexpr int kCodes = 64;  // at a time: a multiple of 8 and of W

struct Pair {
    uint16_t scale, bias;
};

template <int BITS>
inline Pair pair_of(float low, float high) {
    uint16_t bias = half_below(low);
    return {half_above((high - half_to_float(bias)) / float((1 << BITS) - 1)), bias};
}

// Codes under a pair, whole numbers as floats.
template <int BITS>
struct Codes {
    F scale, step, begin, most = set1(float((1 << BITS) - 1));

    explicit Codes(Pair pair)
        : scale(set1(half_to_float(pair.scale))),
          step(pair.scale ? scale : set1(1.0f)),
          begin(set1(half_to_float(pair.bias))) {}
    F operator()(F x) const { return min(max(round_even((x - begin) / step), set1(0.0f)), most); }
    F squared_error(F x) const {
        F error = (*this)(x)*scale + begin - x;
        return error * error;
    }
};

constexpr int kSums = 8;  // as formats/rows_search.py adds: whatever W is, the bits are the same

template <int BITS>
inline double squared_error(const float* x, int64_t dim, Pair pair) {
    Codes<BITS> codes(pair);
    double sums[kSums] = {};
    for (int64_t at = 0; at < dim; at += kCodes) {
        int64_t count = dim - at < kCodes ? dim - at : kCodes, i = 0;
        float squares[kCodes];
        for (; i + W <= count; i += W) store(squares + i, codes.squared_error(load(x + at + i)));
        if (i < count) store(squares + i, codes.squared_error(load(x + at + i, count - i)));
        for (i = count; i % kSums; i++) squares[i] = 0.0f;
        for (i = 0; i < count; i += kSums)
            for (int j = 0; j < kSums; j++) sums[j] += double(squares[i + j]);
    }
    for (int half = kSums / 2; half; half /= 2)
        for (int j = 0; j < half; j++) sums[j] += sums[j + half];
    return sums[0];
}

// The search of formats/rows_search.py, greedy_pair.
template <int BITS>
inline Pair greedy_pair(const float* x, int64_t dim, float low, float high) {
    constexpr int kMoves = 32;
    constexpr double kGain = 1 - 1e-6;
    float bin = (high - low) / 200.0f;
    Pair found = pair_of<BITS>(low, high);
    double best = squared_error<BITS>(x, dim, found);
    for (int move = 0; move < kMoves; move++) {
        Pair raised = pair_of<BITS>(low + bin, high), lowered = pair_of<BITS>(low, high - bin);
        double raised_error = squared_error<BITS>(x, dim, raised), lowered_error = squared_error<BITS>(x, dim, lowered);
        bool raise_low = raised_error < lowered_error;
        double error = raise_low ? raised_error : lowered_error;
        if (error < best * kGain) {
            best = error;
            found = raise_low ? raised : lowered;
        }
        (raise_low ? low : high) += raise_low ? bin : -bin;
    }
    return found;
}

template <int BITS>
inline bool quantize_row(const float* x, int64_t dim, bool greedy, uint8_t* out) {
    float low, high;
    if (!extremes(x, dim, &low, &high)) return false;
    Pair pair = greedy ? greedy_pair<BITS>(x, dim, low, high) : pair_of<BITS>(low, high);
    Codes<BITS> quantized(pair);
    auto code = [&](const float* p) { return to_int(quantized(load(p))); };
    for (int64_t at = 0; at < dim; at += kCodes) {
        int64_t count = dim - at < kCodes ? dim - at : kCodes;
        uint8_t codes[kCodes] = {};
        int64_t i = 0;
        for (; i + W <= count; i += W) store_bytes(codes + i, code(x + at + i));
        if (i < count) {
            float rest[W] = {};
            uint8_t bytes[W];
            std::memcpy(rest, x + at + i, size_t(count - i) * 4);
            store_bytes(bytes, code(rest));
            std::memcpy(codes + i, bytes, size_t(count - i));
        }
        if (BITS == 4)
            for (int64_t j = 0; j < count; j += 8) store_nibbles(codes + j / 2, codes + j);
        std::memcpy(out + at * BITS / 8, codes, size_t(count * BITS + 7) / 8);
    }
    out += (dim * BITS + 7) / 8;
    std::memcpy(out, &pair.scale, 2);
    std::memcpy(out + 2, &pair.bias, 2);
    return true;
}

template <int BITS>
recpress::Status quantize_table(const RowsToQuantize& call) {
    for (int64_t row = 0; row < call.rows; row++)
        if (!quantize_row<BITS>(call.x + row * call.x_stride, call.dim, call.greedy, call.out + row * call.out_stride))
            return recpress::kValue;
    return recpress::kOk;
}

recpress::Status quantize_table(const RowsToQuantize& call) {
    return call.bits == 8 ? quantize_table<8>(call) : quantize_table<4>(call);
}

}  // namespace
