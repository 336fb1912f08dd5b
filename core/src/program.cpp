// Reading a program from bytes that may come from anywhere: every number is checked before it is used.
#include "program.h"

#include "platform.h"

#include <initializer_list>
#include <stdlib.h>
#include <string.h>

#include "../include/evitseg.h"

namespace evs {
namespace {

constexpr char kMagic[8] = {'E', 'V', 'I', 'T', 'S', 'E', 'G', '2'};
constexpr int kMaxOps = 4096, kMaxValues = 4096, kMaxChannels = 1 << 17;

struct Header {
    char magic[8];
    int32_t op_bytes, num_ops, num_values, num_segments;
    int32_t classes, logits;
    int64_t num_weights;
};

bool channels_ok(int32_t n) { return n >= 1 && n <= kMaxChannels; }

// Whether `count` floats from `offset` lie inside the weights; offsets are multiples of a block.
struct Weights {
    int64_t total;
    bool has(int64_t offset, int64_t count) const {
        return offset >= 0 && offset % kPacked == 0 && count >= 0 && count <= total && offset <= total - count;
    }
    bool dense(int64_t w, int64_t b, int in, int out, int taps) const {
        const int64_t o = padded(out, kPacked);
        return has(w, o * in * taps) && has(b, o);
    }
    bool depthwise(int64_t w, int64_t b, int channels, int taps) const {
        const int64_t c = padded(channels, kPacked);
        return has(w, c * taps) && has(b, c);
    }
};

bool op_ok(const Op &op, const Program &p, const Weights &w) {
    if (op.act < Act::none || op.act > Act::relu) return false;
    for (const int32_t n : {op.in, op.mid, op.out})
        if (n < 0 || n > kMaxChannels) return false;
    const bool strides = op.kind == Kind::conv3 || op.kind == Kind::inverted || op.kind == Kind::fused;
    if (op.stride != 1 && !(strides && op.stride == 2)) return false;
    auto value_ok = [&](int32_t v, int channels) {
        return v >= 0 && v < p.num_values && p.values[v].channels == channels;
    };
    const bool same = op.stride == 1 && op.in == op.out;
    switch (op.kind) {
        case Kind::image: return op.out == 3 && w.has(op.w1, kPacked);
        case Kind::value:
        case Kind::tee:
        case Kind::cut:
        case Kind::store: return channels_ok(op.out) && op.in == op.out && value_ok(op.value, op.out);
        case Kind::conv3: return channels_ok(op.in) && channels_ok(op.out) && w.dense(op.w1, op.b1, op.in, op.out, 9);
        case Kind::pointwise:
            return channels_ok(op.in) && channels_ok(op.out) && w.dense(op.w1, op.b1, op.in, op.out, 1);
        case Kind::inverted:
            return channels_ok(op.in) && channels_ok(op.mid) && channels_ok(op.out) && (!op.residual || same) &&
                   (op.expands ? w.dense(op.w1, op.b1, op.in, op.mid, 1) : op.in == op.mid) &&
                   w.depthwise(op.w2, op.b2, op.mid, 9) && w.dense(op.w3, op.b3, op.mid, op.out, 1);
        case Kind::fused:
            return channels_ok(op.in) && channels_ok(op.mid) && channels_ok(op.out) && (!op.residual || same) &&
                   w.dense(op.w1, op.b1, op.in, op.mid, 9) && w.dense(op.w3, op.b3, op.mid, op.out, 1);
        case Kind::residual:
            return channels_ok(op.in) && channels_ok(op.mid) && same && w.dense(op.w1, op.b1, op.in, op.mid, 9) &&
                   w.dense(op.w3, op.b3, op.mid, op.out, 9);
        case Kind::upsum:
            return op.in == op.out && channels_ok(op.out) && value_ok(op.value, op.out) && value_ok(op.value2, op.out);
        case Kind::sums:
        case Kind::attend: {
            if (op.head_dim < kPacked || op.head_dim > 256 || op.head_dim % kPacked || op.heads < 1 || op.heads > 4096) return false;
            if (op.scales < 0 || op.scales > kMaxScales) return false;
            const int width = op.heads * op.head_dim;  // of one scale
            if (!channels_ok(width * 3) || !value_ok(op.value2, width * (1 + op.scales))) return false;
            // The sums: for every head of every scale head_dim x head_dim products and head_dim keys.
            if (op.value3 < 0 || op.value3 >= p.num_values) return false;
            if (op.kind == Kind::attend)
                return op.out == width && value_ok(op.value, width) && w.dense(op.w1, op.b1, width * (1 + op.scales), width, 1);
            if (op.in != width || !w.dense(op.w1, op.b1, width, 3 * width, 1)) return false;
            for (int i = 0; i < op.scales; i++) {
                const int k = op.kernels[i];
                if (k != 1 && k != 3 && k != 5 && k != 7) return false;
                if (!w.depthwise(op.wa[i], op.ba[i], 3 * width, k * k)) return false;
                if (!w.has(op.wg[i], int64_t(3) * width * op.head_dim) || !w.has(op.bg[i], 3 * width)) return false;
            }
            return true;
        }
        case Kind::pool:
            return p.logits < 0 && channels_ok(op.in) && channels_ok(op.mid) && op.out == p.classes && channels_ok(op.out) &&
                   op.value3 >= 0 && op.value3 < p.num_values && w.dense(op.w1, op.b1, op.in, op.mid, 1) && w.depthwise(op.w2, op.b2, op.mid, 1) &&
                   w.dense(op.w3, op.b3, op.mid, op.out, 1);
    }
    return false;
}

bool is_source(Kind k) { return k == Kind::image || k == Kind::value || k == Kind::attend; }
bool is_end(Kind k) { return k == Kind::store || k == Kind::sums || k == Kind::pool; }

// Planar rows come from the convolution at the image and from blocks without expansion; only a cut, such a block, or a
// block with expansion and without residual reads them.
bool planar_ok(const Op &op, const Op &source, bool is_first) {
    const bool reads = source.planar != 0, gives = op.planar != 0;
    switch (op.kind) {
        case Kind::conv3: return !reads && (!gives || (is_first && source.kind == Kind::image && op.stride == 2 && op.out == kNarrow));
        case Kind::cut: return reads == gives;
        case Kind::inverted:
            if (op.expands) return !gives && !(reads && op.residual);
            return reads == gives && (!gives || (op.stride == 1 && op.in == kNarrow && op.out == kNarrow));
        default: return !reads && !gives;
    }
}

// A segment is a source, operations whose channels fit each other, and an end; strides fit the values'.
bool segment_ok(const Segment &s, const Program &p) {
    if (s.first < 0 || s.count < 2 || s.count > kMaxNodes || s.count > p.num_ops || s.first > p.num_ops - s.count) return false;
    int stride = 0, channels = 0;
    for (int i = 0; i < s.count; i++) {
        const Op &op = p.ops[s.first + i];
        if (is_source(op.kind) != (i == 0) || is_end(op.kind) != (i == s.count - 1)) return false;
        if (i == 0) {
            stride = op.kind == Kind::image ? 1 : p.values[op.value].stride;
            channels = op.out;
            if (op.planar) return false;
            if (op.kind == Kind::attend && p.values[op.value2].stride != stride) return false;
            continue;
        }
        if (op.in != channels) return false;
        if (!planar_ok(op, p.ops[s.first + i - 1], i == 1)) return false;
        if (p.ops[s.first].kind == Kind::image && i == 1 && op.kind != Kind::conv3) return false;
        stride *= op.stride;
        if (stride > 32) return false;
        channels = op.kind == Kind::sums ? 0 : op.out;
        if ((may_cut(op.kind) || op.kind == Kind::store) && p.values[op.value].stride != stride) return false;
        if (op.kind == Kind::sums && p.values[op.value2].stride != stride) return false;
        if (op.kind == Kind::upsum &&
            (p.values[op.value].stride != 4 * stride || p.values[op.value2].stride != 2 * stride))
            return false;
    }
    return stride == s.stride;
}

// Whether every value is stored by an earlier segment than those that read it, and stored once. A cut's value may not be
// stored at all, so only the run that makes the cut reads it.
bool order_ok(const Program &p) {
    bool *stored = static_cast<bool *>(calloc(size_t(p.num_values) * 3, 1));  // values, sums, cuts' values
    if (stored == nullptr) return false;
    bool *summed = stored + p.num_values, *cut = summed + p.num_values, ok = true;
    auto write = [&](bool *flags, int32_t v) { ok = ok && !flags[v], flags[v] = true; };
    for (int i = 0; ok && i < p.num_segments; i++) {
        const Segment &s = p.segments[i];
        for (int pass = 0; pass < 2; pass++) {  // all reads before any write
            for (int o = s.first; o < s.first + s.count; o++) {
                const Op &op = p.ops[o];
                const bool writes = may_cut(op.kind) || op.kind == Kind::store || adds_up(op.kind);
                if (pass == 0 && !writes && op.kind != Kind::image) {
                    if (op.kind == Kind::value) ok = ok && stored[op.value];
                    if (op.kind == Kind::upsum) ok = ok && stored[op.value] && stored[op.value2];
                    if (op.kind == Kind::attend) ok = ok && stored[op.value] && stored[op.value2] && summed[op.value3];
                } else if (pass == 1 && writes) {
                    if (op.kind != Kind::pool) {
                        const int32_t v = op.kind == Kind::sums ? op.value2 : op.value;
                        write(op.kind == Kind::cut ? cut : stored, v);
                        ok = ok && stored[v] != cut[v];
                    }
                    if (adds_up(op.kind)) write(summed, op.value3);
                }
            }
        }
    }
    // Only an attention reads stored queries: the channels that fill up their last block are not written.
    for (int i = 0; ok && i < p.num_ops; i++) {
        const Op &sums = p.ops[i];
        if (sums.kind != Kind::sums) continue;
        ok = p.logits != sums.value2;
        for (int j = 0; ok && j < p.num_ops; j++) {
            const Op &op = p.ops[j];
            const bool reads = op.kind == Kind::value || op.kind == Kind::upsum || op.kind == Kind::attend;
            ok = !(reads && op.value == sums.value2) && !(op.kind == Kind::upsum && op.value2 == sums.value2);
        }
    }
    // An attention takes the sums of the same heads as were added up for it.
    for (int i = 0; ok && i < p.num_ops; i++) {
        const Op &a = p.ops[i];
        if (a.kind != Kind::attend) continue;
        for (int j = 0; ok && j < p.num_ops; j++) {
            const Op &b = p.ops[j];
            if (adds_up(b.kind) && b.value3 == a.value3)
                ok = b.kind == Kind::sums && b.heads == a.heads && b.head_dim == a.head_dim && b.scales == a.scales && b.value2 == a.value2;
        }
    }
    free(stored);
    return ok;
}

// Whether the segments are the operations, in their order.
bool segments_ok(const Program &p) {
    int next = 0;
    for (int i = 0; i < p.num_segments; i++) {
        if (p.segments[i].first != next || !segment_ok(p.segments[i], p)) return false;
        next += p.segments[i].count;
    }
    return next == p.num_ops;
}

// Whether the last operation gives the result: stores the logits, or makes a classifier's scores.
bool result_ok(const Program &p) {
    const Op &last = p.ops[p.num_ops - 1];
    return p.logits < 0 ? last.kind == Kind::pool : last.kind == Kind::store && last.value == p.logits;
}

}  // namespace

int read_program(const void *bytes, size_t size, Program &p) {
    Header h;
    if (bytes == nullptr || size < sizeof h) return EVS_BAD_PROGRAM;
    memcpy(&h, bytes, sizeof h);
    if (memcmp(h.magic, kMagic, sizeof kMagic) != 0 || h.op_bytes != int32_t(sizeof(Op))) return EVS_BAD_PROGRAM;
    if (h.num_ops < 2 || h.num_ops > kMaxOps || h.num_values < 1 || h.num_values > kMaxValues) return EVS_BAD_PROGRAM;
    if (h.num_segments < 1 || h.num_segments > h.num_ops) return EVS_BAD_PROGRAM;
    const size_t tables = sizeof h + h.num_ops * sizeof(Op) + h.num_values * sizeof(Value) + h.num_segments * sizeof(Segment);
    const size_t start = (tables + 63) / 64 * 64;
    if (size < start || h.num_weights < 0 || uint64_t(h.num_weights) != (size - start) / sizeof(float) ||
        (size - start) % sizeof(float))
        return EVS_BAD_PROGRAM;

    const size_t needed = (size + 63) / 64 * 64;
    char *copy = static_cast<char *>(allocate_aligned(64, needed));
    if (copy == nullptr) return EVS_NO_MEMORY;
    memcpy(copy, bytes, size);
    p = Program{};
    p.memory = copy;
    p.classes = h.classes;
    p.logits = h.logits;
    p.num_ops = h.num_ops, p.num_values = h.num_values, p.num_segments = h.num_segments;
    const char *at = copy + sizeof h;
    p.ops = reinterpret_cast<const Op *>(at), at += h.num_ops * sizeof(Op);
    p.values = reinterpret_cast<const Value *>(at), at += h.num_values * sizeof(Value);
    p.segments = reinterpret_cast<const Segment *>(at);
    p.weights = copy + start;
    p.num_weights = h.num_weights;

    const Weights weights{h.num_weights};
    bool ok = h.classes >= 1 && (h.logits == -1 || (h.logits >= 0 && h.logits < h.num_values && p.values[h.logits].channels == h.classes &&
                                                    p.values[h.logits].stride == 8));
    for (int i = 0; ok && i < p.num_values; i++) {
        const Value &v = p.values[i];
        ok = channels_ok(v.channels) && (v.stride == 2 || v.stride == 4 || v.stride == 8 || v.stride == 16 || v.stride == 32);
    }
    for (int i = 0; ok && i < p.num_ops; i++) ok = op_ok(p.ops[i], p, weights);
    ok = ok && segments_ok(p) && order_ok(p) && result_ok(p);
    if (!ok) {
        free_program(p);
        return EVS_BAD_PROGRAM;
    }
    return EVS_OK;
}

void free_program(Program &p) {
    free_aligned(p.memory);
    p = Program{};
}

}  // namespace evs
