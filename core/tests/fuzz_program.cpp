// Loads arbitrary bytes as a program, and runs it whole and in windows if it loads; for libFuzzer. README.md has the commands.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../include/evitseg.h"
#include "bands.h"

namespace {

constexpr size_t kMostMemory = 64 << 20;
constexpr int64_t kMostWeights = 1 << 18;
constexpr size_t kNumbers = 16;  // at the end of an input, and say how to run, so that one input always does the same

struct How {
    const uint8_t *numbers;
    int precision, threads, height, width;
    const char *isa;
};

void expect(bool holds) {
    if (!holds) abort();
}

template <typename T>
T *room_for(size_t count) {
    return static_cast<T *>(calloc(count ? count : 1, sizeof(T)));
}

// One window of a segment, of any image, with no more rows than it asks for.
void run_a_window(const evs_model *model, evs_runner *runner, const uint8_t *n) {
    const int segments = evs_model_segments(model), values = evs_model_values(model), segment = n[0] % (segments + 1);
    evs_segment about;
    expect((evs_model_segment(model, segment, &about) == EVS_OK) == (segment < segments));
    if (segment == segments) return;
    const int height = 32 * (1 + n[1] % 8) + (n[1] > 250), width = 32 * (1 + n[2] % 8) + (n[2] > 250);
    const int down = height / about.stride, across = width / about.stride;
    const int y0 = n[3] % (down + 1), y1 = y0 + 1 + n[4] % 24, x0 = n[5] % 4 ? 0 : n[5] % across, x1 = n[6] % 4 ? across : x0 + n[6] % across;
    const size_t memory = evs_window_memory(runner, segment, height, width, y0, y1, x0, x1);
    if (memory > kMostMemory) return;
    evs_stored *stored = room_for<evs_stored>(size_t(values));
    void **rooms = room_for<void *>(size_t(values));
    for (int v = 0; memory > 0 && v < values; v++) {
        evs_value value;
        evs_rows read, written;
        expect(evs_model_value(model, v, &value) == EVS_OK);
        expect(evs_segment_rows(model, segment, v, height, y0, y1, &read, &written) == EVS_OK);
        const bool reads = read.first < read.last, writes = written.first < written.last;
        if (!reads && !writes) continue;
        const int first = !writes || (reads && read.first < written.first) ? read.first : written.first;
        const int last = !writes || (reads && read.last > written.last) ? read.last : written.last;
        expect(first >= 0 && last <= height / value.stride);
        stored[v].first_row = first;
        stored[v].rows = aligned_room(size_t(last - first) * size_t(width / value.stride) * value.pixel_bytes, &rooms[v]);
    }
    evs_rows read = {0, 0}, written = {0, 0};
    if (memory > 0) expect(evs_segment_rows(model, segment, -1, height, y0, y1, &read, &written) == EVS_OK);
    const int rows = read.last - read.first;
    const uint8_t **image = room_for<const uint8_t *>(size_t(rows));
    for (int y = 0; y < rows; y++) {
        uint8_t *row = room_for<uint8_t>(size_t(width) * 3);
        for (int i = 0; i < width * 3; i++) row[i] = uint8_t(i * 7 + y);
        image[y] = row;
    }
    const size_t pixels = memory > 0 ? size_t(y1 - y0) * size_t(x1 - x0) : 0, sets = size_t(y1 - y0 + EVS_SUM_ROWS - 1) / EVS_SUM_ROWS;
    const size_t floats = about.sums ? sets * size_t(about.sums) : segment == segments - 1 ? pixels * size_t(evs_model_classes(model)) : 0;
    uint8_t *valid = n[7] % 2 ? room_for<uint8_t>(pixels) : nullptr;
    for (size_t i = 0; valid != nullptr && i < pixels; i++) valid[i] = i % 3 != 0;
    float *sums = room_for<float>(size_t(about.given_sums)), *out = room_for<float>(floats);
    const evs_window window = {height, width, y0, y1, x0, x1, image, read.first, stored, valid, sums, out};
    const int code = evs_run_window(runner, segment, &window);
    expect(memory > 0 ? code == EVS_OK || code == EVS_NOT_FINITE || code == EVS_BAD_ARGUMENT : code != EVS_OK);
    if (code == EVS_OK && about.sums) expect(evs_add_sums(out, sets, size_t(about.sums)) == EVS_OK);
    for (int v = 0; v < values; v++) free(rooms[v]);
    for (int y = 0; y < rows; y++) free(const_cast<uint8_t *>(image[y]));
    free(image), free(stored), free(rooms), free(valid), free(sums), free(out);
}

// A run with the sums given, as many floats as the segments say.
int run_given(const evs_model *model, evs_runner *runner, const uint8_t *image, const How &how, float *logits) {
    size_t count = 0;
    for (int s = 0; s < evs_model_segments(model); s++) {
        evs_segment about;
        expect(evs_model_segment(model, s, &about) == EVS_OK);
        count += size_t(about.sums);
    }
    float *sums = room_for<float>(count);
    for (size_t i = 0; i < count; i++) sums[i] = float(i % 7) / 8;
    const int code = evs_run_given(runner, image, how.height, how.width, size_t(how.width) * 3, sums, logits);
    free(sums);
    return code;
}

int run(const void *bytes, size_t size, const How &how) {
    evs_model *model = nullptr;
    const int code = evs_model_load(bytes, size, how.precision, how.isa, &model);
    if (code != EVS_OK) return code;
    expect(strlen(evs_model_manifest(model)) <= size);
    evs_runner *runner = nullptr;
    expect(evs_runner_new(model, how.threads, &runner) == EVS_OK);
    const int classes = evs_model_classes(model), is_classifier = evs_model_is_classifier(model), h = how.height / 8, w = how.width / 8;
    const size_t memory = evs_runner_memory(runner, how.height, how.width), cells = is_classifier ? 1 : size_t(h) * size_t(w);
    expect(memory > 0);
    if (memory < kMostMemory) {
        const size_t row = size_t(how.width) * 3;
        uint8_t *image = room_for<uint8_t>(size_t(how.height) * row);
        float *logits = room_for<float>(cells * size_t(classes));
        for (size_t i = 0; i < size_t(how.height) * row; i++) image[i] = uint8_t(i * 7);
        if (how.numbers[8] % 4 == 0) expect(evs_runner_profile(runner, 1) == EVS_OK);
        const int code = evs_run(runner, image, how.height, how.width, row, logits);
        expect(code == EVS_OK || code == EVS_NOT_FINITE);
        float *first = room_for<float>(cells * size_t(classes));
        memcpy(first, logits, sizeof(float) * cells * size_t(classes));
        if (!is_classifier) {
            const evs_side down = {h, 1 + how.numbers[9], 0, 0, 0, 0}, across = {w, 1 + how.numbers[10], 0, 0, 0, 0};
            void *mask = room_for<uint16_t>(size_t(down.pixels) * size_t(across.pixels));
            expect(evs_mask(runner, logits, classes, &down, &across, mask) == EVS_OK);
            free(mask);
            run_a_window(model, runner, how.numbers);
            run_given(model, runner, image, how, logits);
            run_in_bands(model, runner, image, how.height, how.width, row, EVS_SUM_ROWS, logits);
        }
        expect(evs_run(runner, image, how.height, how.width, row, logits) == code);  // whatever ran in between
        expect(code != EVS_OK || memcmp(first, logits, sizeof(float) * cells * size_t(classes)) == 0);
        free(image), free(first), free(logits);
    }
    evs_runner_free(runner);
    evs_model_free(model);
    return EVS_OK;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < kNumbers) return 0;
    size -= kNumbers;
    const uint8_t *numbers = data + size;
    const int bits = numbers[kNumbers - 1];
    How how = {numbers, EVS_FLOAT32, 1 + bits % 3, bits & 4 ? 64 : 32, bits & 8 ? 160 : 32, nullptr};
    if (bits & 64 && evs_instruction_sets(EVS_FLOAT16)[0] != 0) how.precision = EVS_FLOAT16;
    if (bits & 128 && evs_instruction_sets(EVS_BFLOAT16)[0] != 0) how.precision = EVS_BFLOAT16;
#if defined(__x86_64__)
    if (how.precision == EVS_FLOAT32 && bits & 16) how.isa = bits & 32 ? "sse4" : "avx2";
    if (how.precision == EVS_BFLOAT16 && bits & 16) how.isa = "avx512bf16";
#endif
    if (run(data, size, how) == EVS_OK || size < 64) return 0;
    // Weights do not help the fuzzer: a program that ends after its tables gets as many as it asks for.
    int64_t weights;
    memcpy(&weights, data + 32, sizeof weights);
    if (weights < 0 || weights > kMostWeights) return 0;
    const size_t start = (size + 63) / 64 * 64, whole = start + size_t(weights) * sizeof(float);
    char *bytes = room_for<char>(whole);
    memcpy(bytes, data, size);
    float *floats = reinterpret_cast<float *>(bytes + start);
    for (int64_t i = 0; i < weights; i++) floats[i] = float(i % 13 - 6) / 64;
    run(bytes, whole, how);
    free(bytes);
    return 0;
}
