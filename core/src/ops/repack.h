// The weights of a program as this instruction set reads them: in 16 bits, for blocks of kBlock channels.
#pragma once
#include <stdlib.h>

#include "../platform.h"
#include "convolution.h"
#include "vector.h"

namespace evs::EVS_ISA {

#if !EVS_IS_FLOAT32
// Appends weights to memory; without memory it only counts.
struct Packer {
    const float *from;
    E *to;
    int64_t used = 0;
    static constexpr int64_t kAligned = 64 / sizeof(E);

    int64_t take(int64_t count) {
        const int64_t at = used;
        used += (count + kAligned - 1) / kAligned * kAligned;
        return at;
    }
    // Rows of kPacked output channels to rows of kBlock: `blocks` sets of `rows`.
    int64_t rows(int64_t offset, int channels, int64_t rows) {
        const int64_t at = take(blocks_of(channels) * rows * kBlock * int64_t(sizeof(W) / sizeof(E)));
        const float *w = from + offset;
        if (to == nullptr) return at;
        W *place = reinterpret_cast<W *>(to + at);
        for (int b = 0; b < blocks_of(channels); b++)
            for (int64_t r = 0; r < rows; r++)
                for (int lane = 0; lane < kBlock; lane++) {
                    const int c = b * kBlock + lane;
                    *place++ = c < padded(channels, kPacked) ? W(w[((c / kPacked) * rows + r) * kPacked + c % kPacked]) : W(0);
                }
        return at;
    }
#if EVS_IS_BFLOAT16
    // The same for `dots`: [16 outputs][tap][input channel / 2][16][2].
    int64_t dots(int64_t offset, int inputs, int outputs, int taps) {
        const int64_t per_half = dots_of(inputs, taps), at = take(blocks_of(outputs) * kBlock / kPacked * per_half);
        if (to == nullptr) return at;
        memset(static_cast<void *>(to + at), 0, size_t(blocks_of(outputs) * kBlock / kPacked * per_half) * sizeof(E));
        for (int o = 0; o < padded(outputs, kPacked); o++)
            for (int t = 0; t < taps; t++)
                for (int c = 0; c < inputs; c++)
                    to[at + o / kPacked * per_half + (int64_t(t) * padded(inputs, kDotInputs) / 2 + c / 2) * 2 * kPacked + o % kPacked * 2 + c % 2] =
                        E(from[offset + ((int64_t(o / kPacked) * taps + t) * inputs + c) * kPacked + o % kPacked]);
        return at;
    }
#endif
    // The same for `pointwise_pairs`: [input channel / 2][16][2].
    int64_t pairs(int64_t offset, int inputs) {
        const int64_t at = take(int64_t(inputs) * kPacked);
        if (to == nullptr) return at;
        for (int c = 0; c < inputs; c++)
            for (int o = 0; o < kPacked; o++) to[at + (c / 2 * kPacked + o) * 2 + c % 2] = E(from[offset + c * kPacked + o]);
        return at;
    }
    // Where the weight from one channel of a unit to another lies.
    static int64_t grouped(int unit, int in, int out) {
#if EVS_IS_BFLOAT16
        return (int64_t(out / kPacked) * unit / 2 + in / 2) * 2 * kPacked + out % kPacked * 2 + in % 2;
#else
        return (out / kBlock * int64_t(unit) + in) * kBlock + out % kBlock;
#endif
    }
    // Groups of `dim` channels that mix among themselves. Several groups in one block become one that mixes no others.
    int64_t groups(int64_t offset, int count, int dim) {
        const int unit = dim < kBlock ? kBlock : dim, units = (count * dim + unit - 1) / unit;
        const int64_t at = take(int64_t(units) * unit * unit);
        if (to == nullptr) return at;
        for (int u = 0; u < units; u++)
            for (int out = 0; out < unit; out++)
                for (int in = 0; in < unit; in++) {
                    const int g = (u * unit + out) / dim, o = (u * unit + out) % dim, i = u * unit + in - g * dim;
                    const bool inside = g < count && i >= 0 && i < dim;
                    to[at + u * int64_t(unit) * unit + grouped(unit, in, out)] =
                        inside ? E(from[offset + ((g * (dim / kPacked) + o / kPacked) * int64_t(dim) + i) * kPacked + o % kPacked]) : E(0);
                }
        return at;
    }
    int64_t floats(int64_t offset, int64_t count) {
        const int64_t at = take(count * int64_t(sizeof(float) / sizeof(E)));
        if (to != nullptr) memcpy(to + at, from + offset, size_t(count) * sizeof(float));
        return at;
    }
};

// Gives operations the places of their new weights.
inline void repack(Op &op, const Op *source, Packer &p) {
    // The first convolution of a block reads what its source gives: bytes, planar rows, or blocks of channels.
    const bool reads_blocks = source != nullptr && source->kind != Kind::image && !source->planar;
    auto rows = [&](int64_t &w, int64_t &b, int in, int out, int taps) { w = p.rows(w, out, int64_t(in) * taps), b = p.rows(b, out, 1); };
#if EVS_IS_BFLOAT16
    auto dense = [&](int64_t &w, int64_t &b, int in, int out, int taps) { w = p.dots(w, in, out, taps), b = p.rows(b, out, 1); };
#else
    auto dense = rows;
#endif
    auto first = [&](int64_t &w, int64_t &b, int in, int out, int taps) {
        if (reads_blocks) {
            dense(w, b, in, out, taps);
        } else {
            rows(w, b, in, out, taps);
        }
    };
    auto depthwise = [&](int64_t &w, int64_t &b, int channels, int taps) { w = p.rows(w, channels, taps), b = p.rows(b, channels, 1); };
    auto projection = [&](int64_t &w, int64_t &b, int in, int out) {
        if (!takes_pairs(in, out)) return dense(w, b, in, out, 1);
        w = p.pairs(w, in), b = p.rows(b, out, 1);
    };
    switch (op.kind) {
        case Kind::image: op.w1 = p.floats(op.w1, 8); break;
        case Kind::conv3: first(op.w1, op.b1, op.in, op.out, 9); break;
        case Kind::pointwise: projection(op.w1, op.b1, op.in, op.out); break;
        case Kind::inverted:
            if (op.expands) first(op.w1, op.b1, op.in, op.mid, 1);
            depthwise(op.w2, op.b2, op.mid, 9);
            if (op.planar) {
                rows(op.w3, op.b3, op.mid, op.out, 1);
            } else {
                projection(op.w3, op.b3, op.mid, op.out);
            }
            break;
        case Kind::fused:
            dense(op.w1, op.b1, op.in, op.mid, 9);
            dense(op.w3, op.b3, op.mid, op.out, 1);
            break;
        case Kind::residual:
            dense(op.w1, op.b1, op.in, op.mid, 9);
            dense(op.w3, op.b3, op.mid, op.out, 9);
            break;
        case Kind::attend: dense(op.w1, op.b1, op.heads * op.head_dim * (1 + op.scales), op.out, 1); break;
        case Kind::sums: {
            const int tokens = 3 * op.heads * op.head_dim;
            dense(op.w1, op.b1, op.in, tokens, 1);
            for (int i = 0; i < op.scales; i++) {
                depthwise(op.wa[i], op.ba[i], tokens, op.kernels[i] * op.kernels[i]);
                op.wg[i] = p.groups(op.wg[i], 3 * op.heads, op.head_dim);
                op.bg[i] = p.rows(op.bg[i], tokens, 1);
            }
            break;
        }
        case Kind::value:
        case Kind::upsum:
        case Kind::tee:
        case Kind::cut:
        case Kind::store: break;
        case Kind::pool: {
            const int64_t mid = padded(op.mid, kPacked), out = padded(op.out, kPacked);
            op.w1 = p.floats(op.w1, mid * op.in), op.b1 = p.floats(op.b1, mid);
            op.w2 = p.floats(op.w2, mid), op.b2 = p.floats(op.b2, mid);
            op.w3 = p.floats(op.w3, out * op.mid), op.b3 = p.floats(op.b3, out);
            break;
        }
    }
}

// Replaces the weights of a checked program. Returns: false if memory runs out, or if the program cannot be run so.
// Operations of a hostile program may share weights; each gets its own here, so a program that grows too much is refused.
inline bool prepare(Program &p) {
    for (int i = 0; i < p.num_ops; i++)
        if (p.ops[i].kind == Kind::sums && p.ops[i].head_dim != kPacked && p.ops[i].head_dim % kBlock) return false;
    Packer counter{static_cast<const float *>(p.weights), nullptr};
    for (int i = 0; i < p.num_ops; i++) {
        Op op = p.ops[i];
        repack(op, i > 0 ? &p.ops[i - 1] : nullptr, counter);
    }
    if (counter.used > 8 * p.num_weights + (1 << 20)) return false;
    const size_t ops = (size_t(p.num_ops) * sizeof(Op) + 63) / 64 * 64, values = (size_t(p.num_values) * sizeof(Value) + 63) / 64 * 64,
                 segments = (size_t(p.num_segments) * sizeof(Segment) + 63) / 64 * 64;
    const size_t bytes = (size_t(counter.used) * sizeof(E) + 63) / 64 * 64;
    char *memory = static_cast<char *>(allocate_aligned(64, ops + values + segments + bytes));
    if (memory == nullptr) return false;
    Op *new_ops = reinterpret_cast<Op *>(memory);
    memcpy(memory, p.ops, size_t(p.num_ops) * sizeof(Op));
    memcpy(memory + ops, p.values, size_t(p.num_values) * sizeof(Value));
    memcpy(memory + ops + values, p.segments, size_t(p.num_segments) * sizeof(Segment));
    Packer packer{counter.from, reinterpret_cast<E *>(memory + ops + values + segments)};
    for (int i = 0; i < p.num_ops; i++) repack(new_ops[i], i > 0 ? &new_ops[i - 1] : nullptr, packer);
    free_aligned(p.memory);
    p.memory = memory;
    p.ops = new_ops;
    p.values = reinterpret_cast<const Value *>(memory + ops);
    p.segments = reinterpret_cast<const Segment *>(memory + ops + values);
    p.weights = packer.to;
    p.num_weights = packer.used;
    return true;
}
#else
inline bool prepare(Program &) { return true; }
#endif

}  // namespace evs::EVS_ISA
