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
};

// acc[r][p][v] += the products of R rows with P panels that lie one after the other.
template <int R, int P, bool PAIRS>
inline void products(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t k_padded, I (&acc)[R][P][V]) {
    constexpr int kBytes = recpress::kPanel * recpress::kGroup;  // of one group of one panel
    int64_t panel = k_padded * recpress::kPanel;
    for (int64_t k = 0; k < k_padded; k += recpress::kStep) {
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            const int8_t* at = w + p * panel + k * recpress::kPanel;
            if (PAIRS) {
                Bytes w0[V], w1[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) w0[v] = load_bytes(at + v * W * 4), w1[v] = load_bytes(at + kBytes + v * W * 4);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const uint8_t* a = q + r * q_stride + k;
                    Bytes a0 = broadcast4(a), a1 = broadcast4(a + 4);
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) acc[r][p][v] = dot8(acc[r][p][v], a0, w0[v], a1, w1[v]);
                }
            } else {
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        Bytes a = broadcast4(q + r * q_stride + k + half * 4);
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++)
                            acc[r][p][v] = dot4(acc[r][p][v], a, load_bytes(at + half * kBytes + v * W * 4));
                    }
                }
            }
        }
    }
}

// What is the same for all tiles of a layer: with bias zero and floor -infinity there is nothing to branch on.
inline float floor_of(const recpress::Layer& layer) {
    return layer.activation == recpress::kRelu ? 0.0f : -std::numeric_limits<float>::infinity();
}

template <int R, int P, bool PAIRS>
void tile(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    I acc[R][P][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            for (int v = 0; v < V; v++) acc[r][p][v] = set1(0);
    products<R, P, PAIRS>(chunk.q + row * chunk.q_stride, chunk.q_stride,
                          layer.weights + panel * layer.k_padded * recpress::kPanel, layer.k_padded, acc);
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

template <int R, bool PAIRS>
void rows_of_panel(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    if (chunk.count - row == R) return tile<R, 1, PAIRS>(layer, chunk, row, panel);
    if constexpr (R > 1) rows_of_panel<R - 1, PAIRS>(layer, chunk, row, panel);
}

template <bool PAIRS>
void multiply(const recpress::Layer& layer, const Chunk& chunk) {
    int64_t panels = (layer.n + recpress::kPanel - 1) / recpress::kPanel, panel = 0;
    if (chunk.count == 1)  // bound by reading the weights: two panels share the broadcasts
        for (; panel + 2 <= panels; panel += 2) tile<1, 2, PAIRS>(layer, chunk, 0, panel);
    for (; panel < panels; panel++) {
        int64_t row = 0;
        for (; row + kMaxRows <= chunk.count; row += kMaxRows) tile<kMaxRows, 1, PAIRS>(layer, chunk, row, panel);
        if (row < chunk.count) rows_of_panel<kMaxRows, PAIRS>(layer, chunk, row, panel);
    }
}

inline void multiply(const recpress::Layer& layer, const Chunk& chunk) {
    layer.flags & recpress::kPairsFit ? multiply<true>(layer, chunk) : multiply<false>(layer, chunk);
    if (layer.activation <= recpress::kRelu) return;
    // A pass of its own, so that the tile calls nothing and keeps its sums in registers.
    for (int64_t r = 0; r < chunk.count; r++) smooth(layer.activation, layer.n, chunk.y + r * chunk.y_stride);
}

}  // namespace
