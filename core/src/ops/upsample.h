// Bicubic enlargement by 2 or 4 with half-pixel centres, a = -0.75 and the border repeated, as PyTorch's interpolate.
// Source: R. Keys, Cubic convolution interpolation for digital image processing, 1981.
#pragma once
#include "vector.h"

namespace evs::EVS_ISA {

constexpr int kMaxFactor = 4;

// Weights of the four taps around output position `at`, and the input index of the first tap.
EVS_INLINE int cubic_taps(int at, int factor, float w[4]) {
    const double position = (at + 0.5) / factor - 0.5;
    const int below = int(position + 1) - 1;  // floor, for position > -1
    for (int tap = -1; tap < 3; tap++) {
        const double a = -0.75, signed_distance = position - below - tap;
        const double d = signed_distance < 0 ? -signed_distance : signed_distance;
        const double near = ((a + 2) * d - (a + 3)) * d * d + 1;
        const double far = ((d - 5) * d + 8) * d * a - 4 * a;
        w[tap + 1] = float(d <= 1 ? near : far);
    }
    return below - 1;
}

EVS_INLINE int clamp(int x, int high) { return x < 0 ? 0 : x > high ? high : x; }

// The input columns that output columns [x0, x1) of a row of `width` inputs need.
EVS_INLINE void cubic_window(int x0, int x1, int factor, int width, int &first, int &last) {
    float w[4];
    first = clamp(cubic_taps(x0, factor, w), width - 1);
    last = clamp(cubic_taps(x1 - 1, factor, w) + 3, width - 1) + 1;
}

// Adds output row y, columns [x0, x1), of a feature map enlarged by `factor`, to `out` (whose first pixel is x0).
//   map: height rows of blocks x width pixels. space: blocks x (input columns needed) pixels.
static void add_enlarged(const E *map, int height, int width, int blocks, int factor, int y, int x0, int x1, E *space, Row out) {
    float wy[4];
    const int top = cubic_taps(y, factor, wy);
    int first, last;
    cubic_window(x0, x1, factor, width, first, last);
    const int columns = last - first;
    const E *rows[4];
    for (int t = 0; t < 4; t++)
        rows[t] = map + (ptrdiff_t(clamp(top + t, height - 1)) * blocks * width + first) * kBlock;
    for (int b = 0; b < blocks; b++) {
        E *line = space + ptrdiff_t(b) * columns * kBlock;
        const ptrdiff_t at = ptrdiff_t(b) * width * kBlock;
        for (int i = 0; i < columns * kBlock; i += kLanes) {
            V sum = V{};
            for (int t = 0; t < 4; t++) sum = sum + load(rows[t] + at + i) * all(A(wy[t]));
            store(line + i, sum);
        }
    }
    float weights[kMaxFactor][4];  // they repeat with the factor, exactly
    for (int phase = 0; phase < factor; phase++) cubic_taps(phase, factor, weights[phase]);
    for (int x = x0; x < x1; x++) {
        const float *wx = weights[x % factor];
        const int left = x / factor + (x % factor < factor / 2 ? -2 : -1);
        int from[4];
        for (int t = 0; t < 4; t++) from[t] = (clamp(left + t, width - 1) - first) * kBlock;
        for (int b = 0; b < blocks; b++) {
            const E *line = space + ptrdiff_t(b) * columns * kBlock;
            E *o = out.p + b * out.block + ptrdiff_t(x - x0) * kBlock;
            for (int lane = 0; lane < kBlock; lane += kLanes) {
                V sum = V{};
                for (int t = 0; t < 4; t++) sum = sum + load(line + from[t] + lane) * all(A(wx[t]));
                store(o + lane, load(o + lane) + sum);
            }
        }
    }
}

}  // namespace evs::EVS_ISA
