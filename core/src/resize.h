// Resizing of images: a weighted mean of the pixels that each new pixel covers.
#pragma once
#include "../include/evitseg.h"

namespace evs {

struct ResizeJob {
    const uint8_t *image;  // its row down.source_first, at the pixel across.source_first
    size_t row_bytes;
    evs_resized down, across;
    uint8_t *out;  // down.count x across.count pixels
};

}  // namespace evs
