// The sums of products with a 2:4 layer. Included after a simd_*.h.
//
// A unit of a panel is 16 k: the kept values int8 [2][16][4] of its first and second 8 k, 4 a column, then their places
// uint8 [16][4]. The low 4 bits of byte (c, j) say which of the first 8 activations value (0, c, j) meets, the high 4
// which of the second 8 value (1, c, j) meets, each 0 to 7. So the byte is a control of vpshufb, which reads the lowest
// 4 bits and bit 7, as it lies in memory, and again when it is shifted by 4: 12 bytes where a dense panel has 16.
#pragma once

#include "chunk.h"

namespace {

struct Sparse24 {
    static constexpr int kUnit = recpress::kSparseUnit;
    static constexpr int kDeepest = 2;
    static constexpr int kUnitBytes = recpress::kSparseUnitBytes;

    // The two products of a unit are those that depth 2 adds in 16 bits.
    static constexpr int units(int depth) { return depth / 2; }

    // What one vector of columns takes of a unit.
    struct Kept {
        Bytes first, second;         // values
        Bytes places, later_places;  // controls of gather
        Kept(const int8_t* unit, int v) {
            constexpr int kHalf = recpress::kPanel * 4;
            const int8_t* at = unit + v * W * 4;
            first = load_bytes(at), second = load_bytes(at + kHalf);
            places = load_bytes(at + 2 * kHalf), later_places = later(places);
        }
    };

    // acc[r][p][v] += the products of R rows with P panels that lie one after the other, over units [from, to).
    template <int R, int P>
    static void widening(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t panel_bytes, int64_t from,
                         int64_t to, I (&acc)[R][P][V]) {
        for (int64_t unit = from; unit < to; unit++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    Kept kept(w + p * panel_bytes + unit * kUnitBytes, v);
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        const uint8_t* a = q + r * q_stride + unit * kUnit;
                        acc[r][p][v] = gather_dot4(acc[r][p][v], a, kept.places, kept.first);
                        acc[r][p][v] = gather_dot4(acc[r][p][v], a + 8, kept.later_places, kept.second);
                    }
                }
    }

#ifdef RP_CHAINS
    // The same where the two products of a unit may be added in 16 bits: 1.3 cycles for 16 columns of 4 k where the
    // other loop takes 1.5. Two rows at a time, whose instructions alternate: one at a time took 8 % longer.
    template <int R, int DEPTH>
    static void chained(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t from, int64_t to,
                        I (&acc)[R][1][V]) {
        for (int64_t unit = from; unit < to; unit++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                Kept kept(w + unit * kUnitBytes, v);
                const uint8_t* a = q + unit * kUnit;
#pragma GCC unroll 8
                for (int r = 0; r + 2 <= R; r += 2)
                    gather_dot8(acc[r][0][v], acc[r + 1][0][v], a + r * q_stride, a + (r + 1) * q_stride, kept.places,
                                kept.first, kept.later_places, kept.second);
                if constexpr (R % 2)
                    gather_dot8(acc[R - 1][0][v], a + (R - 1) * q_stride, kept.places, kept.first, kept.later_places,
                                kept.second);
            }
    }
#endif
};

}  // namespace
