/* Runs a network segment by segment, in bands of a few rows, as evitseg does with images that do not fit in memory. For
 * C and C++; both test programs use it. */
#ifndef EVITSEG_BANDS_H
#define EVITSEG_BANDS_H

#include <stdlib.h>
#include <string.h>

#include "../include/evitseg.h"

/* Room for `bytes`, aligned to 64, with what may be read behind it; *memory is to be freed. */
static void *aligned_room(size_t bytes, void **memory) {
    char *room = (char *)calloc(1, bytes + 64 + 4096);
    *memory = room;
    return room + (64 - (size_t)(uintptr_t)room % 64) % 64;
}

/* As evs_run, with bands of `band` rows of each segment's end, a multiple of EVS_SUM_ROWS. Returns: an EVS_ code. */
static int run_in_bands(const evs_model *model, evs_runner *runner, const uint8_t *image, int height, int width, size_t row_bytes, int band,
                        float *logits) {
    const int num_values = evs_model_values(model), num_segments = evs_model_segments(model), classes = evs_model_classes(model);
    const uint8_t **rows = (const uint8_t **)malloc(sizeof(uint8_t *) * (size_t)height);
    evs_stored *values = (evs_stored *)calloc((size_t)num_values, sizeof(evs_stored));
    void **rooms = (void **)calloc((size_t)num_values, sizeof(void *));
    float *sums = NULL;
    int code = EVS_OK;
    for (int y = 0; y < height; y++) rows[y] = image + (size_t)y * row_bytes;
    for (int v = 0; v < num_values; v++) {
        evs_value about;
        evs_model_value(model, v, &about);
        values[v].rows = aligned_room((size_t)(height / about.stride) * (size_t)(width / about.stride) * about.pixel_bytes, &rooms[v]);
    }
    for (int s = 0; s < num_segments && code == EVS_OK; s++) {
        evs_segment about;
        evs_model_segment(model, s, &about);
        const int end = height / about.stride, columns = width / about.stride, last = s == num_segments - 1;
        const size_t sets = (size_t)(end + EVS_SUM_ROWS - 1) / EVS_SUM_ROWS;
        const size_t out_floats = (size_t)classes * (size_t)band * (size_t)columns;
        float *made = (float *)calloc(sets * (size_t)about.sums + 1, sizeof(float));
        float *out = (float *)calloc(out_floats + 1, sizeof(float));
        for (int y = 0; y < end && code == EVS_OK; y += band) {
            const int until = y + band < end ? y + band : end;
            evs_window window;
            memset(&window, 0, sizeof window);
            window.height = height, window.width = width;
            window.y0 = y, window.y1 = until, window.x1 = columns;
            window.image = rows, window.values = values, window.sums = sums;
            window.out = about.sums ? made + (size_t)(y / EVS_SUM_ROWS) * (size_t)about.sums : out;
            code = evs_run_window(runner, s, &window);
            for (int c = 0; last && c < classes; c++)
                for (int row = y; row < until; row++)
                    memcpy(logits + ((size_t)c * (size_t)end + (size_t)row) * (size_t)columns,
                           out + ((size_t)c * (size_t)(until - y) + (size_t)(row - y)) * (size_t)columns, sizeof(float) * (size_t)columns);
        }
        free(out);
        if (about.sums) {
            evs_add_sums(made, sets, (size_t)about.sums);
            free(sums);
            sums = made;
        } else {
            free(made);
        }
    }
    for (int v = 0; v < num_values; v++) free(rooms[v]);
    free(values), free(rooms), free(rows), free(sums);
    return code;
}

#endif
