// The C interface: models, runners, and how a run is cut into parts for the threads.
#include <initializer_list>
#include <limits.h>
#include <new>
#include <stdlib.h>
#include <string.h>

#include "../include/evitseg.h"
#include "chain.h"
#include "mask.h"
#include "model_file.h"
#include "platform.h"
#include "program.h"
#include "resize.h"
#include "threads.h"

namespace evs {
// EVS_SETS(X) is X of every instruction set, best first; build.py defines it.
#define EVS_DECLARE(name)          \
    namespace name {               \
    extern const Isa isa;          \
    }
#define EVS_ADDRESS(name) &name::isa,
EVS_SETS(EVS_DECLARE)
static const Isa *const kIsas[] = {EVS_SETS(EVS_ADDRESS)};
constexpr int kNumIsas = sizeof kIsas / sizeof kIsas[0];

constexpr size_t kLine = 64;
constexpr uint64_t kCache = 1 << 20;  // what a part's working memory should fit in
constexpr int kMaxSide = 1 << 16, kMaxValues = 4096, kMaxParts = 4096, kMaxWindows = 8192;

uint64_t rounded(uint64_t n) { return (n + kLine - 1) / kLine * kLine; }

// Whether the processor has an instruction set. Each answer is kept: asking takes 10 to 20 microseconds on a virtual machine.
bool runs_here(int i) {
    static signed char answers[kNumIsas];
    signed char answer = __atomic_load_n(&answers[i], __ATOMIC_RELAXED);
    if (answer == 0) {
        answer = kIsas[i]->runs_here() ? 1 : -1;
        __atomic_store_n(&answers[i], answer, __ATOMIC_RELAXED);
    }
    return answer > 0;
}

bool fits(int i, int precision) { return kIsas[i]->precision == precision && runs_here(i); }

const Isa *find_isa(int precision, const char *name) {
    for (int i = 0; i < kNumIsas; i++)
        if (fits(i, precision) && (name == nullptr || strcmp(name, kIsas[i]->name) == 0)) return kIsas[i];
    return nullptr;
}

}  // namespace evs

using namespace evs;

struct evs_model {
    Program program;
    const Isa *isa;
    char *manifest;
    // What runs in windows: the program's segments, cut at every tee, whose rows are stored anyway. The rows and columns
    // beside a window that are computed twice are fewer.
    Segment *segments;
    int num_segments;
};

namespace {

uint64_t value_numbers(const evs_model &m, int v, int height, int width) {
    const Value &value = m.program.values[v];
    return uint64_t(padded(value.channels, m.isa->block)) * (height / value.stride) * (width / value.stride);
}

const Op &end_of(const Program &p, const Segment &s) { return p.ops[s.first + s.count - 1]; }

uint64_t value_bytes(const evs_model &m, int v, int height, int width) {
    return rounded(value_numbers(m, v, height, width) * m.isa->bytes);
}

// The last operation, which computes the scores in a classifier.
const Op &last_of(const Program &p) { return p.ops[p.num_ops - 1]; }

// Number of floats for a segment's added-up sums, and for what is computed from them and stored behind them.
size_t result_floats(const Op &op) {
    const size_t sums = size_t(sums_floats(op));
    return op.kind == Kind::pool ? sums + padded(op.mid, kPacked) + padded(op.out, kPacked) : sums;
}

uint64_t partial_bytes(const Segment &s, const Op &op, int height, int width) {
    const uint64_t down = (height / s.stride + kSumRows - 1) / kSumRows, across = (width / s.stride + kSumColumns - 1) / kSumColumns;
    return rounded(down * across * sums_floats(op) * sizeof(float));
}

// Calls f with every value that an operation of a part reads or writes.
template <typename F>
void each_value(const Op &op, bool at_border, F f) {
    switch (op.kind) {
        case Kind::cut:
            if (at_border) f(op.value);
            break;
        case Kind::value:
        case Kind::tee:
        case Kind::store: f(op.value); break;
        case Kind::upsum:
        case Kind::attend: f(op.value), f(op.value2); break;
        case Kind::sums: f(op.value2); break;
        default: break;
    }
}

// Rows (or columns) first to last - 1 of one side.
struct Range {
    int first, last;
    int count() const { return last - first; }
};

// A block of memory that lives from one segment to another.
struct Piece {
    uint64_t *offset;
    uint64_t bytes;
    int from, to;
};

}  // namespace

struct evs_runner {
    const evs_model *model;
    Pool *pool;
    int threads;
    int64_t process;  // that started the threads: a fork has none of them
    char *memory = nullptr;
    size_t bytes = 0;
    uint64_t offsets[3 * kMaxValues];
    void *values[kMaxValues];
    float *partials[kMaxValues], *sums[kMaxValues];
    Piece pieces[2 * kMaxValues];
    Segment parts[kMaxParts];  // the segments, some of them cut in two or more, for the size of the run
    int num_parts;
    uint64_t features, planned;  // bytes of all features, and with the threads' working memory
    int height, width;  // of the run that is planned; 0 if none is
    // The part that runs, and how it is cut into windows for the threads.
    Run run;
    const Segment *segment;
    int tile_width, band_height, columns, rows;
    uint64_t space;
    char *spaces;
    float *logits;
    Range ranges[2][kMaxWindows];  // while a run is planned
    int not_finite;  // whether any logit is not; threads set it
    int64_t *times;  // per thread and operation; null where nobody asks
};

namespace {

// The whole of a segment, as the area that runs.
Window whole(const evs_runner &r, const Segment &s) { return {0, r.run.height / s.stride, 0, r.run.width / s.stride}; }

// Costs in multiply-adds of a dense convolution.
constexpr double kDepthwise = 3;                    // one of a depthwise convolution, which reads more than it computes
constexpr double kNear = 6, kFar = 20;              // a number that is stored and loaded: in a thread's cache, beyond it
constexpr uint64_t kNearBytes = 512 << 10;
constexpr double kBarrier = 150e3;                  // threads that wait for each other
constexpr uint64_t kMostCached = kCache + kCache / 2;  // working memory that a thread's cache holds, with some weights
constexpr double kOverflow = 0.1;                   // time that is lost where it has to hold twice as much
constexpr double kIdle = 1.05;                      // waiting that more bands than needed may shorten
constexpr int kMoreBands = 8;

Range grown(Range r, int stride, int reach, int side) {
    const int first = r.first * stride - reach, last = (r.last - 1) * stride + reach + 1;
    return {first < 0 ? 0 : first, last > side ? side : last};
}

// Multiply-adds for a pixel of the output, and for a pixel of the input.
void work_of(const Op &op, int block, double &out, double &in) {
    const double i = op.in, m = padded(op.mid, block), o = padded(op.out, block);
    out = in = 0;
    switch (op.kind) {
        case Kind::conv3: out = 9 * i * o; break;
        case Kind::inverted: out = 9 * m * kDepthwise + m * o, in = op.expands ? i * m : 0; break;
        case Kind::fused: out = 9 * i * m + m * o; break;
        case Kind::residual: out = 9 * (i * m + m * o); break;
        case Kind::pointwise: out = i * o; break;
        case Kind::upsum: out = 40 * o; break;
        case Kind::attend: out = o * (1 + op.scales) * (2.0 * op.head_dim + o); break;
        case Kind::pool: out = i; break;
        case Kind::sums:
            in = 3 * i * i;
            out = (1 + op.scales) * i * op.head_dim;
            for (int k = 0; k < op.scales; k++) out += 3 * i * (op.kernels[k] * op.kernels[k] * kDepthwise + op.head_dim);
            break;
        default: break;
    }
}

// Cuts the area of a segment, whose columns are known, into bands.
void set_bands(evs_runner &r, const Segment &s, int bands) {
    const int height = r.run.area.height(), unit = adds_up(end_of(*r.run.program, s).kind) ? kSumRows : 1;
    r.band_height = ((height + bands - 1) / bands + unit - 1) / unit * unit;
    r.rows = (height + r.band_height - 1) / r.band_height;
}

// How many times as long the windows take as they would if no thread had to wait for the others at the end.
double idle(const evs_runner &r) {
    const int items = r.rows * r.columns, threads = r.pool->threads();
    return double((items + threads - 1) / threads) * threads / items;
}

// Multiply-adds of all windows of a segment, with the rows and columns beside a window that it computes, too.
double work(evs_runner &r, const Segment &s) {
    const Program &p = *r.run.program;
    const Window &area = r.run.area;
    double total = 0;
    // Rows and columns that an operation works on, in all windows together, are independent of each other.
    int stride = s.stride;
    Range *rows = r.ranges[0], *columns = r.ranges[1];
    for (int i = 0; i < r.rows; i++) {
        const int first = area.y0 + i * r.band_height, last = first + r.band_height;
        rows[i] = {first, last < area.y1 ? last : area.y1};
    }
    for (int i = 0; i < r.columns; i++) {
        const int first = area.x0 + i * r.tile_width, last = first + r.tile_width;
        columns[i] = {first, last < area.x1 ? last : area.x1};
    }
    auto pixels = [&] {
        double y = 0, x = 0;
        for (int i = 0; i < r.rows; i++) y += rows[i].count();
        for (int i = 0; i < r.columns; i++) x += columns[i].count();
        return y * x;
    };
    for (int i = s.count - 1; i > 0; i--) {
        const Op &op = p.ops[s.first + i];
        double out, in;
        work_of(op, r.model->isa->block, out, in);
        total += out * pixels();
        stride /= op.stride;
        for (int b = 0; b < r.rows; b++) rows[b] = grown(rows[b], op.stride, reach_of(op), r.run.height / stride);
        for (int b = 0; b < r.columns; b++) columns[b] = grown(columns[b], op.stride, reach_of(op), r.run.width / stride);
        total += in * pixels();
    }
    double out, in;
    work_of(p.ops[s.first], r.model->isa->block, out, in);
    return total + out * pixels();
}

// Cuts an area of a segment into columns narrow enough for the cache and bands enough for the threads.
void cut(evs_runner &r, const Segment &s) {
    const Run &run = r.run;
    const Window &area = run.area;
    const int width = area.width();
    const int step = adds_up(end_of(*run.program, s).kind) ? kSumColumns : 8, threads = r.pool->threads();
    int columns = 1, tile = width;
    while (tile > step && r.model->isa->space(run, s, {0, 1, area.x0, area.x0 + tile}).cached > kCache) {
        columns++;
        const int next = (((width + columns - 1) / columns) + step - 1) / step * step;
        if (next < tile) tile = next;
        if (columns > width) break;
    }
    columns = (width + tile - 1) / tile;
    r.segment = &s;
    r.tile_width = tile, r.columns = columns;
    const int least = (threads + columns - 1) / columns;
    set_bands(r, s, least);
    if (idle(r) > kIdle && columns <= kMaxWindows) {  // three windows take two threads as long as four
        int best = least;
        double time = work(r, s) * idle(r);
        for (int bands = least + 1; bands <= least + kMoreBands && bands <= area.height(); bands++) {
            set_bands(r, s, bands);
            const double other = work(r, s) * idle(r);
            if (other < time) time = other, best = bands;
        }
        set_bands(r, s, best);
    }
    r.space = 0;
    for (int c = 0; c < columns; c++) {
        const int x0 = area.x0 + c * tile, x1 = x0 + tile < area.x1 ? x0 + tile : area.x1;
        const uint64_t space = rounded(r.model->isa->space(run, s, {0, 1, x0, x1}).bytes);
        if (space > r.space) r.space = space;
    }
}

// An estimate of the time that a part takes, in multiply-adds of one thread.
double cost(evs_runner &r, const Segment &s) {
    r.run.area = whole(r, s);
    cut(r, s);
    const Program &p = *r.run.program;
    const int threads = r.pool->threads();
    double total = work(r, s);
    const Op *borders[] = {&p.ops[s.first], &end_of(p, s)};
    for (const Op *op : borders) {
        if (!may_cut(op->kind)) continue;
        const uint64_t numbers = value_numbers(*r.model, op->value, r.run.height, r.run.width), bytes = numbers * r.model->isa->bytes;
        total += double(numbers) * (bytes / threads > kNearBytes ? kFar : kNear) / 2;
    }
    const uint64_t cached = r.model->isa->space(r.run, s, {0, 1, 0, r.tile_width}).cached;
    if (cached > kMostCached) total *= 1 + kOverflow * (double(cached) / kMostCached - 1);
    return total / threads * idle(r) + kBarrier;
}

// Cuts a segment into parts where that is estimated to save time: each window of a long part computes the rows that its
// convolutions need beyond its own, which other windows compute, too; a cut stores features, and makes all threads wait.
void part(evs_runner &r, const Segment &s) {
    const Op *ops = r.run.program->ops + s.first;
    double best[kMaxNodes];
    int from[kMaxNodes], strides[kMaxNodes];
    int stride = s.stride;
    for (int i = s.count - 1; i >= 0; i--) strides[i] = stride, stride /= i > 0 ? ops[i].stride : 1;
    for (int end = 1; end < s.count; end++) {
        if (end < s.count - 1 && !may_cut(ops[end].kind)) continue;
        best[end] = -1;
        for (int start = 0; start < end; start++) {
            if (start > 0 && !may_cut(ops[start].kind)) continue;
            const double total = (start > 0 ? best[start] : 0) + cost(r, {s.first + start, end - start + 1, strides[end]});
            if (best[end] < 0 || total < best[end]) best[end] = total, from[end] = start;
        }
    }
    int ends[kMaxNodes], count = 0;
    for (int end = s.count - 1; end > 0; end = from[end]) ends[count++] = end;
    for (int i = count - 1, start = 0; i >= 0; start = ends[i--])
        r.parts[r.num_parts++] = {s.first + start, ends[i] - start + 1, strides[ends[i]]};
}

// Gives every value, and every set of sums, a place; places are used again when what lies there is not needed any more.
uint64_t lay_out(evs_runner &r) {
    const Program &p = *r.run.program;
    const int height = r.run.height, width = r.run.width;
    int count = 0;
    Piece *pieces = r.pieces;
    for (int v = 0; v < p.num_values; v++) {
        int from = INT_MAX, to = -1;
        for (int s = 0; s < r.num_parts; s++)
            for (int i = 0; i < r.parts[s].count; i++)
                each_value(p.ops[r.parts[s].first + i], i == 0 || i == r.parts[s].count - 1, [&](int used) {
                    if (used != v) return;
                    if (s < from) from = s;
                    to = s;
                });
        if (v == p.logits) to = r.num_parts;
        r.offsets[v] = 0;
        if (to >= 0) pieces[count++] = {&r.offsets[v], value_bytes(*r.model, v, height, width), from, to};
    }
    for (int s = 0; s < r.num_parts; s++) {
        const Op &op = end_of(p, r.parts[s]);
        if (!adds_up(op.kind)) continue;
        const int slot = op.value3;
        pieces[count++] = {&r.offsets[kMaxValues + slot], partial_bytes(r.parts[s], op, height, width), s, s};
        pieces[count++] = {&r.offsets[2 * kMaxValues + slot], rounded(result_floats(op) * sizeof(float)), s, r.num_parts};
    }
    uint64_t total = 0;
    for (int i = 0; i < count; i++) {  // first fit, in the order of the program
        uint64_t at = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (int j = 0; j < i; j++) {
                const bool together = pieces[j].from <= pieces[i].to && pieces[i].from <= pieces[j].to;
                if (together && at < *pieces[j].offset + pieces[j].bytes && *pieces[j].offset < at + pieces[i].bytes) {
                    at = *pieces[j].offset + pieces[j].bytes;
                    moved = true;
                }
            }
        }
        *pieces[i].offset = at;
        if (at + pieces[i].bytes > total) total = at + pieces[i].bytes;
    }
    return total;
}

bool size_ok(int height, int width) {
    return height >= 32 && width >= 32 && height <= kMaxSide && width <= kMaxSide && height % 32 == 0 && width % 32 == 0;
}

// Plans a run of one size, unless that is the plan at hand. Returns: the bytes it needs.
uint64_t plan(evs_runner &r, int height, int width) {
    if (r.height == height && r.width == width) return r.planned;
    r.run = {&r.model->program, nullptr, 0, height, width, r.values, r.partials, r.sums, nullptr, {}, nullptr, 0, false, nullptr, false};
    r.num_parts = 0;
    for (int s = 0; s < r.model->program.num_segments; s++) part(r, r.model->program.segments[s]);
    r.features = lay_out(r);
    uint64_t space = 0;
    for (int s = 0; s < r.num_parts; s++) {
        r.run.area = whole(r, r.parts[s]);
        cut(r, r.parts[s]);
        if (r.space > space) space = r.space;
    }
    r.planned = r.features + space * r.pool->threads();
    r.height = height, r.width = width;
    return r.planned;
}

// Whether a window lies inside its image, and no sum of two of the numbers overflows.
bool side_ok(const evs_side &s) {
    constexpr int kMost = 1 << 29;
    return s.logits >= 1 && s.pixels >= 1 && s.logits <= s.all_logits && s.pixels <= s.all_pixels && s.all_logits <= kMost &&
           s.all_pixels <= kMost && s.first_logit >= 0 && s.first_pixel >= 0 && s.first_logit <= s.all_logits - s.logits &&
           s.first_pixel <= s.all_pixels - s.pixels;
}

bool resized_ok(const evs_resized &s) {
    constexpr int kMost = 1 << 24;
    return s.from >= 1 && s.from <= kMost && s.to >= 1 && s.to <= kMost && s.first >= 0 && s.count >= 1 && s.count <= s.to &&
           s.first <= s.to - s.count;
}

bool source_ok(const evs_resized &s) {
    return s.source_first >= 0 && s.source_count >= 1 && s.source_count <= s.from && s.source_first <= s.from - s.source_count;
}

// Starts threads for a runner that came through a fork without them.
bool have_threads(evs_runner &r) {
    if (r.process == process_id()) return true;
    void *pool = malloc(sizeof(Pool));
    if (pool == nullptr) return false;
    r.pool = new (pool) Pool(r.threads);
    r.process = process_id();
    r.height = r.width = 0;  // the plan counted the other pool's threads
    return true;
}

void run_part(void *context, int item, int thread) {
    evs_runner &r = *static_cast<evs_runner *>(context);
    const Window &area = r.run.area;
    const int y0 = area.y0 + item / r.columns * r.band_height, x0 = area.x0 + item % r.columns * r.tile_width;
    Window w{y0, y0 + r.band_height, x0, x0 + r.tile_width};
    if (w.y1 > area.y1) w.y1 = area.y1;
    if (w.x1 > area.x1) w.x1 = area.x1;
    Run run = r.run;
    if (r.times != nullptr) run.times = r.times + ptrdiff_t(thread) * run.program->num_ops;
    r.model->isa->run(run, *r.segment, w, r.spaces + thread * r.space);
}

// One item of each step of a classifier's scores.
template <ScoreStep kStep>
void score_block(void *context, int block, int) {
    const evs_runner &r = *static_cast<const evs_runner *>(context);
    r.model->isa->score(r.run, last_of(r.model->program), kStep, block);
}

// A classifier's scores, from the sums of its last segment. Returns: whether all are finite.
bool score(evs_runner &r, float *scores) {
    const Op &op = last_of(r.model->program);
    const int64_t start = r.times == nullptr ? 0 : now_ns();
    r.pool->run(padded(op.mid, kPacked) / kPacked, score_block<ScoreStep::features>, &r);
    r.model->isa->score(r.run, op, ScoreStep::norm, 0);
    r.pool->run(padded(op.out, kPacked) / kPacked, score_block<ScoreStep::classes>, &r);
    if (r.times != nullptr) r.times[r.model->program.num_ops - 1] += now_ns() - start;
    float difference = 0;  // of a number to itself: 0, or NaN
    const float *from = scores_of(r.run, op);
    for (int c = 0; c < op.out; c++) scores[c] = from[c], difference += from[c] - from[c];
    return difference == 0;
}

void give_row(void *context, int row, int) {
    evs_runner &r = *static_cast<evs_runner *>(context);
    const Window &area = r.run.area;
    const int width = area.width();
    if (!r.model->isa->give(r.run, area.y0 + row, area.x0, area.x1, r.logits + ptrdiff_t(row) * width, ptrdiff_t(area.height()) * width))
        __atomic_store_n(&r.not_finite, 1, __ATOMIC_RELAXED);
}

// The logits of the area, as planes. Returns: an EVS_ code.
int give_logits(evs_runner &r, float *logits) {
    r.logits = logits, r.not_finite = 0;
    r.pool->run(r.run.area.height(), give_row, &r);
    return r.not_finite ? EVS_NOT_FINITE : EVS_OK;
}

// Adds up `count` neighbouring sets of sums, `distance` floats apart, in a tree: neighbours first. The first becomes the total.
void add_up(float *sums, ptrdiff_t count, ptrdiff_t size, ptrdiff_t distance) {
    for (ptrdiff_t step = 1; step < count; step *= 2)
        for (ptrdiff_t b = 0; b + step < count; b += 2 * step) {
            float *to = sums + b * distance;
            const float *from = to + step * distance;
            for (ptrdiff_t i = 0; i < size; i++) to[i] += from[i];
        }
}

// Blocks of tokens in a row of them, and rows of blocks, in the area that runs.
int blocks_across(const evs_runner &r) { return (r.run.area.width() + kSumColumns - 1) / kSumColumns; }
int blocks_down(const evs_runner &r) { return (r.run.area.height() + kSumRows - 1) / kSumRows; }

void add_row(void *context, int row, int) {
    const evs_runner &r = *static_cast<const evs_runner *>(context);
    const Op &op = end_of(r.model->program, *r.segment);
    const ptrdiff_t size = sums_floats(op), across = blocks_across(r);
    add_up(r.partials[op.value3] + row * across * size, across, size, size);
}

// Adds the partial sums of each row of blocks into its first block: a band of rows gives the same bits in every run.
void add_rows(evs_runner &r) { r.pool->run(blocks_down(r), add_row, &r); }

// The sums of a segment over the whole image, from those of its rows of blocks; of a classifier the means.
void add_all(evs_runner &r) {
    const Op &op = end_of(r.model->program, *r.segment);
    const ptrdiff_t size = sums_floats(op);
    add_up(r.partials[op.value3], blocks_down(r), size, size * blocks_across(r));
    float *sums = r.sums[op.value3];
    memcpy(sums, r.partials[op.value3], size_t(size) * sizeof(float));
    if (op.kind != Kind::pool) return;
    const float pixels = float(int64_t(r.run.area.height()) * r.run.area.width());
    for (ptrdiff_t i = 0; i < size; i++) sums[i] /= pixels;
}

// The largest number that there is, for more bytes than a machine can have.
size_t as_size(uint64_t bytes) { return bytes > SIZE_MAX ? SIZE_MAX : size_t(bytes); }

// Makes sure that the runner has this much memory.
bool reserve(evs_runner &r, uint64_t needed) {
    if (needed <= r.bytes) return true;
    if (needed > SIZE_MAX) return false;
    free_aligned(r.memory);
    r.memory = static_cast<char *>(allocate_aligned(kLine, size_t(needed)));
    r.bytes = r.memory != nullptr ? size_t(needed) : 0;
    return r.memory != nullptr;
}

int run_whole(evs_runner *r, const uint8_t *image, int height, int width, size_t row_bytes, const float *given, float *logits) {
    if (r == nullptr || image == nullptr || logits == nullptr) return EVS_BAD_ARGUMENT;
    if (!size_ok(height, width) || row_bytes < size_t(width) * 3) return EVS_BAD_SIZE;
    if (!have_threads(*r) || !reserve(*r, rounded(plan(*r, height, width)) + kOverread)) return EVS_NO_MEMORY;
    const Program &p = r->model->program;
    for (int i = 0; i < kMaxValues; i++) {
        r->values[i] = r->memory + r->offsets[i];
        r->partials[i] = reinterpret_cast<float *>(r->memory + r->offsets[kMaxValues + i]);
        r->sums[i] = reinterpret_cast<float *>(r->memory + r->offsets[2 * kMaxValues + i]);
    }
    r->spaces = r->memory + r->features;
    r->run.image = image, r->run.row_bytes = ptrdiff_t(row_bytes);
    for (int s = 0; s < r->num_parts; s++) {
        r->run.area = whole(*r, r->parts[s]);
        cut(*r, r->parts[s]);
        r->run.given = given != nullptr;  // needs less memory than was planned
        r->pool->run(r->rows * r->columns, run_part, r);
        r->run.given = false;
        const Op &end = end_of(p, r->parts[s]);
        if (!adds_up(end.kind)) continue;
        if (given != nullptr) {
            memcpy(r->sums[end.value3], given, size_t(sums_floats(end)) * sizeof(float));
            given += sums_floats(end);
            continue;
        }
        add_rows(*r);
        add_all(*r);
    }
    if (p.logits < 0) return score(*r, logits) ? EVS_OK : EVS_NOT_FINITE;
    return give_logits(*r, logits);  // the last segment's area is that of the logits
}

// Cuts the program's segments at every tee. Returns: false if memory runs out.
bool split_segments(evs_model &m) {
    const Program &p = m.program;
    m.segments = static_cast<Segment *>(calloc(size_t(p.num_ops), sizeof(Segment)));
    if (m.segments == nullptr) return false;
    for (int s = 0; s < p.num_segments; s++) {
        const Segment &whole = p.segments[s];
        int stride = whole.stride, parts = 0, last = whole.count - 1;
        Segment found[kMaxNodes];  // from the last to the first
        for (int i = last; i >= 0; i--) {
            const Op &op = p.ops[whole.first + i];
            const bool tee = op.kind == Kind::tee && i > 0 && i < whole.count - 1;
            if (tee || i == 0) {
                found[parts].first = whole.first + i, found[parts].count = last - i + 1;
                parts++;
                last = i;
            }
            if (i == whole.count - 1 || tee) found[parts].stride = stride;
            if (i > 0) stride /= op.stride;
        }
        while (parts > 0) m.segments[m.num_segments++] = found[--parts];
    }
    return true;
}

// --- windows of a segment ----------------------------------------------------------------------------------------

constexpr int kMaxStreamedSide = 1 << 24;

// Where the memory of a window's run begins, in one block.
struct WindowMemory {
    uint64_t partials, sums, logits, spaces, bytes;
};

// Plans the run of an area of a segment. r.run holds it.
WindowMemory plan_window(evs_runner &r, const Segment &s) {
    const Program &p = r.model->program;
    cut(r, s);
    WindowMemory m{};
    uint64_t at = 0;
    auto take = [&](uint64_t bytes) {
        const uint64_t from = at;
        at += rounded(bytes);
        return from;
    };
    const Op &end = end_of(p, s), &first = p.ops[s.first];
    const uint64_t area_blocks = uint64_t(blocks_down(r)) * uint64_t(blocks_across(r));
    m.partials = take(adds_up(end.kind) ? area_blocks * sums_floats(end) * sizeof(float) : 0);
    m.sums = take(first.kind == Kind::attend ? sums_floats(first) * sizeof(float) : 0);
    m.logits = take(&s != &r.model->segments[r.model->num_segments - 1] ? 0 : value_bytes(*r.model, p.logits, 8, r.run.width) * uint64_t(r.run.area.height()));
    m.spaces = take(r.space * uint64_t(r.pool->threads()));
    m.bytes = at + kOverread;
    return m;
}

// Sets the runner up for an area of a segment of an image of this size. Returns: an EVS_ code.
int begin_window(evs_runner *r, int segment, int height, int width, Window area) {
    if (r == nullptr || segment < 0 || segment >= r->model->num_segments || r->model->program.logits < 0) return EVS_BAD_ARGUMENT;
    if (height < 32 || width < 32 || height % 32 || width % 32 || height > kMaxStreamedSide || width > kMaxStreamedSide) return EVS_BAD_SIZE;
    const int stride = r->model->segments[segment].stride;
    if (area.y0 < 0 || area.x0 < 0 || area.y0 >= area.y1 || area.x0 >= area.x1 || area.y1 > height / stride || area.x1 > width / stride)
        return EVS_BAD_ARGUMENT;
    if (!have_threads(*r)) return EVS_NO_MEMORY;
    r->height = r->width = 0;  // what is set up now is no whole run
    r->run = {&r->model->program, nullptr, 0, height, width, r->values, r->partials, r->sums, nullptr, area, nullptr, 0, true, nullptr, false};
    return EVS_OK;
}

// Where row 0 would lie, of rows that begin with another one.
void *row_zero(void *rows, int first, uint64_t row_bytes) {
    return reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(rows) - uintptr_t(first * row_bytes));
}

// Rows of one side that bicubic enlargement by `factor` reads for rows of its output.
Range enlarged_from(Range rows, int factor, int side) {
    const int first = rows.first / factor - 2, last = (rows.last - 1) / factor + 3;
    return {first < 0 ? 0 : first, last > side ? side : last};
}

// The largest reach of a program's aggregations.
int most_reach(const Program &p) {
    int most = 0;
    for (int i = 0; i < p.num_ops; i++)
        if (p.ops[i].kind == Kind::sums && reach_of(p.ops[i]) > most) most = reach_of(p.ops[i]);
    return most;
}

// Calls f(value, rows, whether they are written) for all rows that rows of a segment's end read or write; -1 is the image.
template <typename F>
void each_rows(const Program &p, const Segment &s, int height, Range rows, F f) {
    int stride = s.stride;
    for (int i = s.count - 1; i >= 0; i--) {
        const Op &op = p.ops[s.first + i];
        const int side = height / stride;
        switch (op.kind) {
            case Kind::image: f(-1, rows, false); break;
            case Kind::value: f(op.value, rows, false); break;
            case Kind::attend: f(op.value, grown(rows, 1, most_reach(p), side), false); break;  // queries are computed anew
            case Kind::upsum:
                f(op.value, enlarged_from(rows, 4, side / 4), false);
                f(op.value2, enlarged_from(rows, 2, side / 2), false);
                break;
            case Kind::tee: f(op.value, rows, i > 0); break;
            case Kind::store: f(op.value, rows, true); break;
            default: break;
        }
        if (i == 0) break;
        stride /= op.stride;
        rows = grown(rows, op.stride, reach_of(op), height / stride);
    }
}

}  // namespace

extern "C" {

const char *evs_error_text(int code) {
    switch (code) {
        case EVS_OK: return "success";
        case EVS_BAD_PROGRAM: return "the program is damaged, or was made by another version of evitseg";
        case EVS_BAD_SIZE: return "both sides of the image must be multiples of 32, from 32 to 65536 pixels";
        case EVS_NO_MEMORY: return "there is not enough memory";
        case EVS_NOT_FINITE: return "numbers of the network grow beyond what its precision can hold; run it in float32";
        case EVS_BAD_ARGUMENT: return "an argument is missing or out of range";
    }
    return "unknown error";
}

const char *evs_instruction_sets(int precision) {
    static char names[3][64];
    char made[64] = "";
    for (int i = 0; i < kNumIsas; i++)
        if (fits(i, precision)) {
            if (made[0]) strcat(made, " ");
            strcat(made, kIsas[i]->name);
        }
    char *kept = names[precision < 0 || precision > 2 ? 0 : precision];
    memcpy(kept, made, sizeof made);  // the same bytes every time
    return kept;
}

int evs_model_load(const void *bytes, size_t size, int precision, const char *isa, evs_model **model) {
    if (model == nullptr) return EVS_BAD_ARGUMENT;
    *model = nullptr;
    const Isa *found = find_isa(precision, isa);
    if (found == nullptr) return EVS_BAD_ARGUMENT;
    evs_model *m = static_cast<evs_model *>(calloc(1, sizeof(evs_model)));
    if (m == nullptr) return EVS_NO_MEMORY;
    m->isa = found;
    ModelFile file;
    int code = find_parts(bytes, size, file) ? EVS_OK : EVS_BAD_PROGRAM;
    if (code == EVS_OK) {
        m->manifest = static_cast<char *>(calloc(file.manifest_size + 1, 1));
        code = m->manifest != nullptr ? read_program(file.program, file.program_size, m->program) : EVS_NO_MEMORY;
    }
    if (code != EVS_OK) {
        free(m->manifest);
        free(m);
        return code;
    }
    memcpy(m->manifest, file.manifest, file.manifest_size);
    if (!found->prepare(m->program) || !split_segments(*m)) {
        evs_model_free(m);
        return EVS_NO_MEMORY;
    }
    *model = m;
    return EVS_OK;
}

void evs_model_free(evs_model *model) {
    if (model == nullptr) return;
    free_program(model->program);
    free(model->segments);
    free(model->manifest);
    free(model);
}

int evs_model_classes(const evs_model *model) { return model->program.classes; }
int evs_model_is_classifier(const evs_model *model) { return model->program.logits < 0; }
const char *evs_model_isa(const evs_model *model) { return model->isa->name; }
const char *evs_model_manifest(const evs_model *model) { return model->manifest; }

int evs_runner_new(const evs_model *model, int threads, evs_runner **runner) {
    if (model == nullptr || runner == nullptr || threads < 1 || threads > 1024) return EVS_BAD_ARGUMENT;
    evs_runner *r = static_cast<evs_runner *>(calloc(1, sizeof(evs_runner)));
    void *pool = malloc(sizeof(Pool));
    if (r == nullptr || pool == nullptr) {
        free(r), free(pool);
        return EVS_NO_MEMORY;
    }
    r->model = model;
    r->pool = new (pool) Pool(threads);
    r->threads = threads;
    r->process = process_id();
    *runner = r;
    return EVS_OK;
}

void evs_runner_free(evs_runner *r) {
    if (r == nullptr) return;
    if (r->process == process_id()) r->pool->~Pool();
    free(r->pool);
    free_aligned(r->memory);
    free(r->times);
    free(r);
}

size_t evs_runner_memory(const evs_runner *runner, int height, int width) {
    if (runner == nullptr || !size_ok(height, width)) return 0;
    return as_size(plan(*const_cast<evs_runner *>(runner), height, width));
}

int evs_runner_profile(evs_runner *r, int wanted) {
    if (r == nullptr) return EVS_BAD_ARGUMENT;
    free(r->times);
    r->times = nullptr;
    if (!wanted) return EVS_OK;
    r->times = static_cast<int64_t *>(calloc(size_t(r->threads) * r->model->program.num_ops, sizeof(int64_t)));
    return r->times != nullptr ? EVS_OK : EVS_NO_MEMORY;
}

int evs_runner_times(const evs_runner *r, int64_t *nanoseconds, int count) {
    if (r == nullptr || nanoseconds == nullptr || r->times == nullptr) return EVS_BAD_ARGUMENT;
    const Program &p = r->model->program;
    if (count != p.num_ops) return EVS_BAD_ARGUMENT;
    memset(nanoseconds, 0, sizeof(int64_t) * size_t(count));
    for (int s = 0; s < r->num_parts; s++) {
        const int first = r->parts[s].first;
        for (int i = first; i < first + r->parts[s].count; i++) {
            if (i == first && may_cut(p.ops[i].kind)) continue;  // that is the end of another part
            const bool has_source = i > first && !(i == first + 1 && may_cut(p.ops[first].kind));
            for (int t = 0; t < r->pool->threads(); t++) {
                const int64_t *times = r->times + ptrdiff_t(t) * p.num_ops;  // each holds the time of its source, too
                nanoseconds[i] += times[i] - (has_source ? times[i - 1] : 0);
            }
        }
    }
    return EVS_OK;
}

double evs_peak(const evs_model *model) { return model != nullptr ? model->isa->peak() : 0; }

int evs_run(evs_runner *r, const uint8_t *image, int height, int width, size_t row_bytes, float *logits) {
    return run_whole(r, image, height, width, row_bytes, nullptr, logits);
}

int evs_run_given(evs_runner *r, const uint8_t *image, int height, int width, size_t row_bytes, const float *sums, float *logits) {
    if (sums == nullptr || (r != nullptr && r->model->program.logits < 0)) return EVS_BAD_ARGUMENT;
    return run_whole(r, image, height, width, row_bytes, sums, logits);
}

int evs_model_segments(const evs_model *model) { return model->num_segments; }
int evs_model_values(const evs_model *model) { return model->program.num_values; }

int evs_model_segment(const evs_model *model, int segment, evs_segment *about) {
    if (model == nullptr || about == nullptr || segment < 0 || segment >= model->num_segments) return EVS_BAD_ARGUMENT;
    const Program &p = model->program;
    const Segment &s = model->segments[segment];
    const Op &end = end_of(p, s), &first = p.ops[s.first];
    double work = 0;
    for (int i = s.count - 1, stride = s.stride; i >= 0; i--) {
        const Op &op = p.ops[s.first + i];
        double out, in;
        work_of(op, model->isa->block, out, in);
        work += out / (double(stride) * stride);
        if (i > 0) stride /= op.stride;
        work += in / (double(stride) * stride);
    }
    *about = {s.stride, adds_up(end.kind) ? sums_floats(end) : 0, first.kind == Kind::attend ? sums_floats(first) : 0, work};
    return EVS_OK;
}

int evs_model_value(const evs_model *model, int value, evs_value *about) {
    if (model == nullptr || about == nullptr || value < 0 || value >= model->program.num_values) return EVS_BAD_ARGUMENT;
    const Value &v = model->program.values[value];
    *about = {v.stride, size_t(padded(v.channels, model->isa->block)) * size_t(model->isa->bytes)};
    return EVS_OK;
}

int evs_segment_rows(const evs_model *model, int segment, int value, int height, int y0, int y1, evs_rows *read, evs_rows *written) {
    if (model == nullptr || read == nullptr || written == nullptr || segment < 0 || segment >= model->num_segments) return EVS_BAD_ARGUMENT;
    const Program &p = model->program;
    const Segment &s = model->segments[segment];
    if (value < -1 || value >= p.num_values || height < 32 || height % 32 || height > kMaxStreamedSide) return EVS_BAD_ARGUMENT;
    if (y0 < 0 || y0 >= y1 || y1 > height / s.stride) return EVS_BAD_ARGUMENT;
    *read = *written = {0, 0};
    each_rows(p, s, height, {y0, y1}, [&](int v, Range rows, bool writes) {
        if (v != value) return;
        evs_rows &all = writes ? *written : *read;
        const bool none = all.first == all.last;
        all = {none || rows.first < all.first ? rows.first : all.first, none || rows.last > all.last ? rows.last : all.last};
    });
    return EVS_OK;
}

size_t evs_window_memory(evs_runner *r, int segment, int height, int width, int y0, int y1, int x0, int x1) {
    if (begin_window(r, segment, height, width, {y0, y1, x0, x1}) != EVS_OK) return 0;
    return as_size(plan_window(*r, r->model->segments[segment]).bytes);
}

int evs_run_window(evs_runner *r, int segment, const evs_window *w) {
    if (w == nullptr || w->values == nullptr) return EVS_BAD_ARGUMENT;
    int code = begin_window(r, segment, w->height, w->width, {w->y0, w->y1, w->x0, w->x1});
    if (code != EVS_OK) return code;
    const Program &p = r->model->program;
    const Segment &s = r->model->segments[segment];
    const Op &end = end_of(p, s), &first = p.ops[s.first];
    const bool sums = adds_up(end.kind), last = segment == r->model->num_segments - 1;
    if ((sums || last) && w->out == nullptr) return EVS_BAD_ARGUMENT;
    if ((first.kind == Kind::attend && w->sums == nullptr) || (first.kind == Kind::image && w->image == nullptr)) return EVS_BAD_ARGUMENT;
    const WindowMemory m = plan_window(*r, s);
    if (!reserve(*r, m.bytes)) return EVS_NO_MEMORY;
    for (int v = 0; v < p.num_values; v++) {
        const uint64_t row_bytes = value_bytes(*r->model, v, p.values[v].stride, w->width);
        r->values[v] = v == p.logits ? row_zero(r->memory + m.logits, w->y0, row_bytes)
                                     : row_zero(w->values[v].rows, w->values[v].first_row, row_bytes);
    }
    bool ok = true;  // only the last segment has the logits' rows, and writes them
    each_rows(p, s, w->height, {w->y0, w->y1}, [&](int v, Range, bool written) {
        if (v >= 0) ok = ok && (v == p.logits ? last && written : w->values[v].rows != nullptr);
    });
    if (!ok) return EVS_BAD_ARGUMENT;
    if (sums) r->partials[end.value3] = reinterpret_cast<float *>(r->memory + m.partials);
    if (first.kind == Kind::attend) {
        r->sums[first.value3] = reinterpret_cast<float *>(r->memory + m.sums);
        memcpy(r->memory + m.sums, w->sums, size_t(sums_floats(first)) * sizeof(float));
    }
    r->spaces = r->memory + m.spaces;
    r->run.rows = w->image, r->run.first_row = w->first_row;
    r->run.valid = w->valid;
    r->pool->run(r->rows * r->columns, run_part, r);
    if (sums) {
        add_rows(*r);
        const ptrdiff_t size = sums_floats(end), across = blocks_across(*r);
        for (ptrdiff_t row = 0; row < blocks_down(*r); row++)
            memcpy(w->out + row * size, r->partials[end.value3] + row * across * size, size_t(size) * sizeof(float));
    } else if (last) {
        code = give_logits(*r, w->out);
    }
    return code;
}

void evs_count_classes(const uint8_t *mask, size_t pixels, uint64_t *counts) {
    constexpr size_t kRun = 64;  // neighbours are mostly of one class
    size_t i = 0;
    for (; i + kRun <= pixels; i += kRun) {
        const uint8_t first = mask[i];
        uint8_t others = 0;
        for (size_t j = 0; j < kRun; j++) others |= mask[i + j] ^ first;
        if (others == 0) {
            counts[first] += kRun;
        } else {
            for (size_t j = 0; j < kRun; j++) counts[mask[i + j]]++;
        }
    }
    for (; i < pixels; i++) counts[mask[i]]++;
}

int evs_add_sums(float *sums, size_t count, size_t size) {
    if (sums == nullptr || count < 1) return EVS_BAD_ARGUMENT;
    add_up(sums, ptrdiff_t(count), ptrdiff_t(size), ptrdiff_t(size));
    return EVS_OK;
}

int evs_mask(evs_runner *r, const float *logits, int classes, const evs_side *down, const evs_side *across, void *mask) {
    if (logits == nullptr || down == nullptr || across == nullptr || mask == nullptr) return EVS_BAD_ARGUMENT;
    MaskJob job{logits, classes, *down, *across, mask};
    for (evs_side *side : {&job.down, &job.across})
        if (side->all_logits == 0 && side->all_pixels == 0) side->all_logits = side->logits, side->all_pixels = side->pixels;
    if (classes < 1 || classes > 65535 || !side_ok(job.down) || !side_ok(job.across)) return EVS_BAD_ARGUMENT;
    if (r == nullptr) return find_isa(EVS_FLOAT32, nullptr)->make_mask(job, nullptr);
    return have_threads(*r) ? r->model->isa->make_mask(job, r->pool) : EVS_NO_MEMORY;
}

int evs_resize_source(evs_resized *side) {
    if (side == nullptr || !resized_ok(*side)) return EVS_BAD_ARGUMENT;
    find_isa(EVS_FLOAT32, nullptr)->resize_source(*side);
    return EVS_OK;
}

int evs_resize(const uint8_t *image, size_t row_bytes, const evs_resized *down, const evs_resized *across, const char *isa, uint8_t *out) {
    const Isa *found = find_isa(EVS_FLOAT32, isa);
    if (image == nullptr || down == nullptr || across == nullptr || out == nullptr || found == nullptr) return EVS_BAD_ARGUMENT;
    for (const evs_resized *side : {down, across})
        if (!resized_ok(*side) || !source_ok(*side)) return EVS_BAD_ARGUMENT;
    if (row_bytes < size_t(across->source_count) * 3) return EVS_BAD_ARGUMENT;
    return found->resize({image, row_bytes, *down, *across, out});
}

}  // extern "C"
