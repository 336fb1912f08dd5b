// The weights of a program as this instruction set reads them: as float16, for blocks of kBlock channels.
#pragma once
#include <stdlib.h>

#include "../platform.h"
#include "dense.h"
#include "vector.h"

namespace evs::EVS_ISA {

#if EVS_HALF
// Appends weights to memory; without memory it only counts.
struct Packer {
    const float *from;
    E *to;
    int64_t used = 0;

    int64_t take(int64_t count) {
        const int64_t at = used;
        used += (count + kBlock - 1) / kBlock * kBlock;
        return at;
    }
    // Rows of kPacked output channels to rows of kBlock: `blocks` sets of `rows`.
    int64_t rows(int64_t offset, int channels, int64_t rows) {
        const int64_t at = take(blocks_of(channels) * rows * kBlock);
        const float *w = from + offset;
        if (to == nullptr) return at;
        for (int b = 0; b < blocks_of(channels); b++)
            for (int64_t r = 0; r < rows; r++)
                for (int lane = 0; lane < kBlock; lane++) {
                    const int c = b * kBlock + lane;
                    to[at + (b * rows + r) * kBlock + lane] = c < padded(channels, kPacked) ? E(w[((c / kPacked) * rows + r) * kPacked + c % kPacked]) : E(0);
                }
        return at;
    }
    // The same for `pointwise_pairs`: [input channel / 2][16][2].
    int64_t pairs(int64_t offset, int inputs) {
        const int64_t at = take(int64_t(inputs) * kPacked);
        if (to == nullptr) return at;
        for (int c = 0; c < inputs; c++)
            for (int o = 0; o < kPacked; o++) to[at + (c / 2 * kPacked + o) * 2 + c % 2] = E(from[offset + c * kPacked + o]);
        return at;
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
                    to[at + ((u * (unit / kBlock) + out / kBlock) * int64_t(unit) + in) * kBlock + out % kBlock] =
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
inline void repack(Op &op, Packer &p) {
    auto dense = [&](int64_t &w, int64_t &b, int in, int out, int taps) { w = p.rows(w, out, int64_t(in) * taps), b = p.rows(b, out, 1); };
    auto depthwise = [&](int64_t &w, int64_t &b, int channels, int taps) { w = p.rows(w, channels, taps), b = p.rows(b, channels, 1); };
    auto projection = [&](int64_t &w, int64_t &b, int in, int out) {
        w = takes_pairs(in, out) ? p.pairs(w, in) : p.rows(w, out, in), b = p.rows(b, out, 1);
    };
    switch (op.kind) {
        case Kind::image: op.w1 = p.floats(op.w1, 8); break;
        case Kind::conv3: dense(op.w1, op.b1, op.in, op.out, 9); break;
        case Kind::pointwise: projection(op.w1, op.b1, op.in, op.out); break;
        case Kind::inverted:
            if (op.expands) dense(op.w1, op.b1, op.in, op.mid, 1);
            depthwise(op.w2, op.b2, op.mid, 9);
            if (op.planar) {
                dense(op.w3, op.b3, op.mid, op.out, 1);
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

// Replaces the weights of a program that was checked. Returns: whether there was memory, and the program can be run so.
inline bool prepare(Program &p) {
    for (int i = 0; i < p.num_ops; i++)
        if (p.ops[i].kind == Kind::sums && p.ops[i].head_dim != kPacked && p.ops[i].head_dim % kBlock) return false;
    Packer counter{static_cast<const float *>(p.weights), nullptr};
    for (int i = 0; i < p.num_ops; i++) {
        Op op = p.ops[i];
        repack(op, counter);
    }
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
    for (int i = 0; i < p.num_ops; i++) repack(new_ops[i], packer);
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
