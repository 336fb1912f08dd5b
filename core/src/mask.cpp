// Makes a mask from logits, in bands of rows for the threads. Compiled once per instruction set.
#include "mask.h"

#include <stdlib.h>

#include "chain.h"
#include "ops/mask.h"

namespace evs::EVS_ISA {
namespace {

constexpr int kBandsPerThread = 4;  // boundaries are not spread evenly over an image
constexpr int kSmallestBand = 4;    // rows of cells: a band computes the winners of one row that its neighbour computes, too

// The pixels along one side that lie between two neighbouring logits, which are one where the border repeats it.
struct Cell {
    int low, high;  // logits
    int start, count;  // pixels
};

struct Axis {
    Cell *cells = nullptr;
    int count = 0;
    float *fractions = nullptr;  // per pixel, the weight of its cell's logit `high`
    int most = 0;                // pixels in a cell
    ~Axis() {
        free(cells);
        free(fractions);
    }
};

int clamp(int x, int high) { return x < 0 ? 0 : x > high ? high : x; }

// Half-pixel centres. Returns: an EVS_ code.
int make_axis(const evs_side &s, Axis &axis) {
    const size_t most_cells = size_t(s.pixels < s.logits ? s.pixels : s.logits) + 1;
    axis.cells = static_cast<Cell *>(malloc(most_cells * sizeof(Cell)));
    axis.fractions = static_cast<float *>(calloc(size_t(s.pixels) + kCellLanes, sizeof(float)));
    if (axis.cells == nullptr || axis.fractions == nullptr) return EVS_NO_MEMORY;
    const double per_pixel = double(s.all_logits) / s.all_pixels;
    int last = -2;
    for (int i = 0; i < s.pixels; i++) {
        const double position = (s.first_pixel + i + 0.5) * per_pixel - 0.5;
        const int number = int(position + 1) - 1;  // floor, for position >= -1
        const int below = number > position ? number - 1 : number;  // position + 1 may have been rounded up
        axis.fractions[i] = float(position - below);
        if (below != last || i == 0) {
            const int low = clamp(below, s.all_logits - 1) - s.first_logit;
            const int high = clamp(below + 1, s.all_logits - 1) - s.first_logit;
            if (low < 0 || high >= s.logits) return EVS_BAD_ARGUMENT;
            axis.cells[axis.count++] = {low, high, i, 0};
            last = below;
        }
        Cell &cell = axis.cells[axis.count - 1];
        if (++cell.count > axis.most) axis.most = cell.count;
    }
    return EVS_OK;
}

struct Work {
    const MaskJob *job;
    Axis down, across;
    int band;  // rows of cells
    char *memory = nullptr;
    size_t winner_bytes, thread_bytes;
    ~Work() { free(memory); }
};

void fill(uint8_t *to, int number, int count) { memset(to, number, size_t(count)); }
void fill(uint16_t *to, int number, int count) {
    for (int i = 0; i < count; i++) to[i] = uint16_t(number);
}

template <typename Class>
void mask_band(void *context, int item, int thread) {
    const Work &work = *static_cast<const Work *>(context);
    const MaskJob &job = *work.job;
    const int w = job.across.logits, width = job.across.pixels;
    const ptrdiff_t plane = ptrdiff_t(job.down.logits) * w;
    char *memory = work.memory + thread * work.thread_bytes;
    uint16_t *slots[2] = {reinterpret_cast<uint16_t *>(memory), reinterpret_cast<uint16_t *>(memory + work.winner_bytes)};
    int have[2] = {-1, -1};
    Candidate *candidates = reinterpret_cast<Candidate *>(memory + 2 * work.winner_bytes);
    auto winners_at = [&](int y) {
        if (have[y % 2] != y) winners(job.logits + ptrdiff_t(y) * w, plane, job.classes, w, slots[y % 2]);
        have[y % 2] = y;
        return slots[y % 2];
    };

    const int first = item * work.band;
    const int last = first + work.band < work.down.count ? first + work.band : work.down.count;
    for (int r = first; r < last; r++) {
        const Cell &row = work.down.cells[r];
        const uint16_t *top = winners_at(row.low), *bottom = winners_at(row.high);
        Class *mask = static_cast<Class *>(job.mask) + ptrdiff_t(row.start) * width;
        // One row of pixels, filled with the winners, and copies of it.
        for (int c = 0; c < work.across.count;) {
            const Cell &begin = work.across.cells[c];
            const int number = top[begin.low];
            int end = begin.start + begin.count;
            for (c++; c < work.across.count && top[work.across.cells[c].low] == number; c++) end += work.across.cells[c].count;
            fill(mask + begin.start, number, end - begin.start);
        }
        for (int y = 1; y < row.count; y++) memcpy(mask + ptrdiff_t(y) * width, mask, size_t(width) * sizeof(Class));
        const float *upper = job.logits + ptrdiff_t(row.low) * w, *lower = job.logits + ptrdiff_t(row.high) * w;
        for (int c = 0; c < work.across.count; c++) {
            const Cell &cell = work.across.cells[c];
            const int number = top[cell.low];
            if (number == top[cell.high] && number == bottom[cell.low] && number == bottom[cell.high]) continue;
            const int count = find_candidates(upper, lower, cell.low, cell.high, plane, job.classes, candidates);
            if (count > 0)  // none, if a logit is not a number
                fill_cell(candidates, count, work.down.fractions + row.start, row.count, work.across.fractions + cell.start,
                          cell.count, mask + cell.start, width);
        }
    }
}

size_t in_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

int make_mask(const MaskJob &job, Pool *pool) {
    Work work;
    work.job = &job;
    int code = make_axis(job.down, work.down);
    if (code == EVS_OK) code = make_axis(job.across, work.across);
    if (code != EVS_OK) return code;
    const int threads = pool != nullptr ? pool->threads() : 1;
    work.winner_bytes = in_lines(size_t(job.across.logits) * sizeof(uint16_t));
    work.thread_bytes = 2 * work.winner_bytes + in_lines((size_t(job.classes) + 1) * sizeof(Candidate));
    work.memory = static_cast<char *>(malloc(work.thread_bytes * size_t(threads)));
    if (work.memory == nullptr) return EVS_NO_MEMORY;
    const int bands = threads > 1 ? threads * kBandsPerThread : 1;
    work.band = (work.down.count + bands - 1) / bands;
    if (work.band < kSmallestBand) work.band = kSmallestBand;
    const int items = (work.down.count + work.band - 1) / work.band;
    const Pool::Task task = job.classes <= kMostInByte ? mask_band<uint8_t> : mask_band<uint16_t>;
    if (pool != nullptr) {
        pool->run(items, task, &work);
    } else {
        for (int i = 0; i < items; i++) task(&work, i, 0);
    }
    return EVS_OK;
}

}  // namespace evs::EVS_ISA
