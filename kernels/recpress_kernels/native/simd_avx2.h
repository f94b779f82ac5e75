// Eight lanes of AVX2: the vocabulary that body.h is written in. Each min and max returns b where a or b is NaN.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int W = 8;
constexpr int kMaxRows = 4;  // rows a tile: 3 to 6 differ by 2 %, and 4 keep sums and weights in 16 registers
struct F { __m256 v; };
struct I { __m256i v; };
using Bytes = __m256i;

inline F load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }
// Past the caches, to a multiple of its bytes; before another thread may read it, fence().
inline void stream(float* p, F a) { _mm256_stream_ps(p, a.v); }
inline void fence() { _mm_sfence(); }
inline __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first n < W of them and zeros; no byte behind them is read.
inline F load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline F set1(float a) { return {_mm256_set1_ps(a)}; }
inline F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
// a * b + c, rounded once or twice: only for what is checked afterwards.
inline F multiply_add(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F abs(F a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F round_even(F a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a < 0 ? yes : no
inline F select_negative(F a, F yes, F no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_LT_OQ))};
}
inline bool any_nan(F a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)) != 0; }

inline float lowest(F a) {
    __m128 m = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    m = _mm_min_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_min_ss(m, _mm_shuffle_ps(m, m, 1)));
}
inline float highest(F a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

// Lane i: the sum of the lanes of a[i].
inline F sums(const F (&a)[W]) {
    __m256 fours[2];  // of each half of 128 bits
    for (int i = 0; i < 2; i++) {
        const F* b = a + 4 * i;
        __m256 low = _mm256_add_ps(_mm256_unpacklo_ps(b[0].v, b[1].v), _mm256_unpackhi_ps(b[0].v, b[1].v));
        __m256 high = _mm256_add_ps(_mm256_unpacklo_ps(b[2].v, b[3].v), _mm256_unpackhi_ps(b[2].v, b[3].v));
        __m256d l = _mm256_castps_pd(low), h = _mm256_castps_pd(high);
        fours[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(l, h)), _mm256_castpd_ps(_mm256_unpackhi_pd(l, h)));
    }
    return {_mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                          _mm256_permute2f128_ps(fours[0], fours[1], 0x31))};
}

inline I load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline I set1(int32_t a) { return {_mm256_set1_epi32(a)}; }
inline I operator+(I a, I b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I operator-(I a, I b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I operator*(I a, I b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline I operator|(I a, I b) { return {_mm256_or_si256(a.v, b.v)}; }
inline I operator^(I a, I b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline bool all_zero(I a) { return _mm256_testz_si256(a.v, a.v); }
inline I bits(F a) { return {_mm256_castps_si256(a.v)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm256_cvtps_epi32(a.v)}; }  // a is a whole number, or rounds half to even
inline F power_of_two(I n) { return {_mm256_castsi256_ps(_mm256_slli_epi32((n + set1(127)).v, 23))}; }

// clamp(a, 0, 127) as bytes; |a| below 2^15.
inline void store_clamped(uint8_t* p, const I (&a)[1]) {
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(a[0].v), _mm256_extracti128_si256(a[0].v, 1));
    __m128i bytes = _mm_min_epu8(_mm_packus_epi16(halves, halves), _mm_set1_epi8(127));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
}
inline void store_clamped(uint8_t* p, const I (&a)[4]) {
    __m256i low = _mm256_packs_epi32(a[0].v, a[1].v), high = _mm256_packs_epi32(a[2].v, a[3].v);
    __m256i bytes = _mm256_min_epu8(_mm256_packus_epi16(low, high), _mm256_set1_epi8(127));
    // The packs work within halves of 128 bits; put the fours back in order.
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
}

// Whole numbers 0 to 255 as bytes.
inline void store_bytes(uint8_t* p, I a) {
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(halves, halves));
}

inline F load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store_half(uint16_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
#define RP_HALF_IN_LANES 1

// W codes of a table as floats, and n < W of them with zeros behind: 4 bytes more than the codes may be read.
inline F load_codes(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline F load_codes(const uint8_t* p, int64_t n) {
    int32_t four;
    std::memcpy(&four, p, 4);
    __m128i codes = n < 4 ? _mm_cvtsi32_si128(four) : _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes))};
}
// The same of codes of 4 bits, two in a byte; behind n < W of them anything.
inline F load_nibbles(const uint8_t* p) {
    int32_t eight;
    std::memcpy(&eight, p, 4);
    __m256i shifted = _mm256_srlv_epi32(_mm256_set1_epi32(eight), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    return {_mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)))};
}
inline F load_nibbles(const uint8_t* p, int64_t) { return load_nibbles(p); }
// The first n < W lanes.
inline void store(float* p, F a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
inline void load_scale_bias(const uint8_t* p, F* scale, F* bias) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    __m128 floats = _mm_cvtph_ps(_mm_cvtsi32_si128(pair));
    *scale = {_mm256_broadcastss_ps(floats)};
    *bias = {_mm256_broadcastss_ps(_mm_movehdup_ps(floats))};
}
#define RP_CODES_IN_LANES 1

inline Bytes load_bytes(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Bytes broadcast4(const uint8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
// W weights as floats.
inline F load_weights(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
// acc[c] + sum of 4 products. a is at most 127, so vpmaddubsw cannot saturate: 2 * 127 * 128 < 2^15.
//
// In assembly, since GCC 12 makes copies of the sums, and a spill, in each turn of the loop: 2.1 in place of 2.8 cycles
// for 16 columns of 4 k.
inline I dot4(I acc, Bytes a, Bytes w) {
    __m256i product;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(acc.v), "=&x"(product)
            : "x"(a), "xm"(w), "x"(_mm256_set1_epi16(1)));
    return acc;
}
// acc[c] + sum of 8 products, where two products may be added in 16 bits: one vpmaddwd for two vpmaddubsw.
inline I dot8(I acc, Bytes a0, Bytes w0, Bytes a1, Bytes w1) {
    __m256i product, other;
    __asm__("vpmaddubsw %4, %3, %1\n\tvpmaddubsw %6, %5, %2\n\tvpaddw %2, %1, %1\n\t"
            "vpmaddwd %7, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(acc.v), "=&x"(product), "=&x"(other)
            : "x"(a0), "xm"(w0), "x"(a1), "xm"(w1), "x"(_mm256_set1_epi16(1)));
    return acc;
}
// A chain of products that is widened once: the first, each of the others, and the end.
#define RP_CHAINS 1
inline Bytes chain_first(Bytes a, Bytes w) { return _mm256_maddubs_epi16(a, w); }
inline void chain_next(Bytes& sum, Bytes a, Bytes w) {
    __m256i product;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(a), "xm"(w));
}
// Ones in memory: 16 registers are just enough for the rest.
inline const __m256i& ones() {
    alignas(32) static const int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return *reinterpret_cast<const __m256i*>(kOnes);
}
inline I chain_end(I acc, Bytes sum) {
    __asm__("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(acc.v), "+x"(sum) : "m"(ones()));
    return acc;
}

// 2:4: each column takes 4 of 8 activations, broadcast to every 8 bytes, by the low 4 bits of its bytes of `places`.
inline Bytes later(Bytes places) { return _mm256_srli_epi16(places, 4); }  // vpshufb ignores what bits 4 to 6 hold then
typedef uint64_t Eight __attribute__((may_alias, aligned(1)));
inline const Eight& eight(const uint8_t* q) { return *reinterpret_cast<const Eight*>(q); }
// acc[c] + sum of 4 products.
inline I gather_dot4(I acc, const uint8_t* q, Bytes places, Bytes w) {
    __m256i product;
    __asm__("vpbroadcastq %2, %1\n\tvpshufb %3, %1, %1\n\tvpmaddubsw %4, %1, %1\n\t"
            "vpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(acc.v), "=&x"(product)
            : "m"(eight(q)), "x"(places), "x"(w), "x"(_mm256_set1_epi16(1)));
    return acc;
}
// acc[c] + sum of 8 products of 16 activations, where the two halves may be added in 16 bits.
inline void gather_dot8(I& acc, const uint8_t* q, Bytes places, Bytes w, Bytes later_places, Bytes later_w) {
    __m256i product, other;
    __asm__("vpbroadcastq %3, %1\n\tvpbroadcastq %4, %2\n\t"
            "vpshufb %5, %1, %1\n\tvpshufb %6, %2, %2\n\t"
            "vpmaddubsw %7, %1, %1\n\tvpmaddubsw %8, %2, %2\n\t"
            "vpaddw %2, %1, %1\n\tvpmaddwd %9, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(acc.v), "=&x"(product), "=&x"(other)
            : "m"(eight(q)), "m"(eight(q + 8)), "x"(places), "x"(later_places), "x"(w), "x"(later_w), "m"(ones()));
}
// The same for two rows.
inline void gather_dot8(I& acc0, I& acc1, const uint8_t* q0, const uint8_t* q1, Bytes places, Bytes w,
                        Bytes later_places, Bytes later_w) {
    __m256i product0, other0, product1, other1;
    __asm__("vpbroadcastq %6, %2\n\tvpbroadcastq %7, %3\n\tvpbroadcastq %8, %4\n\tvpbroadcastq %9, %5\n\t"
            "vpshufb %10, %2, %2\n\tvpshufb %11, %3, %3\n\tvpshufb %10, %4, %4\n\tvpshufb %11, %5, %5\n\t"
            "vpmaddubsw %12, %2, %2\n\tvpmaddubsw %13, %3, %3\n\tvpmaddubsw %12, %4, %4\n\tvpmaddubsw %13, %5, %5\n\t"
            "vpaddw %3, %2, %2\n\tvpaddw %5, %4, %4\n\tvpmaddwd %14, %2, %2\n\tvpmaddwd %14, %4, %4\n\t"
            "vpaddd %2, %0, %0\n\tvpaddd %4, %1, %1"
            : "+x"(acc0.v), "+x"(acc1.v), "=&x"(product0), "=&x"(other0), "=&x"(product1), "=&x"(other1)
            : "m"(eight(q0)), "m"(eight(q0 + 8)), "m"(eight(q1)), "m"(eight(q1 + 8)), "x"(places), "x"(later_places),
              "x"(w), "x"(later_w), "m"(ones()));
}

}  // namespace
