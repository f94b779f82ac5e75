// The sums of products with a dense layer. Included after a simd_*.h.
#pragma once

#include "chunk.h"

namespace {

struct Dense {
    static constexpr int kUnit = recpress::kGroup;  // the k of one turn of widening()
    static constexpr int kDeepest = 4;
    static constexpr int kUnitBytes = recpress::kPanel * recpress::kGroup;  // of one panel

    // Of a block of which `depth` products are added in 16 bits.
    static constexpr int units(int depth) { return depth; }

    // acc[r][p][v] += the products of R rows with P panels that lie one after the other, over groups [from, to) of 4 k.
    template <int R, int P>
    static void widening(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t panel_bytes, int64_t from,
                         int64_t to, I (&acc)[R][P][V]) {
        for (int64_t group = from; group < to; group++) {
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                Bytes a = broadcast4(q + r * q_stride + group * recpress::kGroup);
#pragma GCC unroll 4
                for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) {
                        const int8_t* at = w + p * panel_bytes + group * kUnitBytes + v * W * recpress::kGroup;
                        acc[r][p][v] = dot4(acc[r][p][v], a, load_bytes(at));
                    }
            }
        }
    }

#ifdef RP_CHAINS
    // The same over blocks of 2 groups, whose 2 products may be added in 16 bits before they are widened:
    // 3 multiplications where the other loop takes 4, 1.7 cycles for 16 columns of 4 k where it takes 2.1.
    template <int R>
    static void chained2(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t from, int64_t to,
                         I (&acc)[R][1][V]) {
        for (int64_t block = from; block < to; block++) {
            const int8_t* at = w + block * 2 * kUnitBytes;
            Bytes w0[V], w1[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                w0[v] = load_bytes(at + v * W * recpress::kGroup);
                w1[v] = load_bytes(at + kUnitBytes + v * W * recpress::kGroup);
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
    static void chained4(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t from, int64_t to,
                         I (&acc)[R][1][V]) {
        for (int64_t block = from; block < to; block++) {
            Bytes sum[R][V];
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                int64_t group = block * 4 + g;
                Bytes weights[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) weights[v] = load_bytes(w + group * kUnitBytes + v * W * recpress::kGroup);
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
    static void chained(const uint8_t* q, int64_t q_stride, const int8_t* w, int64_t from, int64_t to,
                        I (&acc)[R][1][V]) {
        DEPTH == 2 ? chained2<R>(q, q_stride, w, from, to, acc) : chained4<R>(q, q_stride, w, from, to, acc);
    }
#endif
};

}  // namespace
