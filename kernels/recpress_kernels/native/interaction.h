// Dot products of all pairs of a row's vectors, and the second order of a factorisation machine. Included after a
// simd_*.h; each translation unit makes one `dots` and one `second_order`.
//
//   dots:          out = front, then x_i . x_j for all i > j (i >= j where `self`), row by row of the lower triangle
//   second order:  out = sum_d ((sum_i x_i[d])^2 - sum_i x_i[d]^2) / 2
//
// float32 sums, fused where the CPU can.
#pragma once

#include "abi.h"
#include "run.h"

namespace {

using recpress::Interaction;

// A tile of the triangle is one vector of sums: its products are added up lane by lane, and all its lanes at once.
constexpr int kDotColumns = 4, kDotRows = W / kDotColumns;

inline void dots_tile(const float* const (&left)[kDotRows], const float* const (&right)[kDotColumns], int64_t dim,
                      float* out) {
    F acc[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) acc[i] = set1(0.0f);
    for (int64_t k = 0; k < dim; k += W) {
        F b[kDotColumns];
#pragma GCC unroll 4
        for (int c = 0; c < kDotColumns; c++) b[c] = load(right[c] + k);
#pragma GCC unroll 4
        for (int r = 0; r < kDotRows; r++) {
            F a = load(left[r] + k);
#pragma GCC unroll 4
            for (int c = 0; c < kDotColumns; c++)
                acc[r * kDotColumns + c] = multiply_add(a, b[c], acc[r * kDotColumns + c]);
        }
    }
    store(out, sums(acc));
}

// `dim` is a multiple of W; a tile over an edge takes the last vector again, and leaves out what is not asked for.
inline void triangle(const float* x, int64_t count, int64_t stride, int64_t dim, bool self, float* out) {
    auto vector = [&](int64_t i) { return x + (i < count ? i : count - 1) * stride; };
    for (int64_t i = self ? 0 : 1; i < count; i += kDotRows) {
        int64_t rows = count - i < kDotRows ? count - i : kDotRows, longest = i + rows - 1 + self;
        const float* left[kDotRows];
        for (int r = 0; r < kDotRows; r++) left[r] = vector(i + r);
        for (int64_t j = 0; j < longest; j += kDotColumns) {
            const float* right[kDotColumns] = {vector(j), vector(j + 1), vector(j + 2), vector(j + 3)};
            float tile[W], *to = out + j;
            dots_tile(left, right, dim, tile);
            for (int64_t r = 0; r < rows; to += i + r + self, r++) {
                int64_t wanted = i + r + self - j;
                if (wanted >= kDotColumns)
                    std::memcpy(to, tile + r * kDotColumns, sizeof(float) * kDotColumns);
                else
                    for (int64_t c = 0; c < wanted; c++) to[c] = tile[r * kDotColumns + c];
            }
        }
        for (int64_t r = 0; r < rows; r++) out += i + r + self;
    }
}

// The rows of a call as floats whose vectors are whole lanes: as they lie, or copied with zeros behind them.
struct Rows {
    const Interaction& call;
    int64_t dim, stride;
    float *copy = nullptr, *out = nullptr;  // of one row; out: where the output is not float32

    explicit Rows(const Interaction& c)
        : call(c), dim(round_up(c.dim, W)),
          stride(c.dtype == recpress::kFloat32 && dim == c.dim ? c.vector_stride : dim) {}

    bool whole() const { return call.dtype == recpress::kFloat32 && dim == call.dim; }

    bool make(int64_t out_width) {
        int64_t copied = whole() ? 0 : call.count * dim, floats = copied + out_width;
        if (floats == 0) return true;
        copy = static_cast<float*>(recpress::scratch(size_t(floats) * sizeof(float)));
        out = copy + copied;
        if (copy) std::memset(copy, 0, size_t(copied) * sizeof(float));
        return copy != nullptr;
    }

    const float* get(int64_t row) const {
        int64_t at = row * call.batch_stride;
        if (whole()) return static_cast<const float*>(call.vectors) + at;
        for (int64_t i = 0; i < call.count; i++, at += call.vector_stride) copy_floats(call.vectors, at, call.dim, copy + i * dim);
        return copy;
    }

    void copy_floats(const void* from, int64_t at, int64_t count, float* to) const {
        if (call.dtype == recpress::kFloat32)
            std::memcpy(to, static_cast<const float*>(from) + at, size_t(count) * sizeof(float));
        else
            widen(static_cast<const uint16_t*>(from) + at, count, call.dtype, to);
    }
};

inline recpress::Status dots(const Interaction& call) {
    int64_t pairs = call.count * (call.count - 1) / 2 + (call.self ? call.count : 0), width = call.front_width + pairs;
    bool direct = call.out_dtype == recpress::kFloat32;
    Rows rows(call);
    if (!rows.make(direct ? 0 : width)) return recpress::kNoMemory;
    for (int64_t b = 0; b < call.batch; b++) {
        float* out = direct ? static_cast<float*>(call.out) + b * width : rows.out;
        if (call.front) rows.copy_floats(call.front, b * call.front_stride, call.front_width, out);
        triangle(rows.get(b), call.count, rows.stride, rows.dim, call.self, out + call.front_width);
        if (call.out_dtype == recpress::kUInt8) {
            if (!quantize_output(out, width, call.out_pair, static_cast<uint8_t*>(call.out) + b * width))
                return recpress::kNanToInteger;
        } else if (!direct) {
            narrow(out, width, call.out_dtype, static_cast<uint16_t*>(call.out) + b * width);
        }
    }
    return recpress::kOk;
}

// total + (sum_i x_i)^2 - sum_i x_i^2 of N lanes' columns.
template <int N>
inline F squares(const float* x, int64_t count, int64_t stride, F total) {
    F sum[N], square[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; c++) sum[c] = square[c] = set1(0.0f);
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int c = 0; c < N; c++) {
            F a = load(x + i * stride + c * W);
            sum[c] = sum[c] + a;
            square[c] = multiply_add(a, a, square[c]);
        }
    for (int c = 0; c < N; c++) total = total + (sum[c] * sum[c] - square[c]);
    return total;
}

inline recpress::Status second_order(const Interaction& call) {
    Rows rows(call);
    if (!rows.make(0)) return recpress::kNoMemory;
    for (int64_t b = 0; b < call.batch; b++) {
        const float* x = rows.get(b);
        F total[W] = {};
        int64_t k = 0;
        for (; k + 4 * W <= rows.dim; k += 4 * W) total[0] = squares<4>(x + k, call.count, rows.stride, total[0]);
        for (; k < rows.dim; k += W) total[0] = squares<1>(x + k, call.count, rows.stride, total[0]);
        float lanes[W];
        store(lanes, sums(total));
        lanes[0] *= 0.5f;
        if (call.out_dtype == recpress::kFloat32)
            static_cast<float*>(call.out)[b] = lanes[0];
        else
            narrow(lanes, 1, call.out_dtype, static_cast<uint16_t*>(call.out) + b);
    }
    return recpress::kOk;
}

}  // namespace
