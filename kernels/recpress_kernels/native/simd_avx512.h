// Sixteen lanes of AVX-512 with VNNI: the vocabulary that body.h is written in.
// Each min and max returns b where a or b is NaN.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef RECPRESS_SIMDE  // emulation, for the tests
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
// What SIMDe 0.7 lacks, by halves.
static inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    int32_t in[16];
    float out[16];
    _mm512_storeu_si512(in, a);
    for (int i = 0; i < 16; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
    return _mm512_loadu_ps(out);
}
static inline __m512i _mm512_cvtepu8_epi32(__m128i a) {
    int32_t out[16];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_cvtepu8_epi32(a));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8)));
    return _mm512_loadu_si512(out);
}
static inline __m512i _mm512_cvtepi8_epi32(__m128i a) {
    int32_t out[16];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_cvtepi8_epi32(a));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)));
    return _mm512_loadu_si512(out);
}
static inline __m512 _mm512_maskz_loadu_ps(uint16_t lanes, const float* p) {
    float out[16];
    for (int i = 0; i < 16; i++) out[i] = lanes >> i & 1 ? p[i] : 0.0f;
    return _mm512_loadu_ps(out);
}
static inline __m512i _mm512_cvtps_epi32(__m512 a) {
    float in[16];
    int32_t out[16];
    _mm512_storeu_ps(in, a);
    for (int i = 0; i < 16; i += 8)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtps_epi32(_mm256_loadu_ps(in + i)));
    return _mm512_loadu_si512(out);
}
static inline __m512i _mm512_cvtepu8_epi64(__m128i a) {
    uint8_t in[16];
    int64_t out[8];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(in), a);
    for (int i = 0; i < 8; i++) out[i] = in[i];
    return _mm512_loadu_si512(out);
}
static inline __m128i _mm512_cvtusepi32_epi8(__m512i a) {
    uint32_t in[16];
    uint8_t out[16];
    _mm512_storeu_si512(in, a);
    for (int i = 0; i < 16; i++) out[i] = uint8_t(in[i] > 255 ? 255 : in[i]);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(out));
}
static inline __m128i _mm_maskz_loadu_epi8(uint16_t mask, const void* p) {
    uint8_t out[16] = {};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) out[i] = static_cast<const uint8_t*>(p)[i];
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(out));
}
static inline void _mm512_mask_storeu_ps(float* p, uint16_t mask, __m512 a) {
    float in[16];
    _mm512_storeu_ps(in, a);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = in[i];
}
static inline void _mm512_stream_ps(float* p, __m512 a) { _mm512_storeu_ps(p, a); }
#define _mm512_shuffle_f32x4(a, b, imm8) \
    _mm512_castsi512_ps(_mm512_shuffle_i32x4(_mm512_castps_si512(a), _mm512_castps_si512(b), imm8))
#else
#include <immintrin.h>
#endif

namespace {

constexpr int W = 16;
constexpr int kMaxRows = 8;
struct F { __m512 v; };
struct I { __m512i v; };
using Bytes = __m512i;

inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
// Past the caches, to a multiple of its bytes; before another thread may read it, fence().
inline void stream(float* p, F a) { _mm512_stream_ps(p, a.v); }
inline void fence() { _mm_sfence(); }
// The first n < W of them and zeros; no byte behind them is read.
inline F load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(uint16_t((1u << n) - 1), p)}; }
inline F set1(float a) { return {_mm512_set1_ps(a)}; }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
// a * b + c, rounded once or twice: only for what is checked afterwards.
inline F multiply_add(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F abs(F a) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff)))};
}
// 8: to nearest, half to even, no exceptions.
inline F round_even(F a) { return {_mm512_roundscale_ps(a.v, 0x8)}; }
inline F select_negative(F a, F yes, F no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_LT_OQ), no.v, yes.v)};
}
inline bool any_nan(F a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }

inline float lowest(F a) {
    float v[W], m;
    store(v, a);
    m = v[0];
    for (int i = 1; i < W; i++) m = v[i] < m ? v[i] : m;
    return m;
}
inline float highest(F a) { return -lowest(set1(0.0f) - a); }

// Lane i: the sum of the lanes of a[i].
inline F sums(const F (&a)[W]) {
    __m512 fours[4];  // of each quarter of 128 bits
    for (int i = 0; i < 4; i++) {
        const F* b = a + 4 * i;
        __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(b[0].v, b[1].v), _mm512_unpackhi_ps(b[0].v, b[1].v));
        __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(b[2].v, b[3].v), _mm512_unpackhi_ps(b[2].v, b[3].v));
        __m512d l = _mm512_castps_pd(low), h = _mm512_castps_pd(high);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)), _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
    }
    auto halves = [](__m512 x, __m512 y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    };
    __m512 x = halves(fours[0], fours[1]), y = halves(fours[2], fours[3]);
    return {_mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd))};
}

inline I load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline I set1(int32_t a) { return {_mm512_set1_epi32(a)}; }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I operator*(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I operator|(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I operator^(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline bool all_zero(I a) { return _mm512_test_epi32_mask(a.v, a.v) == 0; }
inline I bits(F a) { return {_mm512_castps_si512(a.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F power_of_two(I n) { return {_mm512_castsi512_ps(_mm512_slli_epi32((n + set1(127)).v, 23))}; }

// clamp(a, 0, 127) as bytes.
template <int C>
inline void store_clamped(uint8_t* p, const I (&a)[C]) {
    for (int c = 0; c < C; c++) {
        __m512i in = _mm512_max_epi32(_mm512_min_epi32(a[c].v, _mm512_set1_epi32(127)), _mm512_setzero_si512());
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + c * W), _mm512_cvtsepi32_epi8(in));
    }
}

// W codes of a table as floats.
inline F load_codes(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// n < W codes with zeros behind them, and the first n lanes. What is masked out is not touched.
inline F load_codes(const uint8_t* p, int64_t n) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(uint16_t((1 << n) - 1), p)))};
}
inline void store(float* p, F a, int64_t n) { _mm512_mask_storeu_ps(p, uint16_t((1 << n) - 1), a.v); }
inline void load_scale_bias(const uint8_t* p, F* scale, F* bias) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    __m128 floats = _mm_cvtph_ps(_mm_cvtsi32_si128(pair));
    *scale = {_mm512_broadcastss_ps(floats)};
    *bias = {_mm512_broadcastss_ps(_mm_movehdup_ps(floats))};
}
#define RP_CODES_IN_LANES 1

// Of codes of 4 bits a row has 16 values at most: they are made once, and looked up: half of the instructions.
inline F nibble_values(F scale, F bias) {
    const __m512i codes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return F{_mm512_cvtepi32_ps(codes)} * scale + bias;
}
inline F look_up(F values, __m512i low, __m512i high) {
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    __m512i eight = _mm512_mask_blend_epi32(0xff00, low, high);
    return {_mm512_permutexvar_ps(_mm512_srlv_epi32(eight, shifts), values.v)};  // takes the low 4 bits of each lane
}
inline F look_up_nibbles(F values, const uint8_t* p) {
    return look_up(values, _mm512_broadcastd_epi32(_mm_loadu_si32(p)), _mm512_broadcastd_epi32(_mm_loadu_si32(p + 4)));
}
inline F look_up_nibbles(F values, const uint8_t* p, int64_t n) {
    __m128i eight = _mm_maskz_loadu_epi8(uint16_t((1 << (n + 1) / 2) - 1), p);
    return look_up(values, _mm512_broadcastd_epi32(eight), _mm512_broadcastd_epi32(_mm_srli_si128(eight, 4)));
}
#define RP_NIBBLES_LOOKED_UP 1

// Whole numbers 0 to 255 as bytes.
inline void store_bytes(uint8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(a.v));
}

inline Bytes load_bytes(const int8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes broadcast4(const uint8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
// W weights as floats.
inline F load_weights(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline I dot4(I acc, Bytes a, Bytes w) { return {_mm512_dpbusd_epi32(acc.v, a, w)}; }

// 2:4: each column takes 4 of 8 activations, broadcast to every 8 bytes, by the low 4 bits of its bytes of `places`.
inline Bytes later(Bytes places) { return _mm512_srli_epi16(places, 4); }  // vpshufb ignores what bits 4 to 6 hold then
inline I gather_dot4(I acc, const uint8_t* q, Bytes places, Bytes w) {
    int64_t eight;
    std::memcpy(&eight, q, 8);
    return dot4(acc, _mm512_shuffle_epi8(_mm512_set1_epi64(eight), places), w);
}

}  // namespace
