// The product of a chunk of quantised rows with a packed layer, and its epilogue. Included after a simd_*.h.
//
//   acc[m, n] = sum_k q[m, k] w[n, k] - zero[m] * sums[n]                      int32, exact
//   y[m, n]   = activation((acc * scale[m]) * weight_scale[n] + bias[n])      float32, nothing fused
#pragma once

#include "activations.h"
#include "dense.h"
#include "floats.h"
#include "sparse24.h"

namespace {

#ifdef RP_CHAINS
// Chains but for the blocks that this panel lists. A list out of order or out of bounds, which a sound buffer does not
// hold, gives wrong sums but touches nothing outside the panel.
template <class KIND, int R, int DEPTH>
inline void listed(const recpress::Layer& layer, int64_t panel, const uint8_t* q, int64_t q_stride, const int8_t* w,
                   I (&acc)[R][1][V]) {
    constexpr int64_t kUnits = KIND::units(DEPTH);
    int64_t panels = (layer.n + recpress::kPanel - 1) / recpress::kPanel;
    int64_t blocks = layer.k_padded / (KIND::kUnit * kUnits);
    const int32_t* list = layer.wide + panels + 1;
    int64_t i = layer.wide[panel], end = layer.wide[panel + 1], done = 0;
    if (i < 0 || end > layer.wide_count) i = end = 0;
    for (; i < end; i++) {
        int64_t block = list[i];
        if (block < done || block >= blocks) break;
        KIND::template chained<R, DEPTH>(q, q_stride, w, done, block, acc);
        KIND::template widening<R, 1>(q, q_stride, w, 0, block * kUnits, (block + 1) * kUnits, acc);
        done = block + 1;
    }
    KIND::template chained<R, DEPTH>(q, q_stride, w, done, blocks, acc);
}
#endif

template <class KIND, int R, int P, int DEPTH>
void tile(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    I acc[R][P][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            for (int v = 0; v < V; v++) acc[r][p][v] = set1(0);
    const uint8_t* q = chunk.q + row * chunk.q_stride;
    int64_t units = layer.k_padded / KIND::kUnit, panel_bytes = units * KIND::kUnitBytes;
    const int8_t* w = layer.weights + panel * panel_bytes;
#ifdef RP_CHAINS
    if constexpr (DEPTH > 1)
        listed<KIND, R, DEPTH>(layer, panel, q, chunk.q_stride, w, acc);
    else
#endif
        KIND::template widening<R, P>(q, chunk.q_stride, w, panel_bytes, 0, units, acc);
    F floor = set1(floor_of(layer));
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
        int64_t first = (panel + p) * recpress::kPanel, left = layer.n - first;
        bool whole = left >= recpress::kPanel;
        float last[R][recpress::kPanel];
        float* y = whole ? chunk.y + row * chunk.y_stride + first : last[0];
        int64_t y_stride = whole ? chunk.y_stride : recpress::kPanel;
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            int64_t n = first + v * W;
            I sums = load(layer.sums + n);
            F scales = load(layer.scales + n), bias = load(layer.bias + n);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                Row of = chunk.rows[row + r];
                I exact = acc[r][p][v] - set1(of.zero) * sums;
                F value = to_float(exact) * set1(of.scale) * scales + bias;
                store(y + r * y_stride + v * W, max(floor, value));  // NaN stays NaN
            }
        }
        if (!whole)
            for (int r = 0; r < R; r++)
                std::memcpy(chunk.y + (row + r) * chunk.y_stride + first, last[r], size_t(left) * sizeof(float));
    }
}

template <class KIND, int R, int DEPTH>
void rows_of_panel(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    if (chunk.count - row == R) return tile<KIND, R, 1, DEPTH>(layer, chunk, row, panel);
    if constexpr (R > 1) rows_of_panel<KIND, R - 1, DEPTH>(layer, chunk, row, panel);
}

template <class KIND, int DEPTH>
void panels(const recpress::Layer& layer, const Chunk& chunk) {
    int64_t count = (layer.n + recpress::kPanel - 1) / recpress::kPanel, panel = 0;
    // One row is bound by reading the weights, not by multiplying: two panels share the broadcasts.
    if (DEPTH == 1 && chunk.count == 1)
        for (; panel + 2 <= count; panel += 2) tile<KIND, 1, 2, 1>(layer, chunk, 0, panel);
    for (; panel < count; panel++) {
        int64_t row = 0;
        for (; row + kMaxRows <= chunk.count; row += kMaxRows) tile<KIND, kMaxRows, 1, DEPTH>(layer, chunk, row, panel);
        if (row < chunk.count) rows_of_panel<KIND, kMaxRows, DEPTH>(layer, chunk, row, panel);
    }
}

template <class KIND>
void products(const recpress::Layer& layer, const Chunk& chunk) {
#ifdef RP_CHAINS
    if constexpr (KIND::kDeepest == 4)
        if (chunk.count > 1 && layer.depth == 4) return panels<KIND, 4>(layer, chunk);
    if (chunk.count > 1 && layer.depth == 2) return panels<KIND, 2>(layer, chunk);
#endif
    panels<KIND, 1>(layer, chunk);
}

inline void multiply(const recpress::Layer& layer, const Chunk& chunk) {
    if (layer.kind == recpress::Kind::kFloats)
        float_products(layer, chunk);
    else
        layer.kind == recpress::Kind::kSparse24 ? products<Sparse24>(layer, chunk) : products<Dense>(layer, chunk);
    if (layer.activation <= recpress::kRelu) return;
    // A pass of its own, so that the tile calls nothing and keeps its sums in registers.
    for (int64_t r = 0; r < chunk.count; r++) smooth(layer.activation, layer.n, chunk.y + r * chunk.y_stride);
}

}  // namespace
