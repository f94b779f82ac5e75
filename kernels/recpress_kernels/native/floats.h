// The products of float rows with a layer whose weights are widened as they are loaded. Included after a simd_*.h.
//
//   y[m, n] = max(floor, (sum_k x[m, k] w[n, k]) * weight_scale[n] + bias[n])      float32 sums, fused where the CPU can
#pragma once

#include "chunk.h"

namespace {

// As many rows as keep their sums in 12 registers; one row alone takes panels side by side, since sums that wait for
// each other would take four times as long.
constexpr int kFloatRows = 12 / V, kFloatPanels = 8 / V;

template <int R, int P>
void float_tile(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    F acc[R][P][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[r][p][v] = set1(0.0f);
    const float* x = chunk.floats + row * chunk.floats_stride;
    const int8_t* weights = layer.weights + panel * layer.k_padded * recpress::kPanel;
    for (int64_t k = 0; k < layer.k; k++) {
        F w[P][V];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) w[p][v] = load_weights(weights + (p * layer.k_padded + k) * recpress::kPanel + v * W);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            F a = set1(x[r * chunk.floats_stride + k]);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[r][p][v] = multiply_add(a, w[p][v], acc[r][p][v]);
        }
    }
    F floor = set1(floor_of(layer));
    for (int p = 0; p < P; p++) {
        int64_t first = (panel + p) * recpress::kPanel, left = layer.n - first;
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            float* y = chunk.y + (row + r) * chunk.y_stride + first;
            float last[recpress::kPanel];
            float* to = left < recpress::kPanel ? last : y;
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                int64_t n = first + v * W;
                store(to + v * W, max(floor, acc[r][p][v] * load(layer.scales + n) + load(layer.bias + n)));
            }
            if (to == last) std::memcpy(y, last, size_t(left) * sizeof(float));
        }
    }
}

template <int R>
void float_rows_of_panel(const recpress::Layer& layer, const Chunk& chunk, int64_t row, int64_t panel) {
    if (chunk.count - row == R) return float_tile<R, 1>(layer, chunk, row, panel);
    if constexpr (R > 1) float_rows_of_panel<R - 1>(layer, chunk, row, panel);
}

inline void float_products(const recpress::Layer& layer, const Chunk& chunk) {
    int64_t count = (layer.n + recpress::kPanel - 1) / recpress::kPanel, panel = 0;
    if (chunk.count == 1)
        for (; panel + kFloatPanels <= count; panel += kFloatPanels) float_tile<1, kFloatPanels>(layer, chunk, 0, panel);
    for (; panel < count; panel++) {
        int64_t row = 0;
        for (; row + kFloatRows <= chunk.count; row += kFloatRows) float_tile<kFloatRows, 1>(layer, chunk, row, panel);
        if (row < chunk.count) float_rows_of_panel<kFloatRows>(layer, chunk, row, panel);
    }
}

}  // namespace
