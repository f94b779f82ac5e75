// The exported functions: read the packed headers, choose the instruction set, run.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <initializer_list>

#include "abi.h"
#include "pack.h"

namespace recpress {

namespace {

struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Scratch() { std::free(memory); }
};
thread_local Scratch thread_scratch;

constexpr int kMaxLayers = 64;

bool has(Isa isa) {
#if defined(RECPRESS_SIMDE)
    return isa == kPortable || isa == kAvx512Vnni;
#elif defined(RP_X86)
    if (isa == kAvx512Vnni)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
    if (isa == kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    return isa == kPortable;
}

Isa best() {
    static const Isa found = has(kAvx512Vnni) ? kAvx512Vnni : has(kAvx2) ? kAvx2 : kPortable;
    return found;
}

Status dispatch(int32_t isa, const Call& call) {
    isa = resolve(isa);
    if (isa < 0) return kUnknownIsa;
#if defined(RP_X86) || defined(RECPRESS_SIMDE)
    if (isa == kAvx512Vnni) return run_vnni(call);
#endif
#if defined(RP_X86)
    if (isa == kAvx2) return run_avx2(call);
#endif
    return run_portable(call);
}

// Whether [at, at + size) lies within the buffer behind its headers.
bool within(int64_t at, int64_t size, int64_t front, int64_t bytes) {
    return at >= front && at % 64 == 0 && size >= 0 && at <= bytes && size <= bytes - at;
}

Status read_layer(const uint8_t* buffer, const BufferHeader& head, int i, Layer* layer) {
    LayerHeader h;
    int64_t front = int64_t(sizeof(BufferHeader) + head.layers * sizeof(LayerHeader));
    std::memcpy(&h, buffer + sizeof(BufferHeader) + size_t(i) * sizeof(LayerHeader), sizeof h);
    if (h.n < 1 || h.k < 1 || h.k > (1 << 18) || h.k_padded != (h.k + kStep - 1) / kStep * kStep) return kCorrupt;
    if (h.activation < kNone || h.activation > kSilu) return kCorrupt;
    if (h.flags & ~(kHasBias | kIsSparse24 | kKeepsFloats)) return kCorrupt;
    bool sparse = h.flags & kIsSparse24, floats = h.flags & kKeepsFloats;
    if (floats && (sparse || h.depth != 1)) return kCorrupt;
    int64_t columns = (int64_t(h.n) + kPanel - 1) / kPanel * kPanel;
    int64_t weights = sparse ? columns / kPanel * (h.k_padded / kSparseUnit) * kSparseUnitBytes : columns * h.k_padded;
    if (!within(h.weights, weights, front, head.bytes)) return kCorrupt;
    for (int64_t at : {h.sums, h.scales, h.bias})
        if (!within(at, columns * 4, front, head.bytes)) return kCorrupt;
    const int32_t* wide = nullptr;
    int64_t wide_count = 0;
    if (h.depth != 1 && h.depth != 2 && (h.depth != 4 || sparse)) return kCorrupt;
    if (h.depth > 1) {
        int64_t panels = columns / kPanel;
        if (!within(h.wide, (panels + 1) * 4, front, head.bytes)) return kCorrupt;
        wide = reinterpret_cast<const int32_t*>(buffer + h.wide);
        wide_count = wide[panels];
        if (wide_count < 0 || !within(h.wide, (panels + 1 + wide_count) * 4, front, head.bytes)) return kCorrupt;
    }
    if (!(h.x_scale >= 0.0f) || h.x_scale > std::numeric_limits<float>::max()) return kCorrupt;
    if (h.x_zero_point < 0 || h.x_zero_point > 127 || (floats && h.x_scale != 0.0f)) return kCorrupt;
    Kind kind = sparse ? Kind::kSparse24 : floats ? Kind::kFloats : Kind::kDense;
    *layer = {h.n, h.k, h.k_padded, kind, {h.x_scale, h.x_zero_point}, h.activation, h.depth, wide, wide_count,
              reinterpret_cast<const int8_t*>(buffer + h.weights),
              reinterpret_cast<const int32_t*>(buffer + h.sums),
              reinterpret_cast<const float*>(buffer + h.scales),
              reinterpret_cast<const float*>(buffer + h.bias)};
    return kOk;
}

Status read_layers(const uint8_t* buffer, int64_t bytes, Layer* layers, int32_t* count) {
    BufferHeader head;
    if (bytes < int64_t(sizeof head)) return kNotPacked;
    std::memcpy(&head, buffer, sizeof head);
    if (std::memcmp(head.magic, "RPINT8\0\0", 8) != 0) return kNotPacked;
    if (head.version != kVersion || head.layout != kLayout) return kOtherFormat;
    if (head.bytes != bytes || head.layers < 1 || head.layers > kMaxLayers ||
        bytes < int64_t(sizeof(BufferHeader) + size_t(head.layers) * sizeof(LayerHeader)))
        return kCorrupt;
    for (int i = 0; i < head.layers; i++) {
        if (auto status = read_layer(buffer, head, i, &layers[i])) return status;
        if (i && layers[i].k != layers[i - 1].n) return kCorrupt;
    }
    *count = head.layers;
    return kOk;
}

}  // namespace

int32_t resolve(int32_t isa) { return isa == kAuto ? best() : has(Isa(isa)) ? isa : -1; }

void* scratch(size_t bytes) {
    Scratch& s = thread_scratch;
    if (s.bytes < bytes) {
        std::free(s.memory);
        bytes = (bytes + 4095) / 4096 * 4096;
        s.memory = std::aligned_alloc(64, bytes);
        s.bytes = s.memory ? bytes : 0;
    }
    return s.memory;
}

void pack_panel(const int8_t* weight, int64_t columns, int64_t k, int64_t k_padded, int8_t* panel, int32_t* sums) {
    std::memset(panel, 0, size_t(k_padded) * kPanel);
    for (int64_t c = 0; c < columns; c++) {
        const int8_t* row = weight + c * k;
        int32_t sum = 0;
        for (int64_t i = 0; i < k; i++) sum += row[i];
        sums[c] = sum;
        int64_t i = 0;
        for (; i + kGroup <= k; i += kGroup) std::memcpy(panel + (i * kPanel) + c * kGroup, row + i, kGroup);
        std::memcpy(panel + (i * kPanel) + c * kGroup, row + i, size_t(k - i));
    }
}

void pack_float_panel(const int8_t* weight, int64_t columns, int64_t k, int64_t k_padded, int8_t* panel, int32_t*) {
    std::memset(panel, 0, size_t(k_padded) * kPanel);
    for (int64_t c = 0; c < columns; c++)
        for (int64_t i = 0; i < k; i++) panel[i * kPanel + c] = weight[c * k + i];
}

}  // namespace recpress

using namespace recpress;

// Rises with every change of this interface, so that Python refuses a library that an older source left behind.
RP_EXPORT int32_t recpress_abi() { return 11; }

// The instruction set that kAuto stands for.
RP_EXPORT int32_t recpress_isa() { return best(); }

RP_EXPORT int32_t recpress_has_isa(int32_t isa) { return has(Isa(isa)); }

// A packed stack of at most `most` layers, dynamic quantisation throughout: the short way for small batches.
RP_EXPORT int32_t recpress_mlp(const void* x, int64_t rows, int64_t k, int64_t x_stride, int32_t dtype,
                               const uint8_t* packed, int64_t packed_bytes, void* y, int64_t n, int32_t most,
                               int32_t isa) {
    Layer layers[kMaxLayers];
    Call call{x, rows, x_stride, dtype, dtype, y, {}, {}, layers, 0, nullptr, nullptr, 0};
    if (auto status = read_layers(packed, packed_bytes, layers, &call.layer_count)) return status;
    if (call.layer_count > most) return kStack;
    if (layers[0].k != k) return kInFeatures;
    if (layers[call.layer_count - 1].n != n) return kOutFeatures;
    return dispatch(isa, call);
}

// cross * (the packed stack of x) + x, all of them float32 [rows, n].
RP_EXPORT int32_t recpress_cross(const float* cross, int64_t cross_stride, const void* x, int64_t rows, int64_t n,
                                 int64_t x_stride, const uint8_t* packed, int64_t packed_bytes, void* y, int32_t isa) {
    Layer layers[kMaxLayers];
    Call call{x, rows, x_stride, kFloat32, kFloat32, y, {}, {}, layers, 0, nullptr, cross, cross_stride};
    if (auto status = read_layers(packed, packed_bytes, layers, &call.layer_count)) return status;
    if (layers[0].k != n) return kInFeatures;
    if (layers[call.layer_count - 1].n != n) return kOutFeatures;
    return dispatch(isa, call);
}

// One layer with every option. `canonical` int8 [n, k] with `scales` and `bias`, or `packed`.
struct LinearArguments {
    const void* x;
    void* y;
    const uint8_t* packed;
    int64_t packed_bytes;
    const int8_t* canonical;
    const float *scales, *bias;
    int64_t rows, x_stride, n, k;
    int32_t x_dtype, y_dtype, activation, isa, keeps_floats;
    float x_scale, y_scale;  // 0 where there is none
    int32_t x_zero_point, y_zero_point;
};

RP_EXPORT int32_t recpress_linear(const LinearArguments* a) {
    Layer layers[kMaxLayers];
    Call call{a->x, a->rows, a->x_stride, a->x_dtype, a->y_dtype, a->y, {a->x_scale, a->x_zero_point},
              {a->y_scale, a->y_zero_point}, layers, 1, a->canonical, nullptr, 0};
    if (a->canonical) {
        int64_t k_padded = (a->k + kStep - 1) / kStep * kStep;
        Kind kind = a->keeps_floats ? Kind::kFloats : Kind::kDense;
        layers[0] = {a->n, a->k, k_padded, kind, {}, a->activation, 1, nullptr, 0, nullptr, nullptr, a->scales, a->bias};
    } else {
        if (auto status = read_layers(a->packed, a->packed_bytes, layers, &call.layer_count)) return status;
        if (call.layer_count != 1) return kStack;
        if (layers[0].k != a->k) return kInFeatures;
        if (layers[0].n != a->n) return kOutFeatures;
    }
    if (layers[0].kind == Kind::kFloats && (a->x_scale != 0.0f || a->y_scale != 0.0f || a->x_dtype == kUInt8)) return kFloatInputs;
    return dispatch(a->isa, call);
}
