// What the parts compiled for each instruction set offer to the rest.
#pragma once
#include "../include/evitseg.h"
#include "program.h"

namespace evs {

struct MaskJob;
struct ResizeJob;
class Pool;

// A part of a segment: rows and columns of its end, in its own pixels.
struct Window {
    int y0, y1, x0, x1;
    int height() const { return y1 - y0; }
    int width() const { return x1 - x0; }
};

// One run: the image and where the feature maps lie.
struct Run {
    const Program *program;
    const uint8_t *image;
    ptrdiff_t row_bytes;
    int height, width;       // pixels
    const uint8_t *image_row(int y) const { return rows != nullptr ? rows[y - first_row] : image + y * row_bytes; }
    void *const *values;     // per value: rows of blocks x width pixels
    float *const *partials;  // per value used as a sums slot: one set of sums per block of tokens
    float *const *sums;      // the same, added up
    int64_t *times;          // per operation, in nanoseconds, of the calling thread; null where nobody asks
    Window area;             // of the segment that runs; sums are taken over its tokens
    const uint8_t *const *rows;  // of the image, from first_row on, where they do not lie at one distance; else null
    int first_row;
    bool in_windows;         // queries are computed anew where they are needed, instead of being stored
    const uint8_t *valid;    // per token of the area: 0 leaves it out of the sums; null takes all
    bool given;              // the sums are known, so keys and values are not computed
};

// Bytes of working memory, and those of them that are used so often that they should stay in a cache. Planned sizes have
// 64 bits everywhere: a size that is too large for WebAssembly's 32 must be refused, not cut off.
struct Space {
    uint64_t bytes, cached;
};

// Tokens whose sums are added one after the other; parts of a segment never cut through such a block.
constexpr int kSumRows = 4, kSumColumns = 64;

// Steps from a classifier's sums to its scores; each needs all results of the one before.
enum class ScoreStep { features, norm, classes };

// Where the results of the steps lie: behind the sums, which become the means.
inline float *features_of(const Run &run, const Op &op) { return run.sums[op.value3] + padded(op.in, kPacked); }
inline float *scores_of(const Run &run, const Op &op) { return features_of(run, op) + padded(op.mid, kPacked); }

// Bytes after the last row that may be read, and are then dropped: a tile register takes 16 pixels, whatever their number.
constexpr size_t kOverread = 4096;

struct Isa {
    const char *name;
    int precision;  // EVS_FLOAT32 ...
    int block;      // channels are stored in blocks of this many
    int bytes;      // of a number
    bool (*runs_here)();
    // Rearranges the weights of a checked program for this instruction set. Returns: false if memory runs out, or if the
    // program cannot be run with it.
    bool (*prepare)(Program &);
    // Working memory for a window.
    Space (*space)(const Run &, const Segment &, Window);
    void (*run)(const Run &, const Segment &, Window, char *space);  // adds to run.times
    // Computes kPacked outputs of one step from a classifier's sums to its scores. The scores begin at
    // scores_of(run, op).
    void (*score)(const Run &, const Op &, ScoreStep, int block);
    // Row y of the logits, columns x0 to x1 - 1, from blocks of channels to floats; those of the next class are `plane`
    // floats behind. Returns: whether all are finite.
    bool (*give)(const Run &, int y, int x0, int x1, float *logits, ptrdiff_t plane);
    // Makes a mask (see mask.h), on the caller's thread only if there is no pool. Returns an EVS_ code.
    int (*make_mask)(const MaskJob &, Pool *);
    // Resizing (see resize.h): the pixels that a window depends on; the window, with an EVS_ code.
    void (*resize_source)(evs_resized &);
    int (*resize)(const ResizeJob &);
    // Multiply-adds per second of one thread, on registers alone.
    double (*peak)();
};

}  // namespace evs
