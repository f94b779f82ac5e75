// Four lanes in the vector extension of GCC and Clang, for any CPU: the vocabulary that body.h is written in.
// Each min and max returns b where a or b is NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int W = 4;
constexpr int kMaxRows = 2;
typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef int8_t Char16 __attribute__((vector_size(16)));
typedef int16_t Short16 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));
typedef uint64_t ULong4 __attribute__((vector_size(32)));
struct F { Float4 v; };
struct I { Int4 v; };
struct Bytes { Char16 v; };  // 4 columns of 4 k

inline F load(const float* p) { F a; std::memcpy(&a.v, p, 16); return a; }
inline void store(float* p, F a) { std::memcpy(p, &a.v, 16); }
// Past the caches where an instruction set can: here it cannot.
inline void stream(float* p, F a) { store(p, a); }
inline void fence() {}
// The first n < W of them and zeros; no byte behind them is read.
inline F load(const float* p, int64_t n) {
    F a = {Float4{}};
    std::memcpy(&a.v, p, size_t(n) * sizeof(float));
    return a;
}
inline F set1(float a) { return {Float4{a, a, a, a}}; }
inline F operator+(F a, F b) { return {a.v + b.v}; }
inline F operator-(F a, F b) { return {a.v - b.v}; }
inline F operator*(F a, F b) { return {a.v * b.v}; }
inline F operator/(F a, F b) { return {a.v / b.v}; }
inline F blend(Int4 mask, F yes, F no) { return {(Float4)((mask & (Int4)yes.v) | (~mask & (Int4)no.v))}; }
inline F min(F a, F b) { return blend(a.v < b.v, a, b); }
inline F max(F a, F b) { return blend(a.v > b.v, a, b); }
// a * b + c, rounded once or twice: only for what is checked afterwards.
inline F multiply_add(F a, F b, F c) { return {a.v * b.v + c.v}; }
inline F abs(F a) { return {(Float4)((Int4)a.v & 0x7fffffff)}; }
// Half to even for |a| < 2^22, where adding 1.5 * 2^23 leaves no fraction bits.
inline F round_even(F a) { return {(a.v + 12582912.0f) - 12582912.0f}; }
inline F select_negative(F a, F yes, F no) { return blend(a.v < 0.0f, yes, no); }
inline bool all_set(Int4 m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
inline bool any_nan(F a) { return !all_set(a.v == a.v); }

inline float lowest(F a) {
    float m = a.v[0];
    for (int i = 1; i < W; i++) m = a.v[i] < m ? a.v[i] : m;
    return m;
}
inline float highest(F a) { return -lowest({-a.v}); }

// Lane i: the sum of the lanes of a[i].
inline F sums(const F (&a)[W]) {
    auto lane = [&](int l) { return F{Float4{a[0].v[l], a[1].v[l], a[2].v[l], a[3].v[l]}}; };
    return (lane(0) + lane(2)) + (lane(1) + lane(3));
}

inline I load(const int32_t* p) { I a; std::memcpy(&a.v, p, 16); return a; }
inline I set1(int32_t a) { return {Int4{a, a, a, a}}; }
inline I operator+(I a, I b) { return {a.v + b.v}; }
inline I operator-(I a, I b) { return {a.v - b.v}; }
inline I operator*(I a, I b) { return {a.v * b.v}; }
inline I operator|(I a, I b) { return {a.v | b.v}; }
inline I operator^(I a, I b) { return {a.v ^ b.v}; }
inline bool all_zero(I a) { return (a.v[0] | a.v[1] | a.v[2] | a.v[3]) == 0; }
inline I bits(F a) { return {(Int4)a.v}; }
inline F to_float(I a) { return {__builtin_convertvector(a.v, Float4)}; }
inline I to_int(F a) { return {__builtin_convertvector(round_even(a).v, Int4)}; }
inline F power_of_two(I n) { return {(Float4)((n.v + 127) << 23)}; }

// clamp(a, 0, 127) as bytes.
template <int C>
inline void store_clamped(uint8_t* p, const I (&a)[C]) {
    for (int c = 0; c < C; c++)
        for (int i = 0; i < W; i++) p[c * W + i] = uint8_t(a[c].v[i] < 0 ? 0 : a[c].v[i] > 127 ? 127 : a[c].v[i]);
}

// W codes of a table as floats.
inline F load_codes(const uint8_t* p) {
    typedef uint8_t Codes __attribute__((vector_size(4)));
    Codes codes;
    std::memcpy(&codes, p, 4);
    return {__builtin_convertvector(codes, Float4)};
}

// W codes of 4 bits, two in a byte, as floats.
inline F load_nibbles(const uint8_t* p) {
    Int4 codes = {p[0] & 15, p[0] >> 4, p[1] & 15, p[1] >> 4};
    return {__builtin_convertvector(codes, Float4)};
}

// Whole numbers 0 to 255 as bytes.
inline void store_bytes(uint8_t* p, I a) {
    for (int i = 0; i < W; i++) p[i] = uint8_t(a.v[i]);
}

inline Bytes load_bytes(const int8_t* p) { Bytes b; std::memcpy(&b.v, p, 16); return b; }
inline Bytes broadcast4(const uint8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return {(Char16)Int4{four, four, four, four}};
}
// W weights as floats.
inline F load_weights(const int8_t* p) {
    typedef int8_t Weights __attribute__((vector_size(4)));
    Weights weights;
    std::memcpy(&weights, p, 4);
    return {__builtin_convertvector(weights, Float4)};
}
inline I dot4(I acc, Bytes a, Bytes w) {
    // A product of at most 127 * 128 fits in 16 bits. Neighbours are added in halves of 32, then of 64 bits.
    Short16 product = __builtin_convertvector(a.v, Short16) * __builtin_convertvector(w.v, Short16);
    Int8 pairs = (((Int8)product << 16) >> 16) + ((Int8)product >> 16);
    ULong4 fours = (ULong4)pairs + ((ULong4)pairs >> 32);
    return {acc.v + __builtin_convertvector(fours, Int4)};
}

// 2:4: each column takes 4 of 8 activations by the low 3 bits of its bytes of `places`.
inline Bytes later(Bytes places) { return {(places.v >> 4) & 7}; }
inline I gather_dot4(I acc, const uint8_t* q, Bytes places, Bytes w) {
    Bytes kept;
    for (int i = 0; i < 16; i++) kept.v[i] = int8_t(q[places.v[i] & 7]);
    return dot4(acc, kept, w);
}

}  // namespace
