// A program as the engine sees it after reading: plain tables that point into one block of weights.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../include/evitseg.h"

namespace evs {

constexpr int kPacked = 16;    // weights of this many output channels lie side by side, padded with zeros
constexpr int kNarrow = 8;     // channels of planar rows, padded with zeros
constexpr int kMaxNodes = 64;   // operations of a segment
constexpr int kMaxScales = 4;  // aggregation scales of one attention

enum class Kind : int32_t {
    image,      // source: normalised pixels from bytes
    value,      // source: a stored feature map
    attend,     // source: attention applied to stored queries, projected, added to the stored input
    conv3,      // dense 3x3 convolution
    inverted,   // [1x1 expansion], 3x3 depthwise, 1x1 projection, [residual]
    fused,      // dense 3x3 expansion, 1x1 projection, [residual]
    residual,   // two dense 3x3 convolutions, residual
    pointwise,  // 1x1 convolution
    upsum,      // adds two coarser feature maps, bicubically enlarged
    tee,        // stores rows on their way; a run may cut the segment here
    store,      // end: stores rows
    sums,       // end: queries, and sums of keys and values, for attention; among a token's channels all heads' queries come
                // first, then all keys, then all values
    pool,       // end: the mean over all pixels, and a classifier's scores from it
    cut,        // where a run may cut the segment in two: rows are stored only then
};

enum class Act : int32_t { none, hardswish, gelu, relu };

// One operation of a segment. Weight offsets count numbers from the start of the weights.
struct Op {
    Kind kind;
    Act act;            // after the first convolution (conv3, pointwise), or inside the block
    int32_t in, mid, out;  // channels
    int32_t stride;
    int32_t residual;
    int32_t value, value2, value3;  // feature maps that are read or written
    int32_t heads, head_dim, scales;
    int32_t kernels[kMaxScales];
    int32_t expands;    // whether an inverted block has its 1x1 expansion
    int64_t w1, b1, w2, b2, w3, b3;
    int64_t wa[kMaxScales], ba[kMaxScales], wg[kMaxScales], bg[kMaxScales];  // aggregation: depthwise, grouped
    float eps;
    int32_t planar;     // whether it gives planar rows (see ops/narrow.h)
};

struct Value {
    int32_t channels;
    int32_t stride;
};

struct Segment {
    int32_t first, count;  // operations
    int32_t stride;        // of its end, in image pixels
};

struct Program {
    int32_t classes = 0;
    int32_t num_ops = 0, num_values = 0, num_segments = 0;
    const Op *ops = nullptr;
    const Value *values = nullptr;
    const Segment *segments = nullptr;
    const void *weights = nullptr;  // float32; 16 bits in a model of half precision
    int64_t num_weights = 0;
    int32_t logits = 0;  // the value that holds them; -1 in a classifier
    void *memory = nullptr;  // owns all of the above
};

// Where a run may cut a segment in two: the first part ends here, and the second begins here.
inline bool may_cut(Kind k) { return k == Kind::tee || k == Kind::cut; }

// An end whose sums over all pixels are added up before the next segment.
inline bool adds_up(Kind k) { return k == Kind::sums || k == Kind::pool; }

inline int padded(int channels, int block) { return (channels + block - 1) / block * block; }

// Number of floats that are summed over the pixels: head_dim x head_dim products and head_dim keys for every head of every
// scale; in a classifier, the channels.
inline int sums_floats(const Op &op) {
    if (op.kind == Kind::pool) return padded(op.in, kPacked);
    return op.heads * (1 + op.scales) * (op.head_dim * op.head_dim + op.head_dim);
}

// Pixels to each side of an output pixel that an operation reads: half of its kernel.
inline int reach_of(const Op &op) {
    switch (op.kind) {
        case Kind::conv3:
        case Kind::inverted:
        case Kind::fused: return 1;
        case Kind::residual: return 2;
        case Kind::sums: {
            int most = 0;
            for (int i = 0; i < op.scales; i++) most = op.kernels[i] / 2 > most ? op.kernels[i] / 2 : most;
            return most;
        }
        default: return 0;
    }
}

// Reads and checks everything, so that running needs no check. Returns an EVS_ code.
int read_program(const void *bytes, size_t size, Program &program);
void free_program(Program &program);

}  // namespace evs
