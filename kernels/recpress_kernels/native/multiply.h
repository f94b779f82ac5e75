// The product of a chunk of quantised rows with a packed layer, and its epilogue. Included after a simd_*.h.
//
//   acc[m, n] = sum_k q[m, k] w[n, k] - zero[m] * sums[n]                      int32, exact
//   y[m, n]   = activation((acc * scale[m]) * weight_scale[n] + bias[n])      float32, nothing fused
#pragma once

#include "abi.h"
#include "activations.h"
#include "quantize.h"

#include <limits>

namespace {

constexpr int V = recpress::kPanel / W;  // vectors of one panel

struct Chunk {
    const uint8_t* q;  // [rows, q_stride]
    int64_t q_stride;
    const Row* rows;
    int64_t count;
    float* y;  // [rows, y_stride]
    int64_t y_stride;
    float* floats;  // [rows, floats_stride], in place of q where the layer keeps floats
    int64_t floats_stride;
};

constexpr int kGroupBytes = recpress::kPanel * recpress::kGroup;  // of one group of one panel

// acc[r][p][v] += the products of R rows with P panels that lie one after the other, over groups [from, to) of 4 k.
template <int R, int P>
inline void widening(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t panel_bytes, int64_t from, int64_t to,
                     I (&acc)[R][P][V]) {
    for (int64_t group = from; group < to; group++) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            Bytes a = broadcast4(q + r * q_stride + group * recpress::kGroup);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const int8_t* at = w + p * panel_bytes + group * kGroupBytes + v * W * recpress::kGroup;
                    acc[r][p][v] = dot4(acc[r][p][v], a, load_bytes(at));
                }
        }
    }
}

#ifdef RP_CHAINS
// The same over blocks of 2 groups, whose 2 products may be added in 16 bits before they are widened: 3 multiplications
// where the other loop takes 4, 1.7 cycles for 16 columns of 4 k where it takes 2.1.
template <int R>
inline void chained2(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t from, int64_t to, I (&acc)[R][1][V]) {
    for (int64_t block = from; block < to; block++) {
        const int8_t* at = w + block * 2 * kGroupBytes;
        Bytes w0[V], w1[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            w0[v] = load_bytes(at + v * W * recpress::kGroup);
            w1[v] = load_bytes(at + kGroupBytes + v * W * recpress::kGroup);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const uint8_t* a = q + r * q_stride + block * 2 * recpress::kGroup;
            Bytes a0 = broadcast4(a), a1 = broadcast4(a + recpress::kGroup);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[r][0][v] = dot8(acc[r][0][v], a0, w0[v], a1, w1[v]);
        }
    }
}

// Of 4 groups: 5 multiplications where the first loop takes 8, 1.5 cycles. The 16-bit sums of all rows are kept, so
// that each weight is loaded once; with 2 groups that was 14 % slower than the loop above.
template <int R>
inline void chained4(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t from, int64_t to, I (&acc)[R][1][V]) {
    for (int64_t block = from; block < to; block++) {
        Bytes sum[R][V];
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            int64_t group = block * 4 + g;
            Bytes weights[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) weights[v] = load_bytes(w + group * kGroupBytes + v * W * recpress::kGroup);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                Bytes a = broadcast4(q + r * q_stride + group * recpress::kGroup);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    if (g == 0)
                        sum[r][v] = chain_first(a, weights[v]);
                    else
                        chain_next(sum[r][v], a, weights[v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[r][0][v] = chain_end(acc[r][0][v], sum[r][v]);
    }
}

template <int R, int DEPTH>
inline void chained(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t from, int64_t to, I (&acc)[R][1][V]) {
    DEPTH == 2 ? chained2<R>(q, q_stride, w, from, to, acc) : chained4<R>(q, q_stride, w, from, to, acc);
}

// Chains but for the blocks that this panel lists. A list out of order or out of bounds, which a sound buffer does not
// hold, gives wrong sums but touches nothing outside the panel.
template <int R, int DEPTH>
inline void listed(const recpress::Layer& layer, int64_t panel, const uint8_t* q, int64_t q_stride, const int8_t* w,
                   I (&acc)[R][1][V]) {
    int64_t panels = (layer.n + recpress::kPanel - 1) / recpress::kPanel;
    int64_t blocks = layer.k_padded / (recpress::kGroup * DEPTH);
    const int32_t* list = layer.wide + panels + 1;
    int64_t i = layer.wide[panel], end = layer.wide[panel + 1], done = 0;
    if (i < 0 || end > layer.wide_count) i = end = 0;
    for (; i < end; i++) {
        int64_t block = list[i];
        if (block < done || block >= blocks) break;
        chained<R, DEPTH>(q, q_stride, w, done, block, acc);
        widening<R, 1>(q, q_stride, w, 0, block * DEPTH, (block + 1) * DEPTH, acc);
        done = block + 1;
    }
    chained<R, DEPTH>(q, q_stride, w, done, blocks, acc);
}

#endif

// What is the same for all tiles of a layer: with bias zero and floor -infinity there is nothing to branch on.
inline float floor_of(const recpress::Layer& layer) {
    return layer.activation == recpress::kRelu ? 0.0f : -std::numeric_limits<float>::infinity();
}

template <int R, int P, int DEPTH>
void tile(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    I acc[R][P][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            for (int v = 0; v < V; v++) acc[r][p][v] = set1(0);
    const uint8_t* q = chunk.q + row * chunk.q_stride;
    const int8_t* w = layer.weights + panel * layer.k_padded * recpress::kPanel;
#ifdef RP_CHAINS
    if constexpr (DEPTH > 1)
        listed<R, DEPTH>(layer, panel, q, chunk.q_stride, w, acc);
    else
#endif
        widening<R, P>(q, chunk.q_stride, w, layer.k_padded * recpress::kPanel, 0, layer.k_padded / recpress::kGroup, acc);
    F floor = set1(floor_of(layer));
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
        int64_t first = (panel + p) * recpress::kPanel, left = layer.n - first;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            Row of = chunk.rows[row + r];
            float* y = chunk.y + (row + r) * chunk.y_stride + first;
            float last[recpress::kPanel];
            float* to = left < recpress::kPanel ? last : y;
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                int64_t n = first + v * W;
                I exact = acc[r][p][v] - set1(of.zero) * load(layer.sums + n);
                F value = to_float(exact) * set1(of.scale) * load(layer.scales + n) + load(layer.bias + n);
                store(to + v * W, max(floor, value));  // NaN stays NaN
            }
            if (to == last) std::memcpy(y, last, size_t(left) * sizeof(float));
        }
    }
}

template <int R, int DEPTH>
void rows_of_panel(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    if (chunk.count - row == R) return tile<R, 1, DEPTH>(layer, chunk, row, panel);
    if constexpr (R > 1) rows_of_panel<R - 1, DEPTH>(layer, chunk, row, panel);
}

template <int DEPTH>
void panels(const recpress::Layer& layer, const Chunk& chunk) {
    int64_t count = (layer.n + recpress::kPanel - 1) / recpress::kPanel, panel = 0;
    // One row is bound by reading the weights, not by multiplying: two panels share the broadcasts.
    if (DEPTH == 1 && chunk.count == 1)
        for (; panel + 2 <= count; panel += 2) tile<1, 2, 1>(layer, chunk, 0, panel);
    for (; panel < count; panel++) {
        int64_t row = 0;
        for (; row + kMaxRows <= chunk.count; row += kMaxRows) tile<kMaxRows, 1, DEPTH>(layer, chunk, row, panel);
        if (row < chunk.count) rows_of_panel<kMaxRows, DEPTH>(layer, chunk, row, panel);
    }
}

inline void products(const recpress::Layer& layer, const Chunk& chunk) {
#ifdef RP_CHAINS
    if (chunk.count > 1 && layer.depth == 4) return panels<4>(layer, chunk);
    if (chunk.count > 1 && layer.depth == 2) return panels<2>(layer, chunk);
#endif
    panels<1>(layer, chunk);
}

inline void activate(const recpress::Layer& layer, const Chunk& chunk) {
    if (layer.activation <= recpress::kRelu) return;
    // A pass of its own, so that the tile calls nothing and keeps its sums in registers.
    for (int64_t r = 0; r < chunk.count; r++) smooth(layer.activation, layer.n, chunk.y + r * chunk.y_stride);
}

inline void multiply(const recpress::Layer& layer, const Chunk& chunk) {
    products(layer, chunk);
    activate(layer, chunk);
}

}  // namespace
