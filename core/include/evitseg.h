/* evitseg: a small engine for one family of networks, EfficientViT for semantic segmentation.
 *
 * A program (bytes made by evitseg/runtime/program.py) describes a network as segments of operations and holds its
 * weights. The engine runs it on 8-bit RGB images whose sides are multiples of 32, and returns logits at an eighth of the
 * height and width. A classifier gives one score per class instead.
 *
 * Rules that hold for every function:
 *   - No function throws, prints, exits or keeps global state. Errors come back as codes; evs_error_text explains them.
 *   - Sizes are in pixels, rows before columns. Memory is in bytes.
 *   - A model is read-only after loading: several threads may run it at once, each with a runner of its own.
 *   - The caller owns every buffer it passes in. What evs_*_load/new returns is freed by evs_*_free.
 */
#ifndef EVITSEG_H
#define EVITSEG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if !defined(_WIN32)
#define EVS_API __attribute__((visibility("default")))
#elif defined(EVS_BUILD) /* while the library itself is compiled */
#define EVS_API __declspec(dllexport)
#else
#define EVS_API
#endif

/* Error codes; 0 is success. */
enum {
    EVS_OK = 0,
    EVS_BAD_PROGRAM = 1, /* damaged, truncated, or made by another version */
    EVS_BAD_SIZE = 2,    /* an image side is no multiple of 32, or too large */
    EVS_NO_MEMORY = 3,
    EVS_BAD_ARGUMENT = 4,
    EVS_NOT_FINITE = 5 /* a logit is infinite or NaN; the largest float16 is 65504 */
};

/* Precisions of features and weights. The logits are always float32. */
enum {
    EVS_FLOAT32 = 0, /* the same bytes on every processor with fused multiply-add */
    EVS_FLOAT16 = 1, /* up to twice as fast, if the processor computes in it; the bytes depend on the instruction set */
    EVS_BFLOAT16 = 2 /* bfloat16 products added in float32, if the processor has them; bytes as for float16 */
};

typedef struct evs_model evs_model;
typedef struct evs_runner evs_runner;

/* One English sentence for a code, without its full stop; never NULL. */
EVS_API const char *evs_error_text(int code);

/* The instruction sets for a precision that are compiled in and that this processor supports, best first, separated by
 * spaces ("avx512 avx2 sse4"); "" if there is none. */
EVS_API const char *evs_instruction_sets(int precision);

/* Reads a program, or a model file as `evitseg export --to native` writes it (a manifest, then a program). The bytes need
 * not be trusted: damaged ones give EVS_BAD_PROGRAM. They are copied and may be freed afterwards. isa names one of
 * evs_instruction_sets(precision); NULL takes the best. On success *model is set and must be freed with evs_model_free. */
EVS_API int evs_model_load(const void *bytes, size_t size, int precision, const char *isa, evs_model **model);
EVS_API void evs_model_free(evs_model *model);

/* Number of classes: channels of the logits, or scores of a classifier. */
EVS_API int evs_model_classes(const evs_model *model);
/* Whether the program gives one score per class for the whole image, instead of logits. */
EVS_API int evs_model_is_classifier(const evs_model *model);
/* Name of the instruction set the model runs with. */
EVS_API const char *evs_model_isa(const evs_model *model);
/* The manifest of a model file, as JSON in UTF-8 with a 0 at its end: names and colours of the classes (labels.classes),
 * the size at which images go through the network (preprocess), and where the model comes from. "" for a program without
 * a manifest. The text belongs to the model. */
EVS_API const char *evs_model_manifest(const evs_model *model);

/* A runner holds the threads and the memory of one run. Only one thread may use it at a time. Its threads sleep between
 * runs. `threads` counts the caller's own thread: 1 starts none. */
EVS_API int evs_runner_new(const evs_model *model, int threads, evs_runner **runner);
EVS_API void evs_runner_free(evs_runner *runner);

/* Bytes that a run at this size needs in addition to the model, the image and the logits; 0 for an unsupported size. */
EVS_API size_t evs_runner_memory(const evs_runner *runner, int height, int width);

/* Starts (wanted != 0) or stops measuring the time of every operation, summed over all further runs and threads. */
EVS_API int evs_runner_profile(evs_runner *runner, int wanted);
/* The times so far of the program's operations, in their order, in nanoseconds; count must be their number. */
EVS_API int evs_runner_times(const evs_runner *runner, int64_t *nanoseconds, int count);

/* This machine's peak: multiply-adds per second that the calling thread reaches on registers alone, with the instruction
 * of the model's instruction set that dense convolutions use. Takes 40 ms. For the peak of several threads, call it in all
 * of them at once and add the results. */
EVS_API double evs_peak(const evs_model *model);

/* Runs the whole network.
 *   image: height rows of width RGB pixels of 3 bytes; rows are row_bytes apart.
 *   logits: (classes, height / 8, width / 8) float32, or (classes) for a classifier; written by the call. */
EVS_API int evs_run(evs_runner *runner, const uint8_t *image, int height, int width, size_t row_bytes, float *logits);

/* The same with the attention sums given: of every segment that has some, one after the other. So a part of a larger image,
 * cut out at multiples of 32 pixels with enough of its surroundings, gets the logits that it has in the whole image. */
EVS_API int evs_run_given(evs_runner *runner, const uint8_t *image, int height, int width, size_t row_bytes, const float *sums,
                          float *logits);

/* Images too large for one run. A network is a list of segments. Some end with sums over all tokens of the image, with
 * which a later one begins, the last one with logits. Between segments, feature maps (values) wait wherever the caller
 * keeps them. A segment runs in windows, one after the other, in any order; rows and columns are those of its end. Windows
 * as wide as the image that begin at multiples of EVS_SUM_ROWS give the bits of a whole run: for each EVS_SUM_ROWS rows
 * they return one set of sums, and evs_add_sums makes the image's sums of all of these in order. */
enum { EVS_SUM_ROWS = 4 };

typedef struct {
    int stride;     /* image pixels per row and column of its end */
    int sums;       /* floats of one set of sums that it ends with; 0 if it ends with none */
    int given_sums; /* floats of the sums that it begins with, those of the last segment before that has some; or 0 */
    double work;    /* about how many multiply-adds it takes per image pixel */
} evs_segment;

typedef struct {
    int stride;         /* image pixels per row and column */
    size_t pixel_bytes; /* bytes of a pixel; a row is width / stride pixels, without gaps */
} evs_value;

typedef struct {
    int first, last; /* rows first to last - 1; none if both are equal */
} evs_rows;

typedef struct {
    void *rows;    /* aligned to 64 bytes; 4096 bytes behind the last row must be readable, too */
    int first_row; /* the row of the value that lies there */
} evs_stored;

/* What a window reads and writes. evs_segment_rows tells which rows of the image and of the values that is. */
typedef struct {
    int height, width;    /* of the whole image, multiples of 32 */
    int y0, y1, x0, x1;   /* rows y0 to y1 - 1 and columns x0 to x1 - 1 of the segment's end */
    const uint8_t *const *image; /* for the first segment: where each row of the whole image's width lies, from */
    int first_row;               /* first_row on */
    evs_stored *values;   /* of all values, in their order; rows of the whole image's width */
    const uint8_t *valid; /* (y1 - y0, x1 - x0): 0 for tokens that the sums leave out; NULL for none */
    const float *sums;    /* the given sums */
    float *out;           /* written: a set of sums for each EVS_SUM_ROWS rows, or the last segment's logits
                           * (classes, y1 - y0, x1 - x0); NULL for others */
} evs_window;

/* Numbers of segments and values of a model; what is known about one. */
EVS_API int evs_model_segments(const evs_model *model);
EVS_API int evs_model_segment(const evs_model *model, int segment, evs_segment *about);
EVS_API int evs_model_values(const evs_model *model);
EVS_API int evs_model_value(const evs_model *model, int value, evs_value *about);
/* The rows of a value (-1: of the image) that rows y0 to y1 - 1 of a segment read, and those that they write. */
EVS_API int evs_segment_rows(const evs_model *model, int segment, int value, int height, int y0, int y1, evs_rows *read,
                             evs_rows *written);
/* Bytes that the runner needs for a window, in addition to what the caller holds; 0 for an unsupported one. */
EVS_API size_t evs_window_memory(evs_runner *runner, int segment, int height, int width, int y0, int y1, int x0, int x1);
EVS_API int evs_run_window(evs_runner *runner, int segment, const evs_window *window);
/* Adds `count` sets of `size` floats, which lie one after the other, in a fixed tree. The first set becomes the total; the
 * others are changed. */
EVS_API int evs_add_sums(float *sums, size_t count, size_t size);

/* One side of a mask, its height or its width: {logits, pixels} for a whole image. The other numbers place a window in a
 * larger image, so that the mask does not depend on where the window was cut; all are 0 for a whole image. */
typedef struct {
    int logits, pixels;           /* how many there are along this side */
    int all_logits, all_pixels;   /* how many there are along the same side of the whole image */
    int first_logit, first_pixel; /* where the window begins in the whole image */
} evs_side;

/* The class of every pixel: the one with the largest logit after bilinear up-sampling (half-pixel centres, the border
 * repeated); among equal logits the first. The result is exact, and the same for any number of threads and every
 * instruction set.
 *   runner: its threads take part; NULL uses only the caller's.
 *   logits: (classes, down->logits, across->logits) float32, finite, from any model with up to 65535 classes. For a
 *     window, they must include every logit that its pixels lie between, otherwise EVS_BAD_ARGUMENT.
 *   mask: (down->pixels, across->pixels) class indices, written by the call: uint8_t for up to 255 classes, else
 *     uint16_t. The pixels may be more or fewer than the logits. */
EVS_API int evs_mask(evs_runner *runner, const float *logits, int classes, const evs_side *down, const evs_side *across,
                     void *mask);

/* One side of an image that is resized, its height or its width, with a window of the result along it. */
typedef struct {
    int from, to;                   /* pixels along this side of the whole image, before and after; at most 2^24 */
    int first, count;               /* the window: pixels of the result */
    int source_first, source_count; /* pixels of the image that are there; at least those that the window depends on */
} evs_resized;

/* Sets source_first and source_count to the pixels of the image that the window depends on. */
EVS_API int evs_resize_source(evs_resized *side);

/* Resizes RGB images as Pillow's Image.resize with BILINEAR does, first across, then down: the same bytes, for every
 * window, size and instruction set. Each new pixel is a weighted mean of those that it covers.
 *   image: down->source_count rows of across->source_count pixels of 3 bytes; rows are row_bytes apart.
 *   isa: one of evs_instruction_sets(EVS_FLOAT32); NULL takes the best.
 *   out: (down->count, across->count) pixels, without gaps between the rows; written by the call. */
EVS_API int evs_resize(const uint8_t *image, size_t row_bytes, const evs_resized *down, const evs_resized *across, const char *isa,
                       uint8_t *out);

/* The largest number of bytes that evs_png_rows writes for so many rows of so many bytes. */
EVS_API size_t evs_png_bound(int rows, size_t row_bytes);

/* Compresses rows of a mask for a PNG file, by the runs of equal pixels in them. All rows at once, or the results of
 * several calls for successive rows one after the other, are the content of the file's IDAT chunks.
 *   pixels: rows of row_bytes bytes, without gaps; pixels of 1 byte, or of 2, the higher one first.
 *   above: the row above the first one; NULL if that is the first of the image.
 *   last: whether the last row is the last of the image.
 *   adler: the checksum so far, from one call to the next; read unless above is NULL, and written by the call.
 *   out: evs_png_bound(rows, row_bytes) bytes; *size says how many of them the call has written. */
EVS_API int evs_png_rows(const uint8_t *pixels, int rows, size_t row_bytes, int pixel_bytes, const uint8_t *above, int last,
                         uint32_t *adler, uint8_t *out, size_t *size);

/* Adds to counts[c], for every class c of 256, the number of its pixels in a mask. */
EVS_API void evs_count_classes(const uint8_t *mask, size_t pixels, uint64_t *counts);

#ifdef __cplusplus
}
#endif
#endif
