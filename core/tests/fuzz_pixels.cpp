// Resizes images, makes masks and compresses rows with arbitrary numbers, in memory that is no larger than it must be; for
// libFuzzer. README.md has the commands; it needs zlib, which reads what was compressed.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "../include/evitseg.h"

namespace {

constexpr size_t kMostBytes = 256 << 10;

void expect(bool holds) {
    if (!holds) abort();
}

template <typename T>
T *room_for(size_t count) {
    return static_cast<T *>(calloc(count ? count : 1, sizeof(T)));
}

// Numbers from the input, which are 0 behind its end.
struct Input {
    const uint8_t *data;
    size_t size;
    uint8_t byte() { return size > 0 ? size--, *data++ : 0; }
    int number(int below) {
        const int high = byte(), low = byte();
        return (high << 8 | low) % below;
    }
    // Mostly a small number, sometimes any.
    int any() {
        const int kind = byte();
        if (kind < 200) return number(1 + kind);
        if (kind < 240) return number(1 << 16);
        const unsigned high = unsigned(number(1 << 16));
        return int(high << 16 | unsigned(number(1 << 16)));
    }
    void fill(uint8_t *bytes, size_t count) {
        for (size_t i = 0; i < count; i++) bytes[i] = size > 0 ? byte() : uint8_t(i * 37 >> 3);
    }
};

// The bytes of so many things, or more than allowed if a number is negative.
size_t product(long long a, long long b, long long each) {
    if (a < 0 || b < 0 || (b > 0 && a > (long long)kMostBytes / b)) return kMostBytes + 1;
    return size_t(a * b * each);
}

evs_resized a_side(Input &in) {
    evs_resized side = {in.any(), in.any(), in.any(), in.any(), 0, 0};
    if (in.byte() < 200 && side.to > 0) side.first = in.number(side.to), side.count = 1 + in.number(side.to - side.first);
    if (evs_resize_source(&side) == EVS_OK) expect(side.source_first >= 0 && side.source_count >= 1 && side.source_first <= side.from - side.source_count);
    if (in.byte() < 40) side.source_first = in.any(), side.source_count = in.any();
    return side;
}

void resize(Input &in) {
    const evs_resized down = a_side(in), across = a_side(in);
    const size_t given = product(down.source_count, across.source_count, 3), made = product(down.count, across.count, 3);
    if (given > kMostBytes || made > kMostBytes) return;
    uint8_t *image = room_for<uint8_t>(given), *expected = room_for<uint8_t>(made), *out = room_for<uint8_t>(made);
    in.fill(image, given);
    const size_t row = size_t(across.source_count) * 3;
    const int code = evs_resize(image, row, &down, &across, nullptr, expected);
    char names[256];
    strncpy(names, evs_instruction_sets(EVS_FLOAT32), sizeof names - 1), names[sizeof names - 1] = 0;
    for (char *isa = strtok(names, " "); isa != nullptr; isa = strtok(nullptr, " ")) {
        expect(evs_resize(image, row, &down, &across, isa, out) == code);
        expect(code != EVS_OK || memcmp(out, expected, made) == 0);
    }
    free(image), free(expected), free(out);
}

evs_side a_mask_side(Input &in) {
    if (in.byte() < 100) return {in.any(), in.any(), 0, 0, 0, 0};
    evs_side side = {in.any(), in.any(), in.any(), in.any(), in.any(), in.any()};
    if (in.byte() < 200 && side.all_pixels > 0 && side.all_logits > 0) {  // a window with all logits
        side.logits = side.all_logits, side.first_logit = 0;
        side.first_pixel = in.number(side.all_pixels), side.pixels = 1 + in.number(side.all_pixels - side.first_pixel);
    }
    return side;
}

void mask(Input &in) {
    const evs_side down = a_mask_side(in), across = a_mask_side(in);
    const int classes = in.byte() < 20 ? in.any() : 1 + in.number(400);
    const size_t bytes = classes > 0 ? product(down.logits, across.logits, 4) : 0;
    const size_t pixels = product(down.pixels, across.pixels, classes > 255 ? 2 : 1);
    if (bytes > kMostBytes || pixels > kMostBytes || (bytes > 0 && size_t(classes) > kMostBytes / bytes)) return;
    float *logits = room_for<float>(bytes / 4 * size_t(classes > 0 ? classes : 1));
    uint8_t *out = room_for<uint8_t>(pixels);
    in.fill(reinterpret_cast<uint8_t *>(logits), bytes * size_t(classes > 0 ? classes : 1));
    evs_mask(nullptr, logits, classes, &down, &across, out);  // logits may be NaN, which gives some mask
    free(logits), free(out);
}

void png(Input &in) {
    const int rows = 1 + in.number(300), pixel = 1 + in.byte() % 2;
    const size_t row = size_t(pixel) * size_t(1 + in.number(600)), bytes = size_t(rows) * row;
    uint8_t *pixels = room_for<uint8_t>(bytes), *compressed = room_for<uint8_t>(2 * evs_png_bound(rows, row) + size_t(rows) * 1024);
    const int repeats = in.byte(), above = in.byte();
    for (size_t i = 0; i < bytes; i++) {  // runs, rows like those above, and what the input says
        const int what = in.size > 0 ? in.byte() : int(i * 2654435761u >> 24);
        pixels[i] = i >= row && what < above ? pixels[i - row] : i > 0 && what < repeats ? pixels[i - 1] : uint8_t(what);
    }
    size_t all = 0;
    uint32_t adler = 0;
    for (int y = 0, part = 1 + in.number(rows); y < rows;) {
        const int count = y + part < rows ? part : rows - y;
        uint8_t *out = room_for<uint8_t>(evs_png_bound(count, row));
        const uint8_t *from = pixels + size_t(y) * row;
        size_t size = 0;
        expect(evs_png_rows(from, count, row, pixel, y > 0 ? from - row : nullptr, y + count == rows, &adler, out, &size) == EVS_OK);
        expect(size <= evs_png_bound(count, row));
        memcpy(compressed + all, out, size);
        all += size;
        free(out);
        y += count;
    }
    uLongf length = uLongf(bytes + size_t(rows));
    uint8_t *lines = room_for<uint8_t>(length);
    expect(uncompress(lines, &length, compressed, uLong(all)) == Z_OK && length == bytes + size_t(rows));
    for (int y = 0; y < rows; y++) {  // PNG's filters 0 and 2
        const uint8_t *line = lines + size_t(y) * (row + 1);
        expect(line[0] == 0 || (line[0] == 2 && y > 0));
        for (size_t i = 0; i < row; i++) {
            const uint8_t base = line[0] == 2 ? pixels[size_t(y - 1) * row + i] : uint8_t(0);
            expect(uint8_t(line[1 + i] + base) == pixels[size_t(y) * row + i]);
        }
    }
    uint64_t counts[256] = {}, total = 0;
    evs_count_classes(pixels, bytes, counts);
    for (const uint64_t count : counts) total += count;
    expect(total == bytes);
    free(pixels), free(compressed), free(lines);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in{data, size};
    switch (in.byte() % 3) {
        case 0: resize(in); break;
        case 1: mask(in); break;
        default: png(in); break;
    }
    return 0;
}
