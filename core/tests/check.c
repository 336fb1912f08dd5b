/* Runs programs in every way that must give the same bytes: check PROGRAM...
 *
 * Prints checksums of resized images, masks and PNG rows, which are the same everywhere, and for every program and size one
 * of the logits, which is the same on every processor with fused multiply-add; fails if two ways differ. Needs nothing but
 * the core, so it runs under sanitizers and emulators. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "../include/evitseg.h"
#include "bands.h"

static const int kSizes[][2] = {{32, 32}, {64, 96}, {32, 416}, {288, 64}, {64, 96}};
static const int kThreads[] = {1, 2, 5};
enum { kNumSizes = sizeof kSizes / sizeof kSizes[0], kNumThreads = sizeof kThreads / sizeof kThreads[0] };

static void fail(const char *where, const char *why) {
    fprintf(stderr, "%s: %s\n", where, why);
    exit(1);
}

static void check(const char *where, int code) {
    if (code != EVS_OK) fail(where, evs_error_text(code));
}

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail(path, "cannot be read");
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    void *bytes = malloc(*size + 1);
    if (bytes == NULL || fread(bytes, 1, *size, file) != *size) fail(path, "cannot be read");
    fclose(file);
    return bytes;
}

static const uint64_t kNoBytes = UINT64_C(14695981039346656037);

/* FNV-1a of bytes, after those that `sum` is of. */
static uint64_t add_bytes(uint64_t sum, const void *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) sum = (sum ^ ((const uint8_t *)bytes)[i]) * UINT64_C(1099511628211);
    return sum;
}

static uint32_t next(uint32_t *random, uint32_t below) {
    *random = *random * 1664525u + 1013904223u;
    return (*random >> 8) % below;
}

/* A window that is refused, because there is no room for its logits; the next run must not take it for its plan. */
static void refuse_window(const char *path, evs_model *model, evs_runner *runner, int height, int width) {
    evs_stored *values = calloc((size_t)evs_model_values(model), sizeof(evs_stored));
    evs_window window;
    memset(&window, 0, sizeof window);
    window.height = height, window.width = width;
    window.y1 = height / 8, window.x1 = width / 8;
    window.values = values;
    if (evs_run_window(runner, evs_model_segments(model) - 1, &window) != EVS_BAD_ARGUMENT) fail(path, "runs a window without room");
    free(values);
}

/* A checksum of the logits of one size; the image is the same every time. */
static uint64_t run(const char *path, evs_model *model, evs_runner *runner, int height, int width, int in_bands) {
    const size_t row = (size_t)width * 3 + 5;  /* rows of images need not be dense */
    uint8_t *image = malloc(row * (size_t)height);
    const size_t places = evs_model_is_classifier(model) ? 1 : (size_t)(height / 8) * (size_t)(width / 8);
    const size_t bytes = sizeof(float) * (size_t)evs_model_classes(model) * places;
    float *logits = malloc(bytes);
    uint32_t random = 1;
    for (size_t i = 0; i < row * (size_t)height; i++) random = random * 1664525u + 1013904223u, image[i] = (uint8_t)(random >> 24);
    refuse_window(path, model, runner, height, width);
    const int code = evs_run(runner, image, height, width, row, logits);
    if (code != EVS_NOT_FINITE) check(path, code);  /* as the logits of a damaged program may be */
    if (code == EVS_OK && in_bands && !evs_model_is_classifier(model)) {
        float *banded = malloc(bytes);
        check(path, run_in_bands(model, runner, image, height, width, row, EVS_SUM_ROWS * (1 + height / 128), banded));
        if (memcmp(logits, banded, bytes) != 0) fail(path, "bands differ from the whole image");
        free(banded);
    }
    const uint64_t sum = add_bytes(kNoBytes, logits, bytes);
    free(image), free(logits);
    return sum;
}

/* A checksum of masks of whole images and of windows, of smooth logits and of noise; the logits are the same every time.
 * runner: NULL for one thread and the best instruction set. */
static uint64_t make_masks(evs_runner *runner) {
    static const int kClasses[] = {1, 2, 11, 300};
    uint64_t sum = kNoBytes;
    uint32_t random = 1;
    for (int turn = 0; turn < 24; turn++) {
        const int classes = kClasses[turn % 4], h = 1 + (int)next(&random, 20), w = 1 + (int)next(&random, 20);
        evs_side down = {h, 1 + (int)next(&random, 200), 0, 0, 0, 0}, across = {w, 1 + (int)next(&random, 200), 0, 0, 0, 0};
        if (turn % 3 == 0) {  /* a window with all logits of its image */
            down.all_logits = h, down.all_pixels = down.pixels;
            across.all_logits = w, across.all_pixels = across.pixels;
            down.first_pixel = (int)next(&random, (uint32_t)down.pixels), down.pixels -= down.first_pixel;
            across.first_pixel = (int)next(&random, (uint32_t)across.pixels), across.pixels -= across.first_pixel;
        }
        const size_t count = (size_t)classes * (size_t)h * (size_t)w, pixels = (size_t)down.pixels * (size_t)across.pixels;
        float *logits = malloc(count * sizeof(float));
        uint8_t *mask = malloc(pixels * (classes > 255 ? 2 : 1));
        for (size_t i = 0; i < count; i++) {
            const int level = (int)next(&random, 1000), x = (int)(i % (size_t)w);
            logits[i] = turn % 2 ? (float)(x % 7 * 1000 + level) / 256 : (float)level / 8;
        }
        check("evs_mask", evs_mask(runner, logits, classes, &down, &across, mask));
        sum = add_bytes(sum, mask, pixels * (classes > 255 ? 2 : 1));
        free(logits), free(mask);
    }
    return sum;
}

typedef struct {
    const char *path;
    evs_model *model;
    uint64_t sums[kNumSizes];
    int threads;
} Job;

/* All sizes, one after the other, in one runner. */
static void *run_sizes(void *argument) {
    Job *job = argument;
    evs_runner *runner = NULL;
    check(job->path, evs_runner_new(job->model, job->threads, &runner));
    if (evs_runner_memory(runner, 32, 32) == 0 || evs_runner_memory(runner, 33, 32) != 0) fail(job->path, "wrong memory");
    for (int i = 0; i < kNumSizes; i++) job->sums[i] = run(job->path, job->model, runner, kSizes[i][0], kSizes[i][1], 1);
    if (make_masks(runner) != make_masks(NULL)) fail(evs_model_isa(job->model), "makes other masks");
    evs_runner_free(runner);
    return NULL;
}

/* Two runs of one model at the same time, where there are POSIX threads. */
static void run_side_by_side(Job *job) {
#if !defined(_WIN32)
    Job other = *job;
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_sizes, &other) != 0) fail(job->path, "cannot start a thread");
    run_sizes(job);
    pthread_join(thread, NULL);
    if (memcmp(job->sums, other.sums, sizeof other.sums) != 0) fail(job->path, "two runs at the same time differ");
#else
    run_sizes(job);
#endif
}

/* Truncated and overwritten programs are refused, or run. */
static void run_damaged(const char *path, const char *bytes, size_t size) {
    char *damaged = malloc(size);
    uint32_t random = 1;
    for (int turn = 0; turn < 300; turn++) {
        memcpy(damaged, bytes, size);
        for (int i = 0; i < 2; i++) {
            random = random * 1664525u + 1013904223u;
            damaged[(random >> 8) % (size < 8192 ? size : 8192)] ^= (char)(1 << random % 8);
        }
        evs_model *model = NULL;
        evs_runner *runner = NULL;
        if (evs_model_load(damaged, turn % 8 ? size : random % size, EVS_FLOAT32, NULL, &model) != EVS_OK) continue;
        check(path, evs_runner_new(model, 1, &runner));
        run(path, model, runner, 32, 32, 0);
        evs_runner_free(runner);
        evs_model_free(model);
    }
    free(damaged);
}

/* A side of an image that is resized, with a window; sometimes one number is wrong. */
static evs_resized random_side(uint32_t *random, int most) {
    evs_resized side = {1 + (int)next(random, (uint32_t)most), 1 + (int)next(random, (uint32_t)most), 0, 0, 0, 0};
    side.first = (int)next(random, (uint32_t)side.to);
    side.count = 1 + (int)next(random, (uint32_t)(side.to - side.first));
    check("evs_resize_source", evs_resize_source(&side));
    int *numbers[] = {&side.from, &side.to, &side.first, &side.count, &side.source_first, &side.source_count};
    if (next(random, 8) == 0) *numbers[next(random, 6)] += (int)next(random, 9) - 4;
    return side;
}

/* Every instruction set resizes to the same bytes, or refuses; images have no byte too many. Returns: a checksum. */
static uint64_t run_resize(void) {
    uint64_t sum = kNoBytes;
    uint32_t random = 1;
    for (int turn = 0; turn < 2000; turn++) {
        const int most = turn % 50 == 0 ? 1500 : 60;
        const evs_resized down = random_side(&random, turn % 100 == 0 ? 30 : most), across = random_side(&random, most);
        const size_t pixels = down.count > 0 && across.count > 0 ? (size_t)down.count * (size_t)across.count : 0;
        const size_t given = down.source_count > 0 && across.source_count > 0 ? (size_t)down.source_count * (size_t)across.source_count : 0;
        uint8_t *image = malloc(given * 3), *expected = malloc(pixels * 3), *out = malloc(pixels * 3);
        for (size_t i = 0; i < given * 3; i++) image[i] = (uint8_t)next(&random, 256);
        char isas[256];
        strncpy(isas, evs_instruction_sets(EVS_FLOAT32), sizeof isas - 1), isas[sizeof isas - 1] = 0;
        const size_t row = (size_t)across.source_count * 3;
        const int code = evs_resize(image, row, &down, &across, NULL, expected);
        if (code != EVS_OK && code != EVS_BAD_ARGUMENT) check("evs_resize", code);
        for (char *isa = strtok(isas, " "); isa != NULL; isa = strtok(NULL, " ")) {
            if (evs_resize(image, row, &down, &across, isa, out) != code) fail(isa, "another result of evs_resize");
            if (code == EVS_OK && memcmp(out, expected, pixels * 3) != 0) fail(isa, "resizes to other bytes");
        }
        if (code == EVS_OK) sum = add_bytes(sum, expected, pixels * 3);
        free(image), free(expected), free(out);
    }
    return sum;
}

/* A checksum of the compressed rows of masks, in one call and in several; none of them is longer than allowed. */
static uint64_t run_png(void) {
    uint64_t sum = kNoBytes;
    uint32_t random = 1;
    for (int turn = 0; turn < 200; turn++) {
        const int pixel = 1 + turn % 2, rows = 1 + (int)next(&random, 60);
        const size_t row = (size_t)pixel * (1 + next(&random, 400));
        uint8_t *pixels = malloc((size_t)rows * row);
        for (size_t i = 0; i < (size_t)rows * row; i++) {  /* noise; or mostly as above, in runs */
            if (turn % 5 != 0 && i >= row && next(&random, 50) != 0) {
                pixels[i] = pixels[i - row];
            } else if (turn % 5 != 0 && i > 0 && next(&random, 30) != 0) {
                pixels[i] = pixels[i - 1];
            } else {
                pixels[i] = (uint8_t)next(&random, turn % 5 ? 12 : 256);
            }
        }
        uint32_t adler = 0;
        for (int y = 0; y < rows;) {
            const int count = turn % 3 ? rows : 1 + (int)next(&random, (uint32_t)(rows - y));
            size_t size = 0;
            uint8_t *out = malloc(evs_png_bound(count, row));
            const uint8_t *from = pixels + (size_t)y * row, *above = y ? from - row : NULL;
            check("evs_png_rows", evs_png_rows(from, count, row, pixel, above, y + count == rows, &adler, out, &size));
            if (size > evs_png_bound(count, row)) fail("evs_png_rows", "writes too much");
            sum = add_bytes(sum, out, size);
            free(out);
            y += count;
        }
        free(pixels);
    }
    return sum;
}

int main(int argc, char **argv) {
    if (argc < 2) fail(argv[0], "PROGRAM...");
    printf("resized %016llx\n", (unsigned long long)run_resize());
    printf("masks %016llx\n", (unsigned long long)make_masks(NULL));
    printf("png %016llx\n", (unsigned long long)run_png());
    for (int i = 1; i < argc; i++) {
        size_t size;
        char *bytes = read_file(argv[i], &size), isas[256];
        uint64_t expected[kNumSizes] = {0};
        int known = 0;
        for (int precision = EVS_FLOAT32; precision <= EVS_BFLOAT16; precision++) {
            strncpy(isas, evs_instruction_sets(precision), sizeof isas - 1), isas[sizeof isas - 1] = 0;
            for (char *isa = strtok(isas, " "); isa != NULL; isa = strtok(NULL, " ")) {
                /* Without fused multiply-add, and in half precision, the bytes are the instruction set's own. */
                const int fused = precision == EVS_FLOAT32 && strcmp(isa, "sse4") != 0;
                uint64_t own[kNumSizes], *same = fused ? expected : own;
                for (int t = 0; t < kNumThreads; t++) {
                    Job job = {argv[i], NULL, {0}, kThreads[t]};
                    check(argv[i], evs_model_load(bytes, size, precision, isa, &job.model));
                    if (t == 1) {
                        run_side_by_side(&job);
                    } else {
                        run_sizes(&job);
                    }
                    evs_model_free(job.model);
                    if (t == 0 && !(fused && known)) memcpy(same, job.sums, sizeof own);
                    if (memcmp(same, job.sums, sizeof own) != 0) fail(argv[i], isa);
                }
                known |= fused;
            }
        }
        for (int s = 0; known && s < kNumSizes; s++)
            printf("%s %dx%d %016llx\n", strrchr(argv[i], '/') ? strrchr(argv[i], '/') + 1 : argv[i], kSizes[s][0], kSizes[s][1],
                   (unsigned long long)expected[s]);
        run_damaged(argv[i], bytes, size);
        free(bytes);
    }
    return 0;
}
