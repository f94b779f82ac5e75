// The C ABI between Python (ctypes) and the kernels, and the packed form of weights.
//
// No torch, no Python, no OpenMP: the caller gives pointers, strides and sizes. Every function is safe to call from
// several threads at once; scratch memory belongs to the calling thread and is kept for its next call.
#pragma once

#include <cstddef>
#include <cstdint>

#define RP_EXPORT extern "C" __attribute__((visibility("default")))

namespace recpress {

enum Status : int32_t {
    kOk = 0,
    kNotPacked = -1,      // no magic at the front of the buffer
    kOtherFormat = -2,    // packed by another format version or layout
    kCorrupt = -3,        // sizes or offsets in the headers contradict the buffer's length or each other
    kInFeatures = -4,     // x has another K than the first layer
    kOutFeatures = -5,    // y has another N than the last layer
    kNoMemory = -6,
    kAbove127 = -7,       // quantised x holds a value above 127
    kNanToInteger = -8,   // a NaN would have to be written as an integer
    kUnknownIsa = -9,     // the instruction set asked for is not built in or not on this CPU
    kStack = -10,         // several layers where one is expected
    kOffsets = -11,       // offsets do not begin with 0, go down, or do not end with the number of indices
    kIndex = -12,         // an index outside its table
    kFloatInputs = -13,   // a calibrated pair, or quantised x, for a layer whose inputs stay float
    kValue = -14,         // NaN, infinity or a value beyond float16's range in a table to quantise
};

enum Dtype : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kUInt8 = 3 };
enum Activation : int32_t { kNone = 0, kRelu = 1, kGeluTanh = 2, kGeluErf = 3, kSigmoid = 4, kSilu = 5 };
enum Isa : int32_t { kAuto = 0, kPortable = 1, kAvx2 = 2, kAvx512Vnni = 3 };

// The packed form; formats/packed.py writes it.
constexpr int kPanel = 16;  // output columns that lie together
constexpr int kGroup = 4;   // consecutive k of one column that lie together
constexpr int kStep = 16;   // k is padded with zero weights to a multiple of this
constexpr int kSparseUnit = 16;                // k of a 2:4 layer that lie together
constexpr int kSparseUnitBytes = kPanel * 12;  // of one panel: values [2][16][4], places [16][4]
constexpr uint32_t kVersion = 3;
constexpr uint32_t kLayout = 0x00100410;  // panel, group, step
constexpr int32_t kHasBias = 1, kIsSparse24 = 2, kKeepsFloats = 4;  // flags; the last: inputs are not quantised

struct BufferHeader {  // 64 bytes, followed by one LayerHeader a layer
    char magic[8];     // "RPINT8\0\0"
    uint32_t version, layout;
    int32_t layers, reserved0;
    int64_t bytes;  // of the whole buffer
    uint8_t reserved1[32];
};

struct LayerHeader {  // 128 bytes; offsets are from the front of the buffer, multiples of 64
    int32_t n, k, k_padded, activation, flags;
    int32_t depth;    // vpmaddubsw products that are added in 16 bits before they are widened: 1, 2 or, dense alone, 4
    int64_t weights;  // int8 [panels][k_padded / 4][16][4]; where floats are kept [panels][k_padded][16]; of a 2:4 layer
                      // [panels][k_padded / 16][192], see sparse24.h
    int64_t sums;     // int32 [panels * 16], sum_k w[n, k]
    int64_t scales;   // float32 [panels * 16]
    int64_t bias;     // float32 [panels * 16], zeros without a bias
    int64_t wide;     // with depth > 1: int32 [panels + 1] where each panel's list begins, then the lists, rising,
                      // of blocks of 4 * depth k, 2:4 of 8 * depth k, whose products must be widened one by one
    float x_scale;    // a calibrated pair for the inputs; 0: each row is quantised by its own range
    int32_t x_zero_point;
    uint8_t reserved[56];
};
static_assert(sizeof(BufferHeader) == 64 && sizeof(LayerHeader) == 128, "the packed form is fixed");

// What the kernels work on.

enum class Kind { kDense, kSparse24, kFloats };  // kFloats: inputs stay float32, weights are widened

struct Static {  // a calibrated pair; scale 0 where there is none
    float scale;
    int32_t zero_point;
};

struct Layer {
    int64_t n, k, k_padded;
    Kind kind;
    Static x_pair;
    int32_t activation, depth;
    const int32_t* wide;  // null where depth is 1
    int64_t wide_count;   // of all lists
    const int8_t* weights;
    const int32_t* sums;
    const float *scales, *bias;  // packed: zeros without a bias; canonical: null
};

struct Call {
    const void* x;
    int64_t rows, x_stride;  // x_stride in elements
    int32_t x_dtype, y_dtype;
    void* y;  // [rows, n of the last layer], contiguous
    Static x_pair, y_pair;  // x_pair: in place of the first layer's
    const Layer* layers;
    int32_t layer_count;
    const int8_t* canonical;  // int8 [n, k] of the only layer where it is not packed, else null
    const float* cross;       // null, or [rows, n] at cross_stride: y becomes cross * y + x, all float32
    int64_t cross_stride;
};

Status run_portable(const Call& call);
Status run_avx2(const Call& call);
Status run_vnni(const Call& call);

// Tables of int8 or int4 rows; formats/rows.py describes them, embedding_bag_rows/cpu.py writes this structure.

constexpr int kTail = 4;  // bytes behind the codes of a row: its scale and its bias, float16

struct IdMap {
    int64_t count;         // ids are 0 to count - 1
    int64_t oov;           // what others become, before the remap; -1: they are an error
    const int32_t* remap;  // [count], the stored row of each id, or null where they are the same
};

struct Table {
    const uint8_t* rows;  // uint8 [count, ceil(dim * bits / 8) + kTail], row i at i * stride
    int64_t count, stride, dim;
    int64_t column;  // of the indices, for single look-ups
    int64_t bits;    // of a code: 8, or 4 with the even code in the low half of its byte
    const IdMap* map;  // from the ids of the call to rows, or null where they are rows
};

struct Bags {
    const Table* tables;
    int64_t table_count, batch;
    const void* indices;  // int32, or int64 where `wide`; so are the offsets
    bool wide, mean;
    float* out;  // [batch, front_width + sum of dims], contiguous
    // Bags: indices [index_count], offsets [table_count * batch + 1], weights [index_count] or null.
    const void* offsets;
    int64_t index_count;
    const float* weights;
    // Single look-ups, where `offsets` is null: index (b, column) at b * row_stride + column * column_stride.
    int64_t row_stride, column_stride;
    const float* front;  // [batch, front_width] at front_stride, copied before the look-ups, or null
    int64_t front_width, front_stride;
};

Status bags_portable(const Bags& call);
Status bags_avx2(const Bags& call);
Status bags_vnni(const Bags& call);

struct RowsToQuantize {
    const float* x;  // [rows, dim], row i at i * x_stride
    int64_t rows, dim, x_stride;
    int32_t bits;
    int32_t greedy;  // whether the range of a row is narrowed while its squared error falls
    uint8_t* out;    // [rows, ceil(dim * bits / 8) + kTail], row i at i * out_stride
    int64_t out_stride;
};

Status quantize_rows_portable(const RowsToQuantize& call);
Status quantize_rows_avx2(const RowsToQuantize& call);
Status quantize_rows_vnni(const RowsToQuantize& call);

// Vectors of a row that meet each other: dot_interaction and fm_interaction.

struct Interaction {
    const void* vectors;  // [batch, count, dim], the last dimension contiguous
    int64_t batch, count, dim, batch_stride, vector_stride;  // strides in elements
    int32_t dtype, out_dtype;
    void* out;  // contiguous
    // Of dot products alone:
    bool self;          // of each vector with itself too
    const void* front;  // [batch, front_width] in `dtype` at front_stride, copied before the products, or null
    int64_t front_width, front_stride;
    Static out_pair;  // where out_dtype is kUInt8
};

Status dots_portable(const Interaction& call);
Status dots_avx2(const Interaction& call);
Status dots_vnni(const Interaction& call);
Status second_order_portable(const Interaction& call);
Status second_order_avx2(const Interaction& call);
Status second_order_vnni(const Interaction& call);

// The instruction set to run: kAuto resolved, or -1 where the one asked for is not built in or not on this CPU.
int32_t resolve(int32_t isa);

// At least `bytes` of this thread's scratch memory, 64-byte aligned, or null. Valid until the thread's next call.
void* scratch(size_t bytes);

}  // namespace recpress
