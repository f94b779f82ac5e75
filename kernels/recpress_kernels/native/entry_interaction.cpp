// The exported functions of vectors that meet each other.
#include "abi.h"

using namespace recpress;

namespace {

using Kernel = Status (*)(const Interaction&);

Status dispatch(int32_t isa, const Interaction& call, Kernel portable, Kernel avx2, Kernel vnni) {
    isa = resolve(isa);
    if (isa < 0) return kUnknownIsa;
    return (isa == kAvx512Vnni ? vnni : isa == kAvx2 ? avx2 : portable)(call);
}

#if defined(RP_X86)
#define RP_KERNELS(name) name##_portable, name##_avx2, name##_vnni
#elif defined(RECPRESS_SIMDE)
#define RP_KERNELS(name) name##_portable, nullptr, name##_vnni
#else
#define RP_KERNELS(name) name##_portable, nullptr, nullptr
#endif

// Where 512 bits are executed in two halves (Zen 4), tiles of 8 sums leave out less of the triangle than tiles of 16: AVX2
// takes 8 to 24 % less time. An instruction set that is asked for by its name is taken.
int32_t for_dots(int32_t isa) {
#if defined(RP_X86)
    if (isa == kAuto && resolve(isa) == kAvx512Vnni && __builtin_cpu_is("amdfam19h")) return kAvx2;
#endif
    return isa;
}

}  // namespace

// Vectors [batch, count, dim] to [batch, front_width + pairs] in the dtype of the vectors, or uint8 by the pair.
RP_EXPORT int32_t recpress_dots(const void* vectors, int64_t batch, int64_t count, int64_t dim, int64_t batch_stride,
                                int64_t vector_stride, int32_t dtype, const void* front, int64_t front_width,
                                int64_t front_stride, int32_t self, void* out, int32_t out_dtype, float out_scale,
                                int32_t out_zero_point, int32_t isa) {
    Interaction call{vectors, batch, count, dim, batch_stride, vector_stride, dtype, out_dtype, out, self != 0,
                     front, front_width, front_stride, {out_scale, out_zero_point}};
    return dispatch(for_dots(isa), call, RP_KERNELS(dots));
}

// Vectors [batch, count, dim] to [batch, 1] in their dtype.
RP_EXPORT int32_t recpress_second_order(const void* vectors, int64_t batch, int64_t count, int64_t dim,
                                        int64_t batch_stride, int64_t vector_stride, int32_t dtype, void* out,
                                        int32_t isa) {
    Interaction call{vectors, batch, count, dim, batch_stride, vector_stride, dtype, dtype, out, false,
                     nullptr, 0, 0, {0.0f, 0}};
    return dispatch(isa, call, RP_KERNELS(second_order));
}
