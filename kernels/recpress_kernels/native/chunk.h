// A chunk of rows on its way through one layer. Included after a simd_*.h.
#pragma once

#include <limits>

#include "abi.h"
#include "quantize.h"

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

// What is the same for all tiles of a layer: with bias zero and floor -infinity there is nothing to branch on.
inline float floor_of(const recpress::Layer& layer) {
    return layer.activation == recpress::kRelu ? 0.0f : -std::numeric_limits<float>::infinity();
}

}  // namespace
