/* Runs a program on an image and writes the logits (float32), then a mask 5 pixels lower and 7 wider than the image; of a
 * classifier only the scores:
 * logits PROGRAM IMAGE.rgb HEIGHT WIDTH THREADS OUT [ISA] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../include/evitseg.h"

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    void *bytes = malloc(*size ? *size : 1);
    if (bytes != NULL && fread(bytes, 1, *size, file) != *size) *size = 0;
    fclose(file);
    return bytes;
}

static int fail(const char *what, int code) {
    fprintf(stderr, "%s: %s\n", what, evs_error_text(code));
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 7) return fail(argv[0], EVS_BAD_ARGUMENT);
    size_t program_size = 0, image_size = 0;
    void *program = read_file(argv[1], &program_size), *image = read_file(argv[2], &image_size);
    const int height = atoi(argv[3]), width = atoi(argv[4]);
    if (program == NULL || image == NULL || image_size < (size_t)height * (size_t)width * 3) return fail(argv[2], EVS_BAD_ARGUMENT);
    evs_model *model = NULL;
    evs_runner *runner = NULL;
    const char *isa = argc > 7 ? argv[7] : NULL;
    const int precision = isa != NULL && strstr(isa, "fp16") != NULL ? EVS_FLOAT16 : EVS_FLOAT32;
    int code = evs_model_load(program, program_size, precision, isa, &model);
    if (code != EVS_OK) return fail(argv[1], code);
    code = evs_runner_new(model, atoi(argv[5]), &runner);
    if (code != EVS_OK) return fail(argv[1], code);
    const int is_classifier = evs_model_is_classifier(model);
    const size_t count = (size_t)evs_model_classes(model) * (is_classifier ? 1 : (size_t)(height / 8) * (size_t)(width / 8));
    float *logits = malloc(count * sizeof(float));
    code = evs_run(runner, image, height, width, (size_t)width * 3, logits);
    if (code != EVS_OK) return fail(argv[2], code);
    const evs_side down = {height / 8, height - 5, 0, 0, 0, 0}, across = {width / 8, width + 7, 0, 0, 0, 0};
    const size_t pixels = is_classifier ? 0 : (size_t)down.pixels * (size_t)across.pixels * (evs_model_classes(model) > 255 ? 2 : 1);
    void *mask = malloc(pixels ? pixels : 1);
    if (!is_classifier) code = evs_mask(runner, logits, evs_model_classes(model), &down, &across, mask);
    if (code != EVS_OK) return fail("mask", code);
    FILE *out = fopen(argv[6], "wb");
    if (out == NULL || fwrite(logits, sizeof(float), count, out) != count || fwrite(mask, 1, pixels, out) != pixels || fclose(out) != 0)
        return fail(argv[6], EVS_BAD_ARGUMENT);
    evs_runner_free(runner);
    evs_model_free(model);
    free(logits), free(mask), free(program), free(image);
    return 0;
}
