// Depthwise convolution of one output row. Weights: [block][tap][kBlock]; each output sums its taps row by row.
#pragma once
#include "vector.h"

namespace evs::EVS_ISA {

constexpr int kMaxKernel = 7;

template <int kKernel, int kStride, int kPixels, Act A>
EVS_INLINE void depthwise_tile(const E *const *rows, const W *w, V bias, E *out) {
    V sum[kPixels];
    EVS_UNROLL
    for (int q = 0; q < kPixels; q++) sum[q] = bias;
    constexpr int kColumns = (kPixels - 1) * kStride + kKernel;
    EVS_UNROLL
    for (int y = 0; y < kKernel; y++) {
        V k[kKernel];
        EVS_UNROLL
        for (int x = 0; x < kKernel; x++) k[x] = load(w + (y * kKernel + x) * kBlock);
        EVS_UNROLL
        for (int c = 0; c < kColumns; c++) {
            const V in = hidden(load(rows[y] + c * kBlock));
            EVS_UNROLL
            for (int q = 0; q < kPixels; q++) {
                const int x = c - q * kStride;
                if (x >= 0 && x < kKernel) sum[q] = sum[q] + in * k[x];
            }
        }
    }
    EVS_UNROLL
    for (int q = 0; q < kPixels; q++) store(out + q * kBlock, activated<A>(sum[q]));
}

template <int kKernel, int kStride, Act A>
static void depthwise_row(const Row *rows, int blocks, const W *weights, const W *bias, int pixels, Row out) {
    constexpr int kPixels = EVS_BYTES == 64 ? 8 : 4;
    for (int b = 0; b < blocks; b++) {
        for (int lane = 0; lane < kBlock; lane += kLanes) {
            const W *w = weights + ptrdiff_t(b) * kKernel * kKernel * kBlock + lane;
            const V shift = load(bias + b * kBlock + lane);
            const E *in[kKernel];
            for (int y = 0; y < kKernel; y++) in[y] = rows[y].p + b * rows[y].block + lane;
            E *o = out.p + b * out.block + lane;
            int q = 0;
            for (; q + kPixels <= pixels; q += kPixels) {
                depthwise_tile<kKernel, kStride, kPixels, A>(in, w, shift, o + ptrdiff_t(q) * kBlock);
                for (int y = 0; y < kKernel; y++) in[y] += kPixels * kStride * kBlock;
            }
            if (kPixels > 4 && q + 4 <= pixels) {
                depthwise_tile<kKernel, kStride, 4, A>(in, w, shift, o + ptrdiff_t(q) * kBlock);
                for (int y = 0; y < kKernel; y++) in[y] += 4 * kStride * kBlock;
                q += 4;
            }
            for (; q < pixels; q++) {
                depthwise_tile<kKernel, kStride, 1, A>(in, w, shift, o + ptrdiff_t(q) * kBlock);
                for (int y = 0; y < kKernel; y++) in[y] += kStride * kBlock;
            }
        }
    }
}

template <int kKernel, int kStride>
static void depthwise_act(Act act, const Row *rows, int blocks, const W *w, const W *b, int pixels, Row out) {
    switch (act) {
        case Act::none: return depthwise_row<kKernel, kStride, Act::none>(rows, blocks, w, b, pixels, out);
        case Act::hardswish: return depthwise_row<kKernel, kStride, Act::hardswish>(rows, blocks, w, b, pixels, out);
        case Act::gelu: return depthwise_row<kKernel, kStride, Act::gelu>(rows, blocks, w, b, pixels, out);
        case Act::relu: return depthwise_row<kKernel, kStride, Act::relu>(rows, blocks, w, b, pixels, out);
    }
}

// `rows` are the kernel's rows from the column of the first output's first tap.
EVS_INLINE void depthwise3(int stride, Act act, const Row *rows, int blocks, const W *w, const W *b, int pixels, Row out) {
    if (stride == 1) return depthwise_act<3, 1>(act, rows, blocks, w, b, pixels, out);
    return depthwise_act<3, 2>(act, rows, blocks, w, b, pixels, out);
}

EVS_INLINE void depthwise_any(int kernel, const Row *rows, int blocks, const W *w, const W *b, int pixels, Row out) {
    switch (kernel) {
        case 1: return depthwise_row<1, 1, Act::none>(rows, blocks, w, b, pixels, out);
        case 3: return depthwise_row<3, 1, Act::none>(rows, blocks, w, b, pixels, out);
        case 5: return depthwise_row<5, 1, Act::none>(rows, blocks, w, b, pixels, out);
        case 7: return depthwise_row<7, 1, Act::none>(rows, blocks, w, b, pixels, out);
    }
}

}  // namespace evs::EVS_ISA
