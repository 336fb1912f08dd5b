// Resizes images bilinearly, with the bytes of Pillow's Image.resize: across, then down, each a sum of 8-bit pixels with
// fixed-point weights that is rounded to 8 bits. Compiled once per instruction set.
//
// The result is made in tiles of a few hundred columns. For each row of the image that a tile needs, the pixels that its
// new pixels cover are copied side by side, so that the sums run over whole vectors. Only the rows that one new row covers
// are kept.
#include "resize.h"

#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "ops/vector.h"

namespace evs::EVS_ISA {
namespace {

constexpr int kFraction = 22;  // bits of a weight
constexpr int kRgb = 3;
constexpr int kTile = 512;               // new pixels across, at most
constexpr int kLeastTile = 16;
constexpr int kTileWeights = 512 * 8;    // of a tile, per channel: so that they stay in the cache
constexpr int kNumbers = EVS_BYTES / 4;  // in a vector
constexpr int kGroupBytes = 4 * kNumbers;  // a vector of pixels, which gives four vectors of numbers
constexpr int kLongRun = 16;             // pixels, from which on a copy of many is faster than one of each

typedef uint32_t U __attribute__((vector_size(EVS_BYTES), aligned(1), may_alias));

// The pixels of the image that pixel i of the result is a mean of: first to last - 1. A triangle of weights falls to zero
// `reach` pixels from its centre, which lies `center` pixels from the border. Pillow's arithmetic, to the bit.
struct Covered {
    double center, reach;
    int first, last;

    Covered(const evs_resized &side, int i) {
        const double scale = double(side.from) / side.to;
        center = (i + 0.5) * scale;
        reach = scale > 1 ? scale : scale < 1 ? 1 : 0.5;  // of the same size: each pixel alone
        first = int(center - reach + 0.5), last = int(center + reach + 0.5);
        if (first < 0) first = 0;
        if (last > side.from) last = side.from;
    }
};

// The weights along one side. Pixel i of the result is the sum of `count` pixels of the source from `first` on.
struct Taps {
    int first, count;
};

struct Weights {
    Taps *taps = nullptr;
    uint32_t *weights = nullptr;  // `most` per pixel
    int most = 1;
    ~Weights() {
        free(taps);
        free(weights);
    }
};

// Returns: an EVS_ code.
int make_weights(const evs_resized &side, Weights &w) {
    for (int i = 0; i < side.count; i++) {
        const Covered covered(side, side.first + i);
        if (covered.first < side.source_first || covered.last - side.source_first > side.source_count) return EVS_BAD_ARGUMENT;
        if (covered.last - covered.first > w.most) w.most = covered.last - covered.first;
    }
    w.taps = static_cast<Taps *>(malloc(size_t(side.count) * sizeof(Taps)));
    w.weights = static_cast<uint32_t *>(calloc(size_t(side.count) * size_t(w.most), sizeof(uint32_t)));
    if (w.taps == nullptr || w.weights == nullptr) return EVS_NO_MEMORY;
    int used = 1;
    for (int i = 0; i < side.count; i++) {
        const Covered c(side, side.first + i);
        const double per_pixel = 1 / c.reach;
        auto weight = [&](int pixel) {
            const double distance = (pixel - c.center + 0.5) * per_pixel, x = distance < 0 ? -distance : distance;
            return x < 1 ? 1 - x : 0;
        };
        double total = 0;
        for (int pixel = c.first; pixel < c.last; pixel++) total += weight(pixel);
        uint32_t *to = w.weights + ptrdiff_t(i) * w.most;
        Taps &taps = w.taps[i] = {c.first - side.source_first, 0};
        int count = 0;
        for (int pixel = c.first; pixel < c.last; pixel++) {
            const uint32_t fixed = uint32_t(0.5 + weight(pixel) / total * (1 << kFraction));
            if (fixed == 0 && count == 0) {  // those at the ends whose weight is rounded to 0 need not be read
                taps.first++;
                continue;
            }
            to[count++] = fixed;
            if (fixed != 0) taps.count = count;
        }
        if (taps.count > used) used = taps.count;
    }
    for (int i = 1; i < side.count; i++)  // closer together: nearly all have a pixel less than the most
        memmove(w.weights + ptrdiff_t(i) * used, w.weights + ptrdiff_t(i) * w.most, size_t(used) * sizeof(uint32_t));
    w.most = used;
    return EVS_OK;
}

// Moves the taps of the last pixels left, with weights of 0 before the others, so that every pixel can take `most` pixels.
void keep_inside(Weights &w, int count, int width) {
    for (int i = 0; i < count; i++) {
        const int over = w.taps[i].first + w.most - width;
        if (over <= 0) continue;
        uint32_t *weights = w.weights + ptrdiff_t(i) * w.most;
        memmove(weights + over, weights, size_t(w.most - over) * sizeof(uint32_t));
        memset(weights, 0, size_t(over) * sizeof(uint32_t));
        w.taps[i].first -= over;
    }
}

// kGroupBytes weighted sums, as bytes again. weight(tap, number) are those of every fourth byte from `number` on.
template <typename Row, typename Weight>
EVS_INLINE void weighted(int taps, Row row, Weight weight, uint8_t *out) {
    constexpr uint32_t half = 1u << (kFraction - 1);
    U sums[4] = {U{} + half, U{} + half, U{} + half, U{} + half};
    for (int t = 0; t < taps; t++) {
        const U pixels = *reinterpret_cast<const U *>(row(t));
        EVS_UNROLL
        for (int n = 0; n < 4; n++) sums[n] += (pixels >> (8 * n) & 255) * weight(t, n);
    }
    U bytes{};
    EVS_UNROLL
    for (int n = 0; n < 4; n++) {
        const U rounded = sums[n] >> kFraction;
        bytes |= (rounded < 255 ? rounded : U{} + 255) << (8 * n);  // many weights, all rounded up, could give more
    }
    *reinterpret_cast<U *>(out) = bytes;
}

// New pixels that take pixels as far to the right of each other as they are.
struct Run {
    int first, count;  // pixels of the tile
};

// A tile: new pixels x0 to x1 - 1 of all rows, and memory for it.
struct Tile {
    int x0, x1, groups;
    const Weights *across;
    int width;           // pixels of the image's rows
    int num_runs;        // 0 if they are too short
    Run *runs;
    uint32_t *weights;   // of each tap and group, four vectors
    uint8_t *covered;    // of each tap, a row
    ptrdiff_t row_bytes;
};

void begin_tile(Tile &tile) {
    const Weights &w = *tile.across;
    const int pixels = tile.x1 - tile.x0;
    tile.groups = (pixels * kRgb + kGroupBytes - 1) / kGroupBytes;
    int n = 0;
    for (int x = 0; x < pixels && n * kLongRun <= pixels; x++) {
        const Taps *taps = w.taps + tile.x0 + x;
        if (x > 0 && taps[0].first == taps[-1].first + 1) {
            tile.runs[n - 1].count++;
        } else {
            tile.runs[n++] = {x, 1};
        }
    }
    tile.num_runs = n * kLongRun <= pixels ? n : 0;
    for (int t = 0; t < w.most; t++) {
        uint32_t *to = tile.weights + ptrdiff_t(t) * tile.groups * kGroupBytes;
        for (int i = 0; i < tile.groups * kGroupBytes; i++) {
            const int byte = i % kGroupBytes, pixel = tile.x0 + i / kRgb;
            to[i - byte + byte % 4 * kNumbers + byte / 4] = pixel < tile.x1 ? w.weights[ptrdiff_t(pixel) * w.most + t] : 0;
        }
    }
}

// Copies, for every new pixel of a tile, the pixel of a row that tap t takes.
void take(const Tile &tile, const uint8_t *row, int t, uint8_t *to) {
    const Taps *taps = tile.across->taps + tile.x0;
    row += ptrdiff_t(t) * kRgb;
    for (int i = 0; i < tile.num_runs; i++) {
        const Run &run = tile.runs[i];
        memcpy(to + ptrdiff_t(run.first) * kRgb, row + ptrdiff_t(taps[run.first].first) * kRgb, size_t(run.count) * kRgb);
    }
    if (tile.num_runs > 0) return;
    int x = 0;
    const int end = tile.x1 - tile.x0, last = tile.width - 1 - t;
    for (; x < end && taps[x].first < last; x++)  // with one byte too many, which the next one overwrites
        memcpy(to + ptrdiff_t(x) * kRgb, row + ptrdiff_t(taps[x].first) * kRgb, 4);
    for (; x < end; x++) memcpy(to + ptrdiff_t(x) * kRgb, row + ptrdiff_t(taps[x].first) * kRgb, kRgb);
}

// A row of the image, resized across.
void resize_row(const Tile &tile, const uint8_t *row, uint8_t *out) {
    const int most = tile.across->most;
    if (most == 1) return take(tile, row, 0, out);  // the weight is 1
    for (int t = 0; t < most; t++) take(tile, row, t, tile.covered + t * tile.row_bytes);
    const ptrdiff_t weights_of_tap = ptrdiff_t(tile.groups) * kGroupBytes;
    for (int g = 0; g < tile.groups; g++)
        weighted(
            most, [&](int t) { return tile.covered + t * tile.row_bytes + g * kGroupBytes; },
            [&](int t, int n) {
                return *reinterpret_cast<const U *>(tile.weights + t * weights_of_tap + g * kGroupBytes + n * kNumbers);
            },
            out + g * kGroupBytes);
}

}  // namespace

void resize_source(evs_resized &side) {
    side.source_first = Covered(side, side.first).first;
    side.source_count = Covered(side, side.first + side.count - 1).last - side.source_first;
}

int resize(const ResizeJob &job) {
    Weights across, down;
    int code = make_weights(job.across, across);
    if (code == EVS_OK) code = make_weights(job.down, down);
    if (code != EVS_OK) return code;
    keep_inside(across, job.across.count, job.across.source_count);
    int columns = kTileWeights / across.most / kLeastTile * kLeastTile;
    columns = columns < kLeastTile ? kLeastTile : columns > kTile ? kTile : columns;
    const size_t row_bytes = size_t(columns) * kRgb + kGroupBytes + 4, weights = size_t(columns) * kRgb + kGroupBytes;
    struct Memory {
        uint8_t *rows, *covered;
        uint32_t *weights;
        Run *runs;
        int *held;  // the row of the image in each place
        const uint8_t **from;
        ~Memory() { free(rows), free(covered), free(weights), free(runs), free(held), free(from); }
    } memory{
        static_cast<uint8_t *>(calloc(size_t(down.most), row_bytes)),
        static_cast<uint8_t *>(calloc(size_t(across.most), row_bytes)),
        static_cast<uint32_t *>(calloc(size_t(across.most), weights * sizeof(uint32_t))),
        static_cast<Run *>(calloc(size_t(columns), sizeof(Run))),
        static_cast<int *>(calloc(size_t(down.most), sizeof(int))),
        static_cast<const uint8_t **>(calloc(size_t(down.most), sizeof(uint8_t *))),
    };
    if (!memory.rows || !memory.covered || !memory.weights || !memory.runs || !memory.held || !memory.from) return EVS_NO_MEMORY;

    const ptrdiff_t out_bytes = ptrdiff_t(job.across.count) * kRgb;
    for (int x0 = 0; x0 < job.across.count; x0 += columns) {
        const int x1 = x0 + columns < job.across.count ? x0 + columns : job.across.count;
        Tile tile{x0, x1, 0, &across, job.across.source_count, 0, memory.runs, memory.weights, memory.covered, ptrdiff_t(row_bytes)};
        begin_tile(tile);
        for (int i = 0; i < down.most; i++) memory.held[i] = -1;
        for (int y = 0; y < job.down.count; y++) {
            const Taps taps = down.taps[y];
            for (int t = 0; t < taps.count; t++) {
                const int row = taps.first + t, place = row % down.most;
                uint8_t *to = memory.rows + ptrdiff_t(place) * tile.row_bytes;
                if (memory.held[place] != row) resize_row(tile, job.image + ptrdiff_t(row) * ptrdiff_t(job.row_bytes), to);
                memory.held[place] = row;
                memory.from[t] = to;
            }
            uint8_t *out = job.out + y * out_bytes + ptrdiff_t(x0) * kRgb;
            const ptrdiff_t values = ptrdiff_t(x1 - x0) * kRgb;
            if (taps.count == 1) {  // the weight is 1
                memcpy(out, memory.from[0], size_t(values));
                continue;
            }
            const uint32_t *w = down.weights + ptrdiff_t(y) * down.most;
            for (ptrdiff_t i = 0; i < values; i += kGroupBytes) {
                uint8_t last[kGroupBytes];
                const bool whole = i + kGroupBytes <= values;
                weighted(taps.count, [&](int t) { return memory.from[t] + i; }, [&](int t, int) { return w[t]; }, whole ? out + i : last);
                if (!whole) memcpy(out + i, last, size_t(values - i));
            }
        }
    }
    return EVS_OK;
}

}  // namespace evs::EVS_ISA
