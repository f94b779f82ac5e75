// float16 and bfloat16 to float32 and back, one value at a time, exactly as the instructions do it.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float half_to_float(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, rest = uint32_t(h & 0x7fff) << 13, bits;
    float f;
    if (rest >= 0x0f800000) {
        bits = rest | 0x7f800000;  // infinity or NaN
    } else {
        // Exponents are rebiased by a multiplication with 2^112, which takes the subnormals along.
        std::memcpy(&f, &rest, 4);
        f *= 5.192296858534828e33f;
        std::memcpy(&bits, &f, 4);
    }
    bits |= sign;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline uint16_t float_to_half(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds beyond 65504
    if (bits < 0x38800000) {                       // subnormal: the addition rounds half to even
        std::memcpy(&f, &bits, 4);
        f += 0.5f;
        std::memcpy(&bits, &f, 4);
        return sign | uint16_t(bits - 0x3f000000);
    }
    return sign | uint16_t((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

inline float bfloat_to_float(uint16_t b) {
    uint32_t bits = uint32_t(b) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline uint16_t float_to_bfloat(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace
