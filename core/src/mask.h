// From logits to a mask: the class with the largest bilinearly up-sampled logit, for every pixel.
#pragma once
#include "../include/evitseg.h"
#include "threads.h"

namespace evs {

constexpr int kMostInByte = 255;  // classes whose mask has bytes: the index 255 stands for pixels that do not count

struct MaskJob {
    const float *logits;  // classes x down.logits x across.logits
    int classes;
    evs_side down, across;
    void *mask;  // down.pixels x across.pixels numbers, of one or two bytes (see evs_mask)
};

}  // namespace evs
