// Runs a part of a segment, row by row: every operation asks the one before it for the rows it needs and keeps only
// those in memory. Compiled once per instruction set.
#include "chain.h"

#include "platform.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if EVS_AMX && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "ops/attention.h"
#include "ops/classify.h"
#include "ops/convolution.h"
#include "ops/depthwise.h"
#include "ops/narrow.h"
#include "ops/peak.h"
#include "ops/repack.h"
#include "ops/upsample.h"
#include "ops/vector.h"

namespace evs::EVS_ISA {
namespace {

constexpr int kRing = kMaxKernel;

// An operation whose weights have so many bytes finds them in a far cache for every row. So it computes a batch of rows at
// once, with about kBatchPixels pixels, or twice as many where the weights would fill the second-level cache.
constexpr ptrdiff_t kBatchWeights = 256 << 10, kLargeWeights = 1536 << 10;
constexpr int kBatchPixels = EVS_IS_BFLOAT16 ? 128 : 64, kMaxBatch = 8;

// Bytes of a batch's expanded features that should exist at once, and the fewest channels of them.
constexpr int kStepBytes = EVS_IS_BFLOAT16 ? 512 << 10 : 256 << 10, kLeastStep = EVS_IS_BFLOAT16 ? 512 : 128;

struct Node {
    const Op *op;
    Node *source;
    int height, width;  // of its output, whole
    int x0, x1;         // the columns it gives
    int blocks;         // of its output
    int reach;          // rows around an output row's centre that it reads: the half of its kernel
    int low;            // column of its input that its rings begin with; may lie outside
    int span;           // columns in a ring
    int have;           // last input row that is in the rings
    int last;           // last row of its output that is asked for
    int batch;          // rows that are computed at once: of its output; in `sums`, of queries, keys and values
    int made0, made1;   // the batch that is in `made`
    int front;          // input row that the batch's input begins with
    Window own;         // what of its output belongs to this window alone: a tee stores it
    Row input[kRing];   // input rows as given by the source, or space for them
    Row space[kRing];
    Row ring[kRing];    // expanded rows, with zeros around the image
    Row line;           // one row of intermediate results
    Row extra[4];       // further intermediate rows
    Row made;           // rows of a batch, one behind the other
    int step;           // blocks of a batch's expanded channels that exist at once
    float *sums;        // of the projection, between these steps
    const Op *adds;     // of an attention that computes its queries anew: the operation that added up its sums
    int columns() const { return x1 - x0; }
};

// Hands out memory in whole cache lines; with no memory it only counts.
struct Arena {
    char *base;
    uint64_t used = 0;
    uint64_t cached = 0;  // how much of it should stay in a cache
    E *numbers(uint64_t n) {
        const uint64_t at = used, end = at + n * sizeof(E);
        used = (end + 63) / 64 * 64 + kGuard;
        if (base == nullptr) return nullptr;
        forbid(base + end, used - end);
        return reinterpret_cast<E *>(base + at);
    }
    float *floats(ptrdiff_t n) { return reinterpret_cast<float *>(numbers(uint64_t(n) * sizeof(float) / sizeof(E))); }
    Row planes(int pixels) { return {numbers(uint64_t(kNarrow) * plane_of(pixels)), plane_of(pixels)}; }
    Row row(int blocks, int pixels) {
        return {numbers(uint64_t(blocks) * pixels * kBlock), ptrdiff_t(pixels) * kBlock};
    }
};

int mod(int y, int n) { return ((y % n) + n) % n; }

// Offsets count numbers of the size of E, also where larger ones are stored.
const W *at(const Run &run, int64_t offset) { return reinterpret_cast<const W *>(static_cast<const E *>(run.program->weights) + offset); }

// Weights that are float32 in every precision.
const float *floats_at(const Run &run, int64_t offset) { return reinterpret_cast<const float *>(at(run, offset)); }

// The operation that adds up the sums of an attention whose queries were not stored; else null.
const Op *sums_of(const Run &run, const Op &attend) {
    if (!run.in_windows) return nullptr;
    const Op *op = run.program->ops;
    while (op->kind != Kind::sums || op->value3 != attend.value3) op++;
    return op;
}

// Blocks of channels, `last` excluded.
struct Blocks {
    int first, last;
    int count() const { return last - first; }
};

// Channels that are aggregated together: those of a head's queries, keys or values, or of a block with several of these.
int mixed_of(const Op &sums) { return sums.head_dim < kBlock ? kBlock : sums.head_dim; }

// The blocks of queries, keys and values that a run computes while it adds up the sums. In windows, queries are computed
// later, where they are needed; with given sums, only queries are needed.
Blocks tokens_of(const Run &run, const Op &sums) {
    const int unit = mixed_of(sums), queries = sums.heads * sums.head_dim, all = blocks_of(3 * queries);
    if (run.in_windows) return {queries / unit * (unit / kBlock), all};
    if (run.given) return {0, (queries + unit - 1) / unit * (unit / kBlock)};
    return {0, all};
}

// The columns of its input that a node reads.
void input_window(const Node &n, int &x0, int &x1) {
    const int s = n.op->stride;
    x0 = s * n.x0 - n.reach;
    x1 = s * (n.x1 - 1) + n.reach + 1;
}

// Rows that an operation computes at once.
int batch_of(const Op &op, int columns) {
    ptrdiff_t weights = 0;
    switch (op.kind) {
        case Kind::inverted:
            if (!op.expands || op.in <= kNarrow || op.out <= kPacked) return 1;  // what narrow rows and pairs of weights are for
            weights = ptrdiff_t(op.mid) * (op.in + op.out);
            break;
        case Kind::fused: weights = ptrdiff_t(op.mid) * (9 * op.in + op.out); break;
        case Kind::attend: weights = ptrdiff_t(op.out) * op.heads * op.head_dim * (1 + op.scales); break;
        case Kind::sums: weights = ptrdiff_t(op.in) * 3 * op.heads * op.head_dim; break;
        default: return 1;
    }
    weights *= ptrdiff_t(sizeof(E));
    if (weights < kBatchWeights) return 1;
    const int pixels = weights < kLargeWeights ? kBatchPixels : 2 * kBatchPixels, rows = (pixels + columns - 1) / columns;
    return rows < kMaxBatch ? rows : kMaxBatch;
}

// Builds the nodes of a window, from the end to the source, and gives them their memory.
int build(const Run &run, const Segment &segment, Window w, Arena &arena, Node *nodes) {
    const Op *ops = run.program->ops + segment.first;
    int x0 = w.x0, x1 = w.x1, last = w.y1 - 1, stride = segment.stride;
    for (int i = segment.count - 1; i >= 0; i--) {
        Node &n = nodes[i];
        n = Node{};
        n.op = &ops[i];
        const int times = segment.stride / stride;
        n.own = {w.y0 * times, w.y1 * times, w.x0 * times, w.x1 * times};
        n.source = i > 0 ? &nodes[i - 1] : nullptr;
        n.height = run.height / stride, n.width = run.width / stride;
        n.x0 = x0, n.x1 = x1;
        n.blocks = blocks_of(n.op->out);
        n.adds = n.op->kind == Kind::attend ? sums_of(run, *n.op) : nullptr;
        n.reach = reach_of(n.adds != nullptr ? *n.adds : *n.op);
        n.have = INT32_MIN;
        n.last = last;
        n.batch = batch_of(*n.op, n.columns());
        input_window(n, n.low, x1);
        n.span = x1 - n.low;
        if (i > 0) stride /= n.op->stride;
        const int width = run.width / stride, height = run.height / stride;
        last = n.op->stride * last + n.reach;
        if (last > height - 1) last = height - 1;
        x0 = n.low < 0 ? 0 : n.low;
        x1 = x1 > width ? width : x1;
    }
    uint64_t most = 0;  // of those that compute several rows at once: they use it for a while, and then others do
    for (int i = 0; i < segment.count; i++) {
        Node &n = nodes[i];
        const Op &op = *n.op;
        const uint64_t before = arena.used;
        uint64_t rare = 0;  // what is used once per batch only
        const int rows = op.stride * (n.batch - 1) + 3, pixels = n.batch * n.columns();  // of the input, of the output
        const int in = i > 0 ? nodes[i - 1].blocks : 0, given = i > 0 ? nodes[i - 1].columns() : 0;
        const int mid = blocks_of(op.mid);
        switch (op.kind) {
            case Kind::image:
            case Kind::value: break;
            case Kind::attend: {
                const int answered = op.heads * op.head_dim * (1 + op.scales), blocks = blocks_of(answered);
                n.line = arena.row(blocks, pixels);
                // Channels of the last block that no head answers: dots.h reads them, times 0.
                if (n.line.p != nullptr && answered % kBlock != 0)
                    memset(static_cast<void *>(n.line.p + (blocks - 1) * n.line.block), 0, size_t(pixels) * kBlock * sizeof(E));
                if (n.batch > 1) n.extra[0] = arena.row(n.blocks, pixels), n.made = arena.row(n.blocks, pixels);
                if (n.adds == nullptr) break;
                const int queries = blocks_of(op.heads * op.head_dim);
                for (int r = 0; r < 2 * n.reach + 1; r++) n.ring[r] = arena.row(queries, n.span);
                for (int i = 1; i < 3; i++) n.extra[i] = arena.row(queries, n.columns());
                break;
            }
            case Kind::conv3:
                for (int r = 0; r < 3; r++) {
                    if (op.planar) {
                        const int plane = plane_of(n.span / 2 + 1);
                        n.ring[r] = {arena.numbers(size_t(plane) * 6), plane};
                    } else if (n.source->op->kind == Kind::image) {  // 3 numbers per pixel
                        n.ring[r] = {arena.numbers(size_t(n.span) * 3 * sizeof(Pixel) / sizeof(E)), 0};
                    } else {
                        n.ring[r] = arena.row(in, n.span);
                    }
                }
                if (op.planar) n.line = {arena.numbers((size_t(n.span) * 3 + 6 * kWords) / sizeof(E) + 1), 0};
                break;
            case Kind::inverted:
                if (op.planar) {
                    for (int r = 0; r < 3; r++) n.ring[r] = arena.planes(n.span);
                    break;
                }
                if (n.batch > 1) {
                    const int least = (kLeastStep + kBlock - 1) / kBlock, most = kStepBytes / ((rows * n.span + pixels) * kBlock * int(sizeof(E)));
                    n.step = most < least ? least : most;
                    if (n.step > mid) n.step = mid;
                    n.space[0] = arena.row(in, rows * n.span);
                    n.ring[0] = arena.row(n.step, rows * n.span);
                    n.line = arena.row(n.step, pixels);
                    if (op.residual) n.extra[0] = arena.row(in, pixels);
                    n.made = arena.row(n.blocks, pixels);
#if EVS_IS_BFLOAT16
                    if (n.step < mid) n.sums = arena.floats(sums_of_dots(pixels, n.blocks));
#endif
                    rare = arena.used;
                    n.ring[1] = arena.row(mid, (3 - op.stride) * n.span);
                    rare = arena.used - rare;
                    break;
                }
                for (int r = 0; r < 3; r++) {
                    n.ring[r] = arena.row(mid, n.span);
                    if (op.expands) n.space[r] = n.source->op->planar ? arena.planes(given) : arena.row(in, given);
                }
                n.line = arena.row(mid, n.columns());
                break;
            case Kind::fused:
                if (n.batch > 1) {
                    n.space[0] = arena.row(in, rows * n.span);
                    n.line = arena.row(mid, pixels);
                    if (op.residual) n.extra[0] = arena.row(in, pixels);
                    n.made = arena.row(n.blocks, pixels);
                    break;
                }
                for (int r = 0; r < 3; r++) n.ring[r] = arena.row(in, n.span);
                n.line = arena.row(mid, n.columns());
                break;
            case Kind::residual:  // rings hold the input; extra the rows between the two convolutions, 2 columns more
                for (int r = 0; r < 5; r++) n.ring[r] = arena.row(in, n.span);
                for (int r = 0; r < 3; r++) n.extra[r] = arena.row(mid, n.columns() + 2);
                break;
            case Kind::pointwise: n.space[0] = arena.row(in, given); break;
            case Kind::upsum: {
                int a, b, c, d;
                cubic_window(n.x0, n.x1, 4, n.width / 4, a, b);
                cubic_window(n.x0, n.x1, 2, n.width / 2, c, d);
                n.line = arena.row(n.blocks, (b - a) > (d - c) ? (b - a) : (d - c));
                break;
            }
            case Kind::tee:
            case Kind::cut: break;
            case Kind::store: n.space[0] = arena.row(n.blocks, n.columns()); break;
            case Kind::sums: {
                const int tokens = tokens_of(run, op).count();
                for (int r = 0; r < 2 * n.reach + 1; r++) n.ring[r] = arena.row(tokens, n.span);
                n.space[0] = arena.row(in, n.batch * given);
                if (n.batch > 1) n.made = arena.row(tokens, n.batch * given);
                n.line = arena.row(tokens, n.columns());
                n.extra[0] = arena.row(tokens, n.columns());
                break;
            }
            case Kind::pool: n.space[0] = arena.row(in, given); break;
        }
        const uint64_t taken = arena.used - before - rare;
        if (n.batch == 1) {
            arena.cached += taken;
        } else if (taken > most) {
            most = taken;
        }
    }
    arena.cached += most;
    return segment.count;
}

Row pull(const Run &run, Node &n, int y, Row space);

void zero(Row row, int blocks, int first, int count) {
    for (int b = 0; b < blocks; b++) memset(row.p + b * row.block + ptrdiff_t(first) * kBlock, 0, size_t(count) * kBlock * sizeof(E));
}

void copy(Row from, Row to, int blocks, int pixels) {
    for (int b = 0; b < blocks; b++) memcpy(to.p + b * to.block, from.p + b * from.block, size_t(pixels) * kBlock * sizeof(E));
}

// Where the source's columns lie in a ring, and zeros beside them.
int pad(const Node &n, Row ring, int blocks) {
    const int before = n.source->x0 - n.low, after = n.span - before - n.source->columns();
    if (before > 0) zero(ring, blocks, 0, before);
    if (after > 0) zero(ring, blocks, n.span - after, after);
    return before;
}

// Brings input rows up to `last` into the rings: `fill(row, slot)` for rows of the image, zeros for others.
template <typename Fill>
void advance(Node &n, int first, int last, int rows, int blocks, Fill fill) {
    if (n.have == INT32_MIN || n.have < first - 1) n.have = first - 1;
    while (n.have < last) {
        const int y = ++n.have, slot = mod(y, rows);
        if (y < 0 || y >= n.source->height) {
            zero(n.ring[slot], blocks, 0, n.span);
        } else {
            fill(y, slot);
        }
    }
}

// Rows of the source, as they are, in the rings.
void advance_plain(const Run &run, Node &n, int first, int last, int rows) {
    const int blocks = n.source->blocks;
    advance(n, first, last, rows, blocks, [&](int y, int slot) {
        const Row to = n.ring[slot].from(pad(n, n.ring[slot], blocks));
        const Row got = pull(run, *n.source, y, to);
        if (got.p != to.p) copy(got, to, blocks, n.source->columns());
    });
}

// --- operations -----------------------------------------------------------------------------------------------------

// Stores the floats that `number` returns for 0 to count - 1; count is a multiple of kFloats.
template <typename Number>
EVS_INLINE void put(Pixel *out, int count, Number number) {
#if EVS_IS_FLOAT16
    alignas(64) float floats[64];
    for (int i = 0; i < count; i++) floats[i] = number(i);
    for (int i = 0; i < count; i += kFloats) store_floats(out + i, load_f(floats + i));
#else
    for (int i = 0; i < count; i++) out[i] = number(i);
#endif
}

// A row of normalised pixels, 3 numbers each, with zeros outside the image.
void image_row(const Run &run, const Op &op, int y, int low, int span, Pixel *out) {
    const float *scale = floats_at(run, op.w1), *shift = scale + 4;
    if (y < 0 || y >= run.height) {
        memset(out, 0, size_t(span) * 3 * sizeof(Pixel));
        return;
    }
    const int first = low < 0 ? 0 : low, last = low + span < run.width ? low + span : run.width;
    memset(out, 0, size_t(first - low) * 3 * sizeof(Pixel));
    memset(out + ptrdiff_t(last - low) * 3, 0, size_t(low + span - last) * 3 * sizeof(Pixel));
    const uint8_t *in = run.image_row(y) + ptrdiff_t(first) * 3;
    out += ptrdiff_t(first - low) * 3;
    int left = (last - first) * 3;
    // 16 pixels at a time: 48 numbers, whose channels repeat in the same places.
    constexpr int kStep = 48;
    float scales[kStep], shifts[kStep];
    for (int i = 0; i < kStep; i++) scales[i] = scale[i % 3], shifts[i] = shift[i % 3];
    for (; left >= kStep; left -= kStep, in += kStep, out += kStep)
        put(out, kStep, [&](int i) { return shifts[i] + float(in[i]) * scales[i]; });
    for (int i = 0; i < left; i++) out[i] = Pixel(shifts[i] + float(in[i]) * scales[i]);
}

// The same as planes for the narrow convolution.
void image_planes(const Run &run, const Node &n, int y, Row to) {
    if (y < 0 || y >= run.height) {
        memset(to.p, 0, size_t(to.block) * 6 * sizeof(E));
        return;
    }
    const float *scale = reinterpret_cast<const float *>(at(run, n.source->op->w1)), *shift = scale + 4;
    const int first = n.low < 0 ? 0 : n.low, last = n.low + n.span < run.width ? n.low + n.span : run.width;
    uint8_t *bytes = reinterpret_cast<uint8_t *>(n.line.p);
    memcpy(bytes + ptrdiff_t(first - n.low) * 3, run.image_row(y) + ptrdiff_t(first) * 3, size_t(last - first) * 3);
    split_pixels(bytes, n.span, scale, shift, to.p, int(to.block));
    auto clear = [&](int from, int until) {
        for (int x = from; x < until; x++)
            for (int c = 0; c < 3; c++) to.p[((x - n.low) % 2 * 3 + c) * to.block + (x - n.low) / 2] = E(0);
    };
    clear(n.low, first);
    clear(last, n.low + n.span);
}

Row conv3_row(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op;
    const int first = op.stride * y - 1;
    Dense d{at(run, op.w1), at(run, op.b1), op.in, n.blocks, 9, 0, op.stride * kBlock, op.act};
    Line line{{}, out, {}};
    if (n.source->op->kind == Kind::image) {
        if (n.have == INT32_MIN) n.have = first - 1;
        while (n.have < first + 2) {
            const Row to = n.ring[mod(++n.have, 3)];
            if (op.planar) {
                image_planes(run, n, n.have, to);
            } else {
                image_row(run, *n.source->op, n.have, n.low, n.span, reinterpret_cast<Pixel *>(to.p));
            }
        }
        if (op.planar) {
            const E *rows[3];
            for (int t = 0; t < 3; t++) rows[t] = n.ring[mod(first + t, 3)].p;
            const int plane = int(n.ring[0].block);
            const W *w = at(run, op.w1), *b = at(run, op.b1);
            if (op.act == Act::gelu) {
                narrow_stem<Act::gelu>(rows, plane, w, b, n.columns(), out);
            } else if (op.act == Act::hardswish) {
                narrow_stem<Act::hardswish>(rows, plane, w, b, n.columns(), out);
            } else if (op.act == Act::relu) {
                narrow_stem<Act::relu>(rows, plane, w, b, n.columns(), out);
            } else {
                narrow_stem<Act::none>(rows, plane, w, b, n.columns(), out);
            }
            return out;
        }
        // The three taps of a row lie side by side: together they are one tap of 9 channels.
        d.step = op.stride * 3, d.taps = 3, d.inputs = 9, d.image = true;
        for (int t = 0; t < 3; t++) line.from[t] = n.ring[mod(first + t, 3)].p;
    } else {
        advance_plain(run, n, first, first + 2, 3);
        d.block = n.ring[0].block;
        for (int t = 0; t < 9; t++) line.from[t] = n.ring[mod(first + t / 3, 3)].p + t % 3 * kBlock;
    }
    dense(d, &line, 1, n.columns());
    return out;
}

// Copies planes, with zeros before and after their pixels; of a row outside the image only zeros.
void copy_planes(Row from, Row to, int before, int pixels, int after) {
    for (int c = 0; c < kNarrow; c++) {
        E *plane = to.p + c * to.block;
        memset(plane, 0, size_t(before) * sizeof(E));
        if (pixels > 0 && from.p + c * from.block != plane + before)
            memmove(plane + before, from.p + c * from.block, size_t(pixels) * sizeof(E));
        memset(plane + before + pixels, 0, size_t(after) * sizeof(E));
    }
}

Row narrow_row(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op;
    const int before = n.source->x0 - n.low, given = n.source->columns(), after = n.span - before - given;
    if (n.have == INT32_MIN || n.have < y - 2) n.have = y - 2;
    while (n.have < y + 1) {
        const int row = ++n.have;
        const Row ring = n.ring[mod(row, 3)];
        if (row < 0 || row >= n.source->height) {
            copy_planes(ring, ring, 0, 0, n.span);
        } else {
            const Row to{ring.p + before, ring.block};
            copy_planes(pull(run, *n.source, row, to), ring, before, given, after);
        }
    }
    const Row rows[3] = {n.ring[mod(y - 1, 3)], n.ring[mod(y, 3)], n.ring[mod(y + 1, 3)]};
    const W *w2 = at(run, op.w2), *b2 = at(run, op.b2), *w3 = at(run, op.w3), *b3 = at(run, op.b3);
    const bool residual = op.residual != 0;
    if (op.act == Act::gelu) {
        narrow_block<Act::gelu>(rows, w2, b2, w3, b3, residual, n.columns(), out);
    } else if (op.act == Act::hardswish) {
        narrow_block<Act::hardswish>(rows, w2, b2, w3, b3, residual, n.columns(), out);
    } else if (op.act == Act::relu) {
        narrow_block<Act::relu>(rows, w2, b2, w3, b3, residual, n.columns(), out);
    } else {
        narrow_block<Act::none>(rows, w2, b2, w3, b3, residual, n.columns(), out);
    }
    return out;
}

Row inverted_row(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op;
    if (op.planar) return narrow_row(run, n, y, out);
    const int first = op.stride * y - 1, mid = blocks_of(op.mid);
    advance(n, first, first + 2, 3, mid, [&](int row, int slot) {
        const Row to = n.ring[slot].from(pad(n, n.ring[slot], mid));
        const int given = n.source->columns();
        if (op.expands) {
            n.input[slot] = pull(run, *n.source, row, n.space[slot]);
            pointwise(n.input[slot], op.in, at(run, op.w1), at(run, op.b1), op.act, given, to, mid, {nullptr, 0},
                      n.source->op->planar != 0);
        } else {
            n.input[slot] = to;
            const Row got = pull(run, *n.source, row, to);
            if (got.p != to.p) copy(got, to, mid, given);
        }
    });
    const Row rows[3] = {n.ring[mod(first, 3)], n.ring[mod(first + 1, 3)], n.ring[mod(first + 2, 3)]};
    depthwise3(op.stride, op.act, rows, mid, at(run, op.w2), at(run, op.b2), n.columns(), n.line);
    const Row residual = op.residual ? n.input[mod(y, 3)].from(n.x0 - n.source->x0) : Row{nullptr, 0};
    projection(n.line, op.mid, at(run, op.w3), at(run, op.b3), Act::none, n.columns(), out, op.out, residual);
    return out;
}

Row fused_row(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op;
    const int first = op.stride * y - 1;
    advance_plain(run, n, first, first + 2, 3);
    const Dense d{at(run, op.w1), at(run, op.b1), op.in, blocks_of(op.mid), 9, n.ring[0].block, op.stride * kBlock, op.act};
    Line line{{}, n.line, {}};
    for (int t = 0; t < 9; t++) line.from[t] = n.ring[mod(first + t / 3, 3)].p + t % 3 * kBlock;
    dense(d, &line, 1, n.columns());
    const Row residual = op.residual ? n.ring[mod(y, 3)].from(n.x0 - n.low) : Row{nullptr, 0};
    pointwise(n.line, op.mid, at(run, op.w3), at(run, op.b3), Act::none, n.columns(), out, n.blocks, residual);
    return out;
}

Row residual_row(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op;
    const int mid = blocks_of(op.mid), columns = n.columns() + 2;
    // Rows y - 1 to y + 1 between the convolutions, made anew for every output row but for the two that are there.
    for (int row = (n.extra[3].block == y - 1 && n.extra[3].p != nullptr) ? y + 1 : y - 1; row <= y + 1; row++) {
        const Row to = n.extra[mod(row, 3)];
        if (row < 0 || row >= n.height) {
            zero(to, mid, 0, columns);
            continue;
        }
        advance_plain(run, n, row - 1, row + 1, 5);
        const Dense d{at(run, op.w1), at(run, op.b1), op.in, mid, 9, n.ring[0].block, kBlock, op.act};
        Line line{{}, to, {}};
        for (int t = 0; t < 9; t++) line.from[t] = n.ring[mod(row - 1 + t / 3, 5)].p + t % 3 * kBlock;
        dense(d, &line, 1, columns);
        if (n.x0 == 0) zero(to, mid, 0, 1);  // outside the image
        if (n.x1 == n.width) zero(to, mid, columns - 1, 1);
    }
    n.extra[3] = {n.extra[0].p, y};  // remembers the last row made
    const Dense d{at(run, op.w3), at(run, op.b3), op.mid, n.blocks, 9, n.extra[0].block, kBlock, Act::none};
    Line line{{}, out, n.ring[mod(y, 5)].from(n.x0 - n.low)};
    for (int t = 0; t < 9; t++) line.from[t] = n.extra[mod(y - 1 + t / 3, 3)].p + t % 3 * kBlock;
    dense(d, &line, 1, n.columns());
    return out;
}

Row stored(const Run &run, int value, int width, int blocks, int y, int x) {
    return {static_cast<E *>(run.values[value]) + (ptrdiff_t(y) * blocks * width + x) * kBlock, ptrdiff_t(width) * kBlock};
}

// The stored row of an operation; a planar one takes as much memory as one of blocks.
Row stored(const Run &run, const Node &n, int y) {
    if (!n.op->planar) return stored(run, n.op->value, n.width, n.blocks, y, n.x0);
    return {static_cast<E *>(run.values[n.op->value]) + ptrdiff_t(y) * n.width * kBlock + n.x0, n.width};
}

// The answers of one scale's heads, to rectified queries, which are the channels of a row from `first` on.
void answer_scale(const Run &run, const Node &n, Row queries, int first, int scale, Row out) {
    const Op &op = *n.op;
    const int dim = op.head_dim;
    for (int h = 0; h < op.heads; h++) {
        const int head = scale * op.heads + h;
        answers(queries.channels_from(first + h * dim), dim, run.sums[op.value3] + ptrdiff_t(head) * sums_of_head(dim), op.eps,
                n.columns(), out.channels_from(head * dim));
    }
}

// Aggregates tokens around a row of them: depthwise, then among the channels of each unit (see mixed_of).
//   ring: `rows` rows of these blocks of tokens; column 0 of the result is column `first` of a ring.
void aggregate(const Run &run, const Op &sums, int scale, const Row *ring, int rows, int y, int first, Blocks blocks, int pixels, Row between,
               Row out) {
    const int kernel = sums.kernels[scale], reach = kernel / 2;
    const int mixed = mixed_of(sums), per_unit = mixed / kBlock, begin = blocks.first * kBlock;
    Row window[kMaxKernel];
    for (int t = 0; t < kernel; t++) window[t] = ring[mod(y - reach + t, rows)].from(first - reach);
    depthwise_any(kernel, window, blocks.count(), at(run, sums.wa[scale]) + ptrdiff_t(begin) * kernel * kernel, at(run, sums.ba[scale]) + begin,
                  pixels, between);
    for (int u = 0; u < blocks.count() / per_unit; u++)
        pointwise(between.channels_from(u * mixed), mixed, at(run, sums.wg[scale] + int64_t(begin + u * mixed) * mixed),
                  at(run, sums.bg[scale]) + begin + u * mixed, Act::none, pixels, out.channels_from(u * mixed), per_unit, {nullptr, 0});
}

void rectify_row(Row from, Row to, int blocks, int pixels) {
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < pixels * kBlock; i += kPacked) rectify(from.p + b * from.block + i, to.p + b * to.block + i);
}

// Answers to queries that are computed anew from the stored features: they come first among the tokens' channels.
void answer_anew(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op, &sums = *n.adds;
    const int blocks = blocks_of(op.heads * op.head_dim), rows = 2 * n.reach + 1, pixels = n.columns(), first = n.x0 - n.low;
    const int x0 = n.low < 0 ? 0 : n.low, x1 = n.low + n.span < n.width ? n.low + n.span : n.width;
    if (n.have == INT32_MIN || n.have < y - n.reach - 1) n.have = y - n.reach - 1;
    while (n.have < y + n.reach) {
        const int row = ++n.have;
        const Row ring = n.ring[mod(row, rows)];
        if (row < 0 || row >= n.height) {
            zero(ring, blocks, 0, n.span);
            continue;
        }
        if (x0 > n.low) zero(ring, blocks, 0, x0 - n.low);
        if (x1 < n.low + n.span) zero(ring, blocks, x1 - n.low, n.low + n.span - x1);
        pointwise(stored(run, op.value, n.width, n.blocks, row, x0), sums.in, at(run, sums.w1), at(run, sums.b1), Act::none, x1 - x0,
                  ring.from(x0 - n.low), blocks, {nullptr, 0});
    }
    rectify_row(n.ring[mod(y, rows)].from(first), n.extra[1], blocks, pixels);
    answer_scale(run, n, n.extra[1], 0, 0, out);
    for (int i = 0; i < sums.scales; i++) {
        aggregate(run, sums, i, n.ring, rows, y, first, {0, blocks}, pixels, n.extra[2], n.extra[1]);
        rectify_row(n.extra[1], n.extra[1], blocks, pixels);
        answer_scale(run, n, n.extra[1], 0, 1 + i, out);
    }
}

// The answers to a row of queries, stored or computed anew.
void answer_row(const Run &run, Node &n, int y, Row out) {
    if (n.adds != nullptr) return answer_anew(run, n, y, out);
    const Op &op = *n.op;
    const int width = op.heads * op.head_dim;
    const Row queries = stored(run, op.value2, n.width, blocks_of(width * (1 + op.scales)), y, n.x0);
    for (int i = 0; i <= op.scales; i++) answer_scale(run, n, queries, i * width, i, out);
}

// --- several rows at once -------------------------------------------------------------------------------------------
//
// The rows of a batch lie one behind the other, so that they are one long row to a 1x1 convolution. Input rows have n.span
// columns, with zeros around the image.

void move_to_front(Row row, int blocks, int first, int count) {
    for (int b = 0; b < blocks; b++) {
        E *to = row.p + b * row.block;
        memmove(static_cast<void *>(to), to + ptrdiff_t(first) * kBlock, size_t(count) * kBlock * sizeof(E));
    }
}

// Brings input rows `first` to `last` into n.space[0], after those that the batch before had. Returns: how many it had.
int advance_batch(const Run &run, Node &n, int first, int last) {
    const int in = n.source->blocks, kept = n.have < first ? 0 : n.have - first + 1;
    if (kept > 0) move_to_front(n.space[0], in, (first - n.front) * n.span, kept * n.span);
    for (int y = first + kept; y <= last; y++) {
        const Row row = n.space[0].from((y - first) * n.span);
        if (y < 0 || y >= n.source->height) {
            zero(row, in, 0, n.span);
            continue;
        }
        const Row to = row.from(pad(n, row, in)), got = pull(run, *n.source, y, to);
        if (got.p != to.p) copy(got, to, in, n.source->columns());
    }
    n.front = first, n.have = last;
    return kept;
}

// The input of some output rows, without the columns beside them; or none.
Row residual_batch(Node &n, int count) {
    if (!n.op->residual) return {nullptr, 0};
    const int columns = n.columns();
    for (int r = 0; r < count; r++)
        copy(n.space[0].from((r + 1) * n.span + n.x0 - n.low), n.extra[0].from(r * columns), n.blocks, columns);
    return n.extra[0];
}

// Takes the expanded channels in steps, so that they stay in the cache between the three convolutions. n.ring[0] holds
// rows of one step, n.ring[1] the last rows of all steps, for the next batch.
void inverted_batch(const Run &run, Node &n, int y, int count) {
    const Op &op = *n.op;
    const int stride = op.stride, first = stride * y - 1, last = first + stride * (count - 1) + 2, mid = blocks_of(op.mid);
    const int kept = advance_batch(run, n, first, last), height = n.source->height, columns = n.columns();
    const int from = first + kept < 0 ? 0 : first + kept, until = last < height ? last + 1 : height;  // new ones inside the image
    const Row input = n.space[0].from((from - first) * n.span), residual = residual_batch(n, count);
    for (int b = 0; b < mid; b += n.step) {
        const int some = mid - b < n.step ? mid - b : n.step, channel = b * kBlock;
        const Row shared = n.ring[1].channels_from(channel);
        auto expanded = [&](int row) { return (row < first + kept ? shared : n.ring[0]).from((row - first) * n.span); };
        pointwise(input, op.in, weights_from(at(run, op.w1), b, op.in), at(run, op.b1) + channel, op.act, (until - from) * n.span,
                  expanded(from), some, {nullptr, 0});
        for (int row = first + kept; row <= last; row++) {
            if (row < from || row >= until) {
                zero(expanded(row), some, 0, n.span);
            } else {
                pad(n, expanded(row), some);
            }
        }
        for (int r = 0; r < count; r++) {
            const int top = first + stride * r;
            const Row rows[3] = {expanded(top), expanded(top + 1), expanded(top + 2)};
            depthwise3(stride, op.act, rows, some, at(run, op.w2) + ptrdiff_t(9) * channel, at(run, op.b2) + channel, columns,
                       n.line.from(r * columns));
        }
        for (int i = 0; i < 3 - stride; i++) copy(expanded(last + stride - 2 + i), shared.from(i * n.span), some, n.span);
        Dense d{at(run, op.w3), at(run, op.b3), op.mid - channel < some * kBlock ? op.mid - channel : some * kBlock, n.blocks, 1, n.line.block,
                kBlock, Act::none};
        d.all = op.mid, d.first = channel;
        const Line line{{n.line.p}, n.made, residual, n.sums};
        dense(d, &line, 1, count * columns);
    }
}

void fused_batch(const Run &run, Node &n, int y, int count) {
    const Op &op = *n.op;
    const int first = op.stride * y - 1, columns = n.columns();
    advance_batch(run, n, first, first + op.stride * (count - 1) + 2);
    Line lines[kMaxBatch];
    for (int r = 0; r < count; r++) {
        lines[r] = {{}, n.line.from(r * columns), {nullptr, 0}};
        for (int t = 0; t < 9; t++) lines[r].from[t] = n.space[0].from((op.stride * r + t / 3) * n.span + t % 3).p;
    }
    dense({at(run, op.w1), at(run, op.b1), op.in, blocks_of(op.mid), 9, n.space[0].block, op.stride * kBlock, op.act}, lines, count, columns);
    pointwise(n.line, op.mid, at(run, op.w3), at(run, op.b3), Act::none, count * columns, n.made, n.blocks, residual_batch(n, count));
}

void attend_batch(const Run &run, Node &n, int y, int count) {
    const Op &op = *n.op;
    const int answered = op.heads * op.head_dim * (1 + op.scales), columns = n.columns();
    for (int r = 0; r < count; r++) {
        answer_row(run, n, y + r, n.line.from(r * columns));
        copy(stored(run, op.value, n.width, n.blocks, y + r, n.x0), n.extra[0].from(r * columns), n.blocks, columns);
    }
    pointwise(n.line, answered, at(run, op.w1), at(run, op.b1), Act::none, count * columns, n.made, n.blocks, n.extra[0]);
}

// Row y of a node that computes several at once.
Row batched_row(const Run &run, Node &n, int y, Row out) {
    if (y >= n.made1) {
        const int count = n.last - y + 1 < n.batch ? n.last - y + 1 : n.batch;
        switch (n.op->kind) {
            case Kind::inverted: inverted_batch(run, n, y, count); break;
            case Kind::fused: fused_batch(run, n, y, count); break;
            case Kind::attend: attend_batch(run, n, y, count); break;
            default: break;
        }
        n.made0 = y, n.made1 = y + count;
    }
    copy(n.made.from((y - n.made0) * n.columns()), out, n.blocks, n.columns());
    return out;
}

// --- one row --------------------------------------------------------------------------------------------------------

Row attend_row(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op;
    answer_row(run, n, y, n.line);
    const Row input = stored(run, op.value, n.width, n.blocks, y, n.x0);
    pointwise(n.line, op.heads * op.head_dim * (1 + op.scales), at(run, op.w1), at(run, op.b1), Act::none, n.columns(), out, n.blocks, input);
    return out;
}

// The next row of a node: `out` is space for it, but a source may answer with memory of its own.
Row row_of(const Run &run, Node &n, int y, Row out) {
    const Op &op = *n.op;
    if (n.batch > 1) return batched_row(run, n, y, out);
    switch (op.kind) {
        case Kind::value: return stored(run, op.value, n.width, n.blocks, y, n.x0);
        case Kind::attend: return attend_row(run, n, y, out);
        case Kind::conv3: return conv3_row(run, n, y, out);
        case Kind::inverted: return inverted_row(run, n, y, out);
        case Kind::fused: return fused_row(run, n, y, out);
        case Kind::residual: return residual_row(run, n, y, out);
        case Kind::pointwise: {
            const Row in = pull(run, *n.source, y, n.space[0]);
            projection(in, op.in, at(run, op.w1), at(run, op.b1), op.act, n.columns(), out, op.out, {nullptr, 0});
            return out;
        }
        case Kind::upsum: {
            const Row got = pull(run, *n.source, y, out);
            if (got.p != out.p) copy(got, out, n.blocks, n.columns());
            const int h = n.height, w = n.width;
            add_enlarged(static_cast<const E *>(run.values[op.value]), h / 4, w / 4, n.blocks, 4, y, n.x0, n.x1, n.line.p, out);
            add_enlarged(static_cast<const E *>(run.values[op.value2]), h / 2, w / 2, n.blocks, 2, y, n.x0, n.x1, n.line.p, out);
            return out;
        }
        case Kind::cut:
            return n.source != nullptr ? pull(run, *n.source, y, out) : stored(run, n, y);
        case Kind::tee: {
            if (n.source == nullptr) return stored(run, n, y);
            const Row got = pull(run, *n.source, y, out);
            if (y >= n.own.y0 && y < n.own.y1)
                copy(got.from(n.own.x0 - n.x0), stored(run, op.value, n.width, n.blocks, y, n.own.x0), n.blocks, n.own.x1 - n.own.x0);
            return got;
        }
        case Kind::image:
        case Kind::store:
        case Kind::sums:
        case Kind::pool: break;
    }
    return out;
}

Row pull(const Run &run, Node &n, int y, Row out) {
    if (run.times == nullptr || (n.source == nullptr && may_cut(n.op->kind))) return row_of(run, n, y, out);
    const int64_t start = now_ns();
    const Row row = row_of(run, n, y, out);
    run.times[n.op - run.program->ops] += now_ns() - start;
    return row;
}

// Calls f(first, count) for the tokens of a row from x on that count in the sums: once if all do, else for every stretch.
template <typename F>
EVS_INLINE void each_valid(const Run &run, int y, int x, int count, F f) {
    if (run.valid == nullptr) return f(x, count);
    const uint8_t *valid = run.valid + ptrdiff_t(y - run.area.y0) * run.area.width() + (x - run.area.x0);
    for (int i = 0; i < count;) {
        const int first = i;
        while (i < count && valid[i] != 0) i++;
        if (i > first) f(x + first, i - first);
        while (i < count && valid[i] == 0) i++;
    }
}

// Queries to memory, where a value takes them, keys and values into the sums of the block of tokens they belong to.
//   qkv: the tokens' channels from the one on that has the number `first_channel`.
void take_tokens(const Run &run, Node &n, Row qkv, int first_channel, int scale, int y) {
    const Op &op = *n.op;
    const int dim = op.head_dim, heads = op.heads * (1 + op.scales);
    const bool keeps = !run.in_windows;
    const Row queries = keeps ? stored(run, op.value2, n.width, blocks_of(heads * dim), y, n.x0) : Row{nullptr, 0};
    const Window &area = run.area;
    const int across = (area.width() + kSumColumns - 1) / kSumColumns;
    for (int h = 0; h < op.heads; h++) {
        const int head = scale * op.heads + h;
        for (int c = 0; keeps && c < dim; c += kPacked) {
            const E *from = qkv.channels_from(h * dim + c).p;
            E *to = queries.channels_from(head * dim + c).p;
            for (int i = 0; i < n.columns(); i++, from += kBlock, to += kBlock)
                rectify(from, to);
        }
        if (run.given) continue;
        const Row k = qkv.channels_from((op.heads + h) * dim - first_channel), v = qkv.channels_from((2 * op.heads + h) * dim - first_channel);
        for (int x = n.x0; x < n.x1; x += kSumColumns) {
            const int count = n.x1 - x < kSumColumns ? n.x1 - x : kSumColumns;
            const ptrdiff_t block = ptrdiff_t((y - area.y0) / kSumRows) * across + (x - area.x0) / kSumColumns;
            float *sums = run.partials[op.value3] + (block * heads + head) * sums_of_head(dim);
            if ((y - area.y0) % kSumRows == 0) memset(sums, 0, sizeof(float) * sums_of_head(dim));
            each_valid(run, y, x, count, [&](int first, int valid) {
                add_sums(k.from(first - n.x0), v.from(first - n.x0), dim, valid, sums);
            });
        }
    }
}

void sums_row(const Run &run, Node &n, int y) {
    const Op &op = *n.op;
    const Blocks blocks = tokens_of(run, op);
    const int tokens = blocks.count(), first_channel = blocks.first * kBlock, rows = 2 * n.reach + 1;
    const W *w = weights_from(at(run, op.w1), blocks.first, op.in), *bias = at(run, op.b1) + first_channel;
    advance(n, y - n.reach, y + n.reach, rows, tokens, [&](int row, int slot) {
        const int given = n.source->columns();
        const Row to = n.ring[slot].from(pad(n, n.ring[slot], tokens));
        auto make = [&](Row in, int pixels, Row out) {
            pointwise(in, op.in, w, bias, Act::none, pixels, out, tokens, {nullptr, 0});
        };
        if (n.batch == 1) return make(pull(run, *n.source, row, n.space[0]), given, to);
        if (row >= n.made1) {
            const int last = n.last + n.reach < n.source->height ? n.last + n.reach : n.source->height - 1;
            n.made0 = row, n.made1 = last - row + 1 < n.batch ? last + 1 : row + n.batch;
            for (int i = row; i < n.made1; i++) {
                const Row in = n.space[0].from((i - row) * given), got = pull(run, *n.source, i, in);
                if (got.p != in.p) copy(got, in, n.source->blocks, given);
            }
            make(n.space[0], (n.made1 - row) * given, n.made);
        }
        copy(n.made.from((row - n.made0) * given), to, tokens, given);
    });
    take_tokens(run, n, n.ring[mod(y, rows)].from(n.x0 - n.low), first_channel, 0, y);
    for (int i = 0; i < op.scales; i++) {
        aggregate(run, op, i, n.ring, rows, y, n.x0 - n.low, blocks, n.columns(), n.line, n.extra[0]);
        take_tokens(run, n, n.extra[0], first_channel, 1 + i, y);
    }
}

void pool_row(const Run &run, Node &n, int y) {
    const Op &op = *n.op;
    const Row row = pull(run, *n.source, y, n.space[0]);
    const int across = (run.area.width() + kSumColumns - 1) / kSumColumns;
    for (int x = n.x0; x < n.x1; x += kSumColumns) {
        const int count = n.x1 - x < kSumColumns ? n.x1 - x : kSumColumns;
        float *sums = run.partials[op.value3] + (ptrdiff_t(y / kSumRows) * across + x / kSumColumns) * sums_floats(op);
        if (y % kSumRows == 0) memset(sums, 0, sizeof(float) * sums_floats(op));
        add_pixels(row.from(x - n.x0), op.in, count, sums);
    }
}

Space space(const Run &run, const Segment &segment, Window w) {
    Node nodes[kMaxNodes];
    Arena arena{nullptr};
    build(run, segment, w, arena, nodes);
    return {arena.used, arena.cached};
}

void run(const Run &run, const Segment &segment, Window w, char *memory) {
    Node nodes[kMaxNodes];
    Arena arena{memory};
    const int count = build(run, segment, w, arena, nodes);
    Node &end = nodes[count - 1];
    begin_dots();
    const int64_t start = run.times == nullptr ? 0 : now_ns();
    for (int y = w.y0; y < w.y1; y++) {
        if (end.op->kind == Kind::sums) {
            sums_row(run, end, y);
        } else if (end.op->kind == Kind::pool) {
            pool_row(run, end, y);
        } else {
            const Row to = stored(run, end, y);
            const Row got = pull(run, *end.source, y, to);
            if (got.p == to.p) continue;
            if (end.op->planar) {
                copy_planes(got, to, 0, end.columns(), 0);
            } else {
                copy(got, to, end.blocks, end.columns());
            }
        }
    }
    if (run.times != nullptr) run.times[end.op - run.program->ops] += now_ns() - start;
    end_dots();
    allow(memory, arena.used);
}

void score(const Run &run, const Op &op, ScoreStep step, int block) {
    const float *w1 = floats_at(run, op.w1), *b1 = floats_at(run, op.b1), *w3 = floats_at(run, op.w3), *b3 = floats_at(run, op.b3);
    float *means = run.sums[op.value3], *features = features_of(run, op);
    const ptrdiff_t first = ptrdiff_t(block) * kPacked;
    switch (step) {
        case ScoreStep::features: linear(means, op.in, w1 + first * op.in, b1 + first, features + first); break;
        case ScoreStep::norm: normalise(features, op.mid, op.eps, floats_at(run, op.w2), floats_at(run, op.b2), op.act); break;
        case ScoreStep::classes: linear(features, op.mid, w3 + first * op.mid, b3 + first, scores_of(run, op) + first); break;
    }
}

bool give(const Run &run, int y, int x0, int x1, float *logits, ptrdiff_t plane) {
    const Program &p = *run.program;
    const int w = run.width / 8, blocks = blocks_of(p.classes);
    const E *from = static_cast<const E *>(run.values[p.logits]) + ptrdiff_t(y) * blocks * w * kBlock;
    float difference = 0;  // of a number to itself: 0, or NaN
    for (int c = 0; c < p.classes; c++) {
        const E *in = from + ptrdiff_t(c / kBlock) * w * kBlock + c % kBlock;
        float *out = logits + c * plane;
        for (int x = x0; x < x1; x++) {
            const float number = float(in[ptrdiff_t(x) * kBlock]);
            out[x - x0] = number;
            difference += number - number;
        }
    }
    return difference == 0;
}

#if defined(__x86_64__) && EVS_BYTES > 16
// Whether the processor has bits of a register of leaf 7, and the system keeps the registers they need (of XCR0).
bool has(unsigned leaf7_ebx, unsigned leaf7_edx, unsigned leaf1_ecx, unsigned kept) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1_ecx) != leaf1_ecx) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & leaf7_ebx) != leaf7_ebx || (d & leaf7_edx) != leaf7_edx) return false;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & kept) == kept;
}

#if EVS_IS_BFLOAT16
bool has_bfloat16() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5) != 0;
}
#else
bool has_bfloat16() { return false; }
#endif

// Whether tile registers are there, and the system lets this process use them.
bool begins_tiles() {
#if EVS_AMX && defined(__linux__)
    constexpr unsigned tiles_bfloat16 = 1u << 22 | 1u << 24;
    constexpr int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return has(0, tiles_bfloat16, 0, 0x60000) && syscall(SYS_arch_prctl, ask, tile_data) == 0;
#elif EVS_AMX
    return false;
#else
    return true;
#endif
}
#endif

bool runs_here() {
#if defined(__x86_64__) && EVS_BYTES > 16
    constexpr unsigned fma_osxsave_avx = 1u << 12 | 1u << 27 | 1u << 28, avx2 = 1u << 5;
#if EVS_BYTES == 64
    constexpr unsigned avx512_f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, avx512_fp16 = 1u << 23;
    if (!has(avx2 | avx512_f_dq_bw_vl, EVS_IS_FLOAT16 ? avx512_fp16 : 0, fma_osxsave_avx, 0xe6)) return false;
    return !EVS_IS_BFLOAT16 || (has_bfloat16() && begins_tiles());
#else
    return has(avx2, 0, fma_osxsave_avx, 0x06);
#endif
#elif defined(__aarch64__) && EVS_IS_FLOAT16 && defined(__linux__)
    constexpr unsigned long hardware = 16, half_vectors = 1ul << 10;  // AT_HWCAP, HWCAP_ASIMDHP
    return (getauxval(hardware) & half_vectors) != 0;
#elif defined(__aarch64__) && EVS_IS_FLOAT16 && !defined(__APPLE__)
    return false;
#else
    return true;
#endif
}

}  // namespace

#define EVS_TEXT_(x) #x
#define EVS_TEXT(x) EVS_TEXT_(x)
int make_mask(const MaskJob &job, Pool *pool);  // in mask.cpp
void resize_source(evs_resized &side);           // in resize.cpp
int resize(const ResizeJob &job);
extern const Isa isa;
const Isa isa = {EVS_TEXT(EVS_ISA), EVS_PRECISION, kBlock, int(sizeof(E)), runs_here, prepare, space, run, score, give, make_mask, resize_source,
                 resize, peak};

}  // namespace evs::EVS_ISA
