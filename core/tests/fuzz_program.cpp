// Loads arbitrary bytes as a program, and runs it if it loads; for libFuzzer. README.md has the commands.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../include/evitseg.h"
#include "bands.h"

namespace {

constexpr size_t kMostMemory = 64 << 20;
constexpr int64_t kMostWeights = 1 << 18;

int run(const void *bytes, size_t size, int precision, const char *isa, int threads, int height, int width) {
    evs_model *model = nullptr;
    const int code = evs_model_load(bytes, size, precision, isa, &model);
    if (code != EVS_OK) return code;
    if (strlen(evs_model_manifest(model)) > size) abort();
    evs_runner *runner = nullptr;
    if (evs_runner_new(model, threads, &runner) != EVS_OK) abort();
    const size_t memory = evs_runner_memory(runner, height, width), cells = evs_model_is_classifier(model) ? 1 : size_t(height / 8) * size_t(width / 8);
    if (memory == 0) abort();
    if (memory < kMostMemory) {
        uint8_t *image = static_cast<uint8_t *>(malloc(size_t(height) * size_t(width) * 3));
        float *logits = static_cast<float *>(malloc(sizeof(float) * cells * size_t(evs_model_classes(model))));
        for (int i = 0; i < height * width * 3; i++) image[i] = uint8_t(i * 7);
        const int code = evs_run(runner, image, height, width, size_t(width) * 3, logits);
        if (code != EVS_OK && code != EVS_NOT_FINITE) abort();
        if (!evs_model_is_classifier(model)) run_in_bands(model, runner, image, height, width, size_t(width) * 3, EVS_SUM_ROWS, logits);
        free(image), free(logits);
    }
    evs_runner_free(runner);
    evs_model_free(model);
    return EVS_OK;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    // The last byte says how to run, so that one input always does the same.
    const int how = data[--size];
    const int threads = 1 + how % 3, height = how & 4 ? 64 : 32, width = how & 8 ? 160 : 32;
    const int precision = how & 64 && evs_instruction_sets(EVS_FLOAT16)[0] != 0 ? EVS_FLOAT16 : EVS_FLOAT32;
    const char *isa = nullptr;
#if defined(__x86_64__)
    if (precision == EVS_FLOAT32 && how & 16) isa = how & 32 ? "sse4" : "avx2";
#endif
    if (run(data, size, precision, isa, threads, height, width) == EVS_OK || size < 64) return 0;
    // Weights do not help the fuzzer: a program that ends after its tables gets as many as it asks for.
    int64_t weights;
    memcpy(&weights, data + 32, sizeof weights);
    if (weights < 0 || weights > kMostWeights) return 0;
    const size_t start = (size + 63) / 64 * 64, whole = start + size_t(weights) * sizeof(float);
    char *bytes = static_cast<char *>(calloc(whole, 1));
    memcpy(bytes, data, size);
    float *numbers = reinterpret_cast<float *>(bytes + start);
    for (int64_t i = 0; i < weights; i++) numbers[i] = float(i % 13 - 6) / 64;
    run(bytes, whole, precision, isa, threads, height, width);
    free(bytes);
    return 0;
}
