/* Segments an image: segment MODEL.evit IMAGE.ppm MASK.pgm
 * The image is a binary PPM (P6) with 8 bits per channel; a pixel of the mask is the index of its class. */
#include <stdio.h>
#include <stdlib.h>

#include "../include/evitseg.h"

static void stop(const char *where, const char *why) {
    fprintf(stderr, "%s: %s\n", where, why);
    exit(1);
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (memory == NULL) stop("segment", "there is not enough memory");
    return memory;
}

static unsigned char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || ftell(file) < 0) stop(path, "cannot be read");
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = allocate(*size);
    if (fread(bytes, 1, *size, file) != *size) stop(path, "cannot be read");
    fclose(file);
    return bytes;
}

static unsigned char *read_ppm(const char *path, int *height, int *width) {
    FILE *file = fopen(path, "rb");
    int most = 0;
    if (file == NULL || fscanf(file, "P6 %d %d %d", width, height, &most) != 3 || most != 255 || fgetc(file) == EOF)
        stop(path, "not a binary PPM with 8 bits per channel and no comments");
    if (*width < 1 || *height < 1 || *width > 65536 || *height > 65536) stop(path, "too large");
    const size_t size = (size_t)*width * (size_t)*height * 3;
    unsigned char *pixels = allocate(size);
    if (fread(pixels, 1, size, file) != size) stop(path, "ends too early");
    fclose(file);
    return pixels;
}

/* Resizes an image to the next size whose sides are multiples of 32, as the network needs it. */
static unsigned char *resize(const unsigned char *from, int height, int width, int h, int w) {
    unsigned char *to = allocate((size_t)h * (size_t)w * 3);
    const evs_resized down = {.from = height, .to = h, .count = h, .source_count = height};
    const evs_resized across = {.from = width, .to = w, .count = w, .source_count = width};
    const int code = evs_resize(from, (size_t)width * 3, &down, &across, NULL, to);
    if (code != EVS_OK) stop("segment", evs_error_text(code));
    return to;
}

int main(int argc, char **argv) {
    if (argc != 4) stop(argv[0], "MODEL.evit IMAGE.ppm MASK.pgm");
    size_t size;
    int height, width, code;
    unsigned char *program = read_file(argv[1], &size), *image = read_ppm(argv[2], &height, &width);
    evs_model *model;
    evs_runner *runner;
    if ((code = evs_model_load(program, size, EVS_FLOAT32, NULL, &model)) != EVS_OK) stop(argv[1], evs_error_text(code));
    if ((code = evs_runner_new(model, 2, &runner)) != EVS_OK) stop(argv[1], evs_error_text(code));

    const int h = (height + 31) / 32 * 32, w = (width + 31) / 32 * 32, classes = evs_model_classes(model);
    if (classes > 255) stop(argv[1], "a PGM with 8 bits has no room for so many classes");
    unsigned char *input = resize(image, height, width, h, w), *mask = allocate((size_t)height * (size_t)width);
    float *logits = allocate((size_t)classes * (size_t)(h / 8) * (size_t)(w / 8) * sizeof(float));
    if ((code = evs_run(runner, input, h, w, (size_t)w * 3, logits)) != EVS_OK) stop(argv[2], evs_error_text(code));
    const evs_side down = {.logits = h / 8, .pixels = height}, across = {.logits = w / 8, .pixels = width};
    if ((code = evs_mask(runner, logits, classes, &down, &across, mask)) != EVS_OK) stop(argv[2], evs_error_text(code));

    FILE *out = fopen(argv[3], "wb");
    if (out == NULL || fprintf(out, "P5\n%d %d\n255\n", width, height) < 0 ||
        fwrite(mask, (size_t)width, (size_t)height, out) != (size_t)height || fclose(out) != 0)
        stop(argv[3], "cannot be written");
    evs_runner_free(runner);
    evs_model_free(model);
    free(program), free(image), free(input), free(mask), free(logits);
    return 0;
}
