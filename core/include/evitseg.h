/* evitseg: a small engine for one family of networks, EfficientViT for semantic segmentation.
 *
 * A program (bytes made by evitseg/runtime/program.py) describes a network as segments of operations and holds its
 * weights. The engine runs it on 8-bit RGB images of any size that 32 divides and returns logits at an eighth of it, or, of
 * a classifier, one score per class.
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
    EVS_BAD_SIZE = 2,    /* an image side that 32 does not divide, or that is too large */
    EVS_NO_MEMORY = 3,
    EVS_BAD_ARGUMENT = 4,
    EVS_NOT_FINITE = 5 /* a logit is infinite or no number: float16 holds numbers up to 65504 */
};

/* Precisions of features and weights. The logits are float32 in both. */
enum {
    EVS_FLOAT32 = 0, /* the same bytes on every processor with fused multiply-add */
    EVS_FLOAT16 = 1, /* about twice as fast, where the processor computes with it; the same bytes within an instruction set */
    EVS_BFLOAT16 = 2 /* products of bfloat16 in float32, where the processor has these; as above */
};

typedef struct evs_model evs_model;
typedef struct evs_runner evs_runner;

/* One English sentence for a code, without its full stop; never NULL. */
EVS_API const char *evs_error_text(int code);

/* The instruction sets for a precision that are compiled in and that this processor runs, best first, separated by blanks
 * ("avx512 avx2 sse4"); "" if there is none. */
EVS_API const char *evs_instruction_sets(int precision);

/* Reads a program, or a model file: what `evitseg export --to native` writes, which is a program after a manifest. The
 * bytes may come from anywhere; damaged ones give EVS_BAD_PROGRAM. They are copied and may be freed afterwards. isa names
 * one of evs_instruction_sets(precision), NULL takes the best. On success *model is set and must be freed with evs_model_free. */
EVS_API int evs_model_load(const void *bytes, size_t size, int precision, const char *isa, evs_model **model);
EVS_API void evs_model_free(evs_model *model);

/* Number of classes: channels of the logits, or scores of a classifier. */
EVS_API int evs_model_classes(const evs_model *model);
/* Whether the program gives a score for every class, of the whole image, instead of logits. */
EVS_API int evs_model_is_classifier(const evs_model *model);
/* Name of the instruction set the model runs with. */
EVS_API const char *evs_model_isa(const evs_model *model);
/* The manifest of a model file, as JSON in UTF-8 with a 0 at its end: names and colours of the classes (labels.classes),
 * the size at which images go through the network (preprocess), where the model comes from. "" for a program that stands
 * alone. It belongs to the model. */
EVS_API const char *evs_model_manifest(const evs_model *model);

/* A runner holds the threads and the memory of one run at a time; it may be used by one thread at a time. It sleeps
 * between runs. threads counts the caller's own thread: 1 starts none. */
EVS_API int evs_runner_new(const evs_model *model, int threads, evs_runner **runner);
EVS_API void evs_runner_free(evs_runner *runner);

/* Bytes a run at this size needs beside the model, the image and the logits; 0 for a size that cannot be run. */
EVS_API size_t evs_runner_memory(const evs_runner *runner, int height, int width);

/* Starts (wanted != 0) or ends measuring the time of every operation, over all runs and threads from now on. */
EVS_API int evs_runner_profile(evs_runner *runner, int wanted);
/* The times so far, in nanoseconds, of the program's operations in their order; count must be their number. */
EVS_API int evs_runner_times(const evs_runner *runner, int64_t *nanoseconds, int count);

/* Runs the whole network.
 *   image: height rows of width RGB pixels of 3 bytes, row_bytes apart.
 *   logits: (classes, height / 8, width / 8) float32, or (classes) of a classifier, written by the call. */
EVS_API int evs_run(evs_runner *runner, const uint8_t *image, int height, int width, size_t row_bytes, float *logits);

/* One side of a mask, along its height or its width: {logits, pixels} for a whole image. The other numbers place a window
 * in a larger image, whose mask does not depend on where it was cut; all 0 where there is none. */
typedef struct {
    int logits, pixels;           /* numbers along the side */
    int all_logits, all_pixels;   /* along the whole image's side */
    int first_logit, first_pixel; /* the whole image's ones that the window begins with */
} evs_side;

/* The class of every pixel: that of the largest logit after bilinear up-sampling (half-pixel centres, the border
 * repeated); of equal ones the first. The result is exact, and the same for all threads and instruction sets.
 *   runner: whose threads take part; NULL for the caller's alone.
 *   logits: (classes, down->logits, across->logits) float32, finite, of any model with up to 65535 classes. Of a window,
 *     they must cover all that its pixels lie between, else EVS_BAD_ARGUMENT.
 *   mask: (down->pixels, across->pixels) class indices, written by the call: uint8_t for up to 255 classes, else
 *     uint16_t. The pixels may be more or fewer than the logits. */
EVS_API int evs_mask(evs_runner *runner, const float *logits, int classes, const evs_side *down, const evs_side *across,
                     void *mask);

#ifdef __cplusplus
}
#endif
#endif
