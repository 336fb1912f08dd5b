// The C interface: models, runners, and how a run is cut into parts for the threads.
#include <limits.h>
#include <new>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../include/evitseg.h"
#include "chain.h"
#include "program.h"
#include "threads.h"

namespace evs {
#define EVS_DECLARE(name)          \
    namespace name {               \
    extern const Isa isa;          \
    }
#if defined(__x86_64__)
EVS_DECLARE(avx512)
EVS_DECLARE(avx2)
EVS_DECLARE(sse4)
static const Isa *const kIsas[] = {&avx512::isa, &avx2::isa, &sse4::isa};
#elif defined(__aarch64__)
EVS_DECLARE(neon)
static const Isa *const kIsas[] = {&neon::isa};
#else
EVS_DECLARE(portable)
static const Isa *const kIsas[] = {&portable::isa};
#endif
constexpr int kNumIsas = sizeof kIsas / sizeof kIsas[0];

constexpr size_t kLine = 64;
constexpr size_t kCache = 1 << 20;  // what a part's working memory should fit in
constexpr int kMaxSide = 1 << 16, kMaxValues = 4096;

size_t rounded(size_t n) { return (n + kLine - 1) / kLine * kLine; }

const Isa *find_isa(const char *name) {
    for (int i = 0; i < kNumIsas; i++)
        if (kIsas[i]->runs_here() && (name == nullptr || strcmp(name, kIsas[i]->name) == 0)) return kIsas[i];
    return nullptr;
}

}  // namespace evs

using namespace evs;

struct evs_model {
    Program program;
    const Isa *isa;
};

namespace {

// Where everything of a run of one size lies.
struct Layout {
    size_t *offsets;    // per value, in bytes
    size_t *partials;   // per sums slot
    size_t *sums;
    size_t total;       // without the threads' working memory
};

size_t value_bytes(const Program &p, int v, int height, int width) {
    const Value &value = p.values[v];
    return rounded(size_t(blocks_of(value.channels)) * kBlock * (height / value.stride) * (width / value.stride) * sizeof(float));
}

const Op &end_of(const Program &p, const Segment &s) { return p.ops[s.first + s.count - 1]; }

int sums_floats(const Op &op) { return op.heads * (1 + op.scales) * (op.head_dim * op.head_dim + op.head_dim); }

size_t partial_bytes(const Segment &s, const Op &op, int height, int width) {
    const size_t down = (height / s.stride + kSumRows - 1) / kSumRows, across = (width / s.stride + kSumColumns - 1) / kSumColumns;
    return rounded(down * across * sums_floats(op) * sizeof(float));
}

template <typename F>
void each_value(const Op &op, F f) {  // f(value, whether it is written)
    switch (op.kind) {
        case Kind::value: f(op.value, false); break;
        case Kind::tee:
        case Kind::store: f(op.value, true); break;
        case Kind::upsum: f(op.value, false), f(op.value2, false); break;
        case Kind::attend: f(op.value, false), f(op.value2, false); break;
        case Kind::sums: f(op.value2, true); break;
        default: break;
    }
}

// A block of memory that lives from one segment to another.
struct Piece {
    size_t *offset;
    size_t bytes;
    int from, to;
};

}  // namespace

struct evs_runner {
    const evs_model *model;
    Pool *pool;
    int threads;
    pid_t process;  // that started the threads: a fork has none of them
    char *memory = nullptr;
    size_t bytes = 0;
    size_t offsets[3 * kMaxValues];
    float *pointers[3 * kMaxValues];
    Piece pieces[2 * kMaxValues];
    // The parts of the segment that runs.
    Run run;
    const Segment *segment;
    int tile_width, band_height, columns, rows;
    size_t space;
    char *spaces;
    int64_t *times;  // per thread and operation; null where nobody asks
};

namespace {

// Cuts a segment into columns narrow enough for the cache and bands enough for the threads.
void cut(evs_runner &r, const Segment &s) {
    const Run &run = r.run;
    const int height = run.height / s.stride, width = run.width / s.stride;
    const bool sums = end_of(*run.program, s).kind == Kind::sums;
    const int step = sums ? kSumColumns : 8, threads = r.pool->threads();
    int columns = 1, tile = width;
    while (tile > step && r.model->isa->space(run, s, {0, 1, 0, tile}) > kCache) {
        columns++;
        const int next = (((width + columns - 1) / columns) + step - 1) / step * step;
        if (next < tile) tile = next;
        if (columns > width) break;
    }
    columns = (width + tile - 1) / tile;
    const int unit = sums ? kSumRows : 1;
    int bands = (threads + columns - 1) / columns;
    int band = ((height + bands - 1) / bands + unit - 1) / unit * unit;
    r.segment = &s;
    r.tile_width = tile, r.columns = columns, r.band_height = band, r.rows = (height + band - 1) / band;
    r.space = 0;
    for (int c = 0; c < columns; c++) {
        const int x0 = c * tile, x1 = x0 + tile < width ? x0 + tile : width;
        const size_t space = rounded(r.model->isa->space(run, s, {0, 1, x0, x1}));
        if (space > r.space) r.space = space;
    }
}

// Gives every value, and every set of sums, a place; places are used again when what lies there is not needed any more.
size_t lay_out(evs_runner &r) {
    const Program &p = *r.run.program;
    const int height = r.run.height, width = r.run.width;
    int count = 0;
    Piece *pieces = r.pieces;
    for (int v = 0; v < p.num_values; v++) {
        int from = INT_MAX, to = -1;
        for (int s = 0; s < p.num_segments; s++)
            for (int i = 0; i < p.segments[s].count; i++)
                each_value(p.ops[p.segments[s].first + i], [&](int used, bool) {
                    if (used != v) return;
                    if (s < from) from = s;
                    to = s;
                });
        if (v == p.logits) to = p.num_segments;
        r.offsets[v] = 0;
        if (to >= 0) pieces[count++] = {&r.offsets[v], value_bytes(p, v, height, width), from, to};
    }
    for (int s = 0; s < p.num_segments; s++) {
        const Op &op = end_of(p, p.segments[s]);
        if (op.kind != Kind::sums) continue;
        const int slot = op.value3;
        pieces[count++] = {&r.offsets[kMaxValues + slot], partial_bytes(p.segments[s], op, height, width), s, s};
        pieces[count++] = {&r.offsets[2 * kMaxValues + slot], rounded(sums_floats(op) * sizeof(float)), s, p.num_segments};
    }
    size_t total = 0;
    for (int i = 0; i < count; i++) {  // first fit, in the order of the program
        size_t at = 0;
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

size_t memory_for(evs_runner &r, int height, int width) {
    r.run = {&r.model->program, nullptr, 0, height, width, r.pointers, r.pointers + kMaxValues, r.pointers + 2 * kMaxValues, nullptr};
    const size_t features = lay_out(r);
    size_t space = 0;
    for (int s = 0; s < r.model->program.num_segments; s++) {
        cut(r, r.model->program.segments[s]);
        if (r.space > space) space = r.space;
    }
    return features + space * r.pool->threads();
}

void run_part(void *context, int item, int thread) {
    evs_runner &r = *static_cast<evs_runner *>(context);
    const int stride = r.segment->stride, height = r.run.height / stride, width = r.run.width / stride;
    const int row = item / r.columns, column = item % r.columns;
    Window w{row * r.band_height, (row + 1) * r.band_height, column * r.tile_width, (column + 1) * r.tile_width};
    if (w.y1 > height) w.y1 = height;
    if (w.x1 > width) w.x1 = width;
    Run run = r.run;
    if (r.times != nullptr) run.times = r.times + ptrdiff_t(thread) * run.program->num_ops;
    r.model->isa->run(run, *r.segment, w, reinterpret_cast<float *>(r.spaces + thread * r.space));
}

}  // namespace

extern "C" {

const char *evs_error_text(int code) {
    switch (code) {
        case EVS_OK: return "success";
        case EVS_BAD_PROGRAM: return "the program is damaged, or was made by another version of evitseg";
        case EVS_BAD_SIZE: return "both sides of the image must be multiples of 32, from 32 to 65536 pixels";
        case EVS_NO_MEMORY: return "there is not enough memory";
        case EVS_BAD_ARGUMENT: return "an argument is missing or out of range";
    }
    return "unknown error";
}

const char *evs_instruction_sets(void) {
    static char names[64];
    char made[64] = "";
    for (int i = 0; i < kNumIsas; i++)
        if (kIsas[i]->runs_here()) {
            if (made[0]) strcat(made, " ");
            strcat(made, kIsas[i]->name);
        }
    memcpy(names, made, sizeof names);  // the same bytes every time
    return names;
}

int evs_model_load(const void *bytes, size_t size, const char *isa, evs_model **model) {
    if (model == nullptr) return EVS_BAD_ARGUMENT;
    *model = nullptr;
    const Isa *found = find_isa(isa);
    if (found == nullptr) return EVS_BAD_ARGUMENT;
    evs_model *m = static_cast<evs_model *>(calloc(1, sizeof(evs_model)));
    if (m == nullptr) return EVS_NO_MEMORY;
    m->isa = found;
    const int code = read_program(bytes, size, m->program);
    if (code != EVS_OK) {
        free(m);
        return code;
    }
    *model = m;
    return EVS_OK;
}

void evs_model_free(evs_model *model) {
    if (model == nullptr) return;
    free_program(model->program);
    free(model);
}

int evs_model_classes(const evs_model *model) { return model->program.classes; }
const char *evs_model_isa(const evs_model *model) { return model->isa->name; }

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
    r->process = getpid();
    *runner = r;
    return EVS_OK;
}

void evs_runner_free(evs_runner *r) {
    if (r == nullptr) return;
    if (r->process == getpid()) r->pool->~Pool();
    free(r->pool);
    free(r->memory);
    free(r->times);
    free(r);
}

size_t evs_runner_memory(const evs_runner *runner, int height, int width) {
    if (runner == nullptr || !size_ok(height, width)) return 0;
    return memory_for(*const_cast<evs_runner *>(runner), height, width);
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
    for (int s = 0; s < p.num_segments; s++)
        for (int i = p.segments[s].first; i < p.segments[s].first + p.segments[s].count; i++)
            for (int t = 0; t < r->pool->threads(); t++) {
                const int64_t *times = r->times + ptrdiff_t(t) * p.num_ops;  // each holds the time of its source, too
                nanoseconds[i] += times[i] - (i > p.segments[s].first ? times[i - 1] : 0);
            }
    return EVS_OK;
}

int evs_run(evs_runner *r, const uint8_t *image, int height, int width, size_t row_bytes, float *logits) {
    if (r == nullptr || image == nullptr || logits == nullptr) return EVS_BAD_ARGUMENT;
    if (!size_ok(height, width) || row_bytes < size_t(width) * 3) return EVS_BAD_SIZE;
    if (r->process != getpid()) {
        void *pool = malloc(sizeof(Pool));
        if (pool == nullptr) return EVS_NO_MEMORY;
        r->pool = new (pool) Pool(r->threads);
        r->process = getpid();
    }
    const size_t needed = rounded(memory_for(*r, height, width));
    if (needed > r->bytes) {
        free(r->memory);
        r->memory = static_cast<char *>(aligned_alloc(kLine, needed));
        r->bytes = r->memory != nullptr ? needed : 0;
        if (r->memory == nullptr) return EVS_NO_MEMORY;
    }
    const Program &p = r->model->program;
    const size_t features = lay_out(*r);
    for (int i = 0; i < 3 * kMaxValues; i++) r->pointers[i] = reinterpret_cast<float *>(r->memory + r->offsets[i]);
    r->spaces = r->memory + features;
    r->run.image = image, r->run.row_bytes = ptrdiff_t(row_bytes);
    for (int s = 0; s < p.num_segments; s++) {
        cut(*r, p.segments[s]);
        r->pool->run(r->rows * r->columns, run_part, r);
        if (end_of(p, p.segments[s]).kind == Kind::sums) r->model->isa->reduce(r->run, p.segments[s]);
    }
    // From blocks of channels to planes.
    const int h = height / 8, w = width / 8, blocks = blocks_of(p.classes);
    const float *from = r->pointers[p.logits];
    for (int y = 0; y < h; y++)
        for (int c = 0; c < p.classes; c++) {
            const float *in = from + (ptrdiff_t(y) * blocks + c / kBlock) * w * kBlock + c % kBlock;
            float *out = logits + (ptrdiff_t(c) * h + y) * w;
            for (int x = 0; x < w; x++) out[x] = in[ptrdiff_t(x) * kBlock];
        }
    return EVS_OK;
}

}  // extern "C"
