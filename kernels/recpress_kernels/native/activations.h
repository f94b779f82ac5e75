// Activations on lanes, in float32. Included after a simd_*.h. The order of operations is the same for every
// instruction set and nothing is fused, so that all paths give the same bits.
//
// Against float64 truth (tests/kernels/test_native_activations.py holds the bounds): sigmoid, silu and gelu_tanh
// within a few ulp; gelu_erf within 2e-7 * |x|.
#pragma once

#include "abi.h"

namespace {

// e^x: x = n ln 2 + r, a polynomial of degree 6 for e^r (Cephes expf), 2^n in two factors so that the result
// overflows to infinity and goes down to 0 in the subnormals as it should. NaN stays NaN.
inline F exp(F x) {
    x = max(set1(-104.0f), min(set1(89.0f), x));
    F n = round_even(x * set1(1.44269504088896341f));
    F r = x - n * set1(0.693359375f);
    r = r - n * set1(-2.12194440e-4f);
    F p = set1(1.9875691500e-4f);
    p = p * r + set1(1.3981999507e-3f);
    p = p * r + set1(8.3334519073e-3f);
    p = p * r + set1(4.1665795894e-2f);
    p = p * r + set1(1.6666665459e-1f);
    p = p * r + set1(5.0000001201e-1f);
    p = p * (r * r) + r + set1(1.0f);
    F half = round_even(n * set1(0.5f));
    return p * power_of_two(to_int(half)) * power_of_two(to_int(n - half));
}

inline F sigmoid(F x) { return set1(1.0f) / (set1(1.0f) + exp(set1(0.0f) - x)); }

// erfc(z) for z >= 0 by the Chebyshev fit of Numerical Recipes (erfcc), 1.2e-7 relative before rounding.
inline F erfc_positive(F z) {
    F t = set1(1.0f) / (set1(1.0f) + set1(0.5f) * z);
    F p = set1(0.17087277f);
    p = p * t + set1(-0.82215223f);
    p = p * t + set1(1.48851587f);
    p = p * t + set1(-1.13520398f);
    p = p * t + set1(0.27886807f);
    p = p * t + set1(-0.18628806f);
    p = p * t + set1(0.09678418f);
    p = p * t + set1(0.37409196f);
    p = p * t + set1(1.00002368f);
    p = p * t + set1(-1.26551223f);
    return t * exp(p - z * z);
}

// x * Phi(x), Phi(x) = erfc(-x / sqrt 2) / 2.
inline F gelu_erf(F x) {
    F tail = set1(0.5f) * erfc_positive(abs(x) * set1(0.70710678118654752f));
    return x * select_negative(x, tail, set1(1.0f) - tail);
}

// x / 2 * (1 + tanh u) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline F gelu_tanh(F x) {
    F cube = x * x * x;
    return x * sigmoid(set1(1.59576912160573071f) * (x + set1(0.044715f) * cube));
}

template <F (*FUNCTION)(F)>
inline void map(int64_t n, float* y) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(y + i, FUNCTION(load(y + i)));
    if (i == n) return;
    float last[W] = {};
    std::memcpy(last, y + i, size_t(n - i) * sizeof(float));
    store(last, FUNCTION(load(last)));
    std::memcpy(y + i, last, size_t(n - i) * sizeof(float));
}

inline F silu(F x) { return x * sigmoid(x); }

// y[0, n) by an activation beyond none and relu.
inline void smooth(int32_t activation, int64_t n, float* y) {
    if (activation == recpress::kGeluTanh) return map<gelu_tanh>(n, y);
    if (activation == recpress::kGeluErf) return map<gelu_erf>(n, y);
    if (activation == recpress::kSigmoid) return map<sigmoid>(n, y);
    map<silu>(n, y);
}

}  // namespace
