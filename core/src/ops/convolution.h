// Dense convolutions of rows, by the kernel that suits the precision and the number of channels.
#pragma once
#include "dense.h"
#include "dots.h"

namespace evs::EVS_ISA {

// Writes `pixels` pixels of each row. Several rows at once read the weights only once.
EVS_INLINE void dense(const Dense &d, const Line *lines, int count, int pixels) {
#if EVS_IS_BFLOAT16
    if (takes_dots(d)) return dots(d, lines, count, pixels);
    if (d.image) return dense_all<Pixel, 0>(d, lines, count, pixels);
#else
    if (d.step == kBlock) return dense_all<E, kBlock>(d, lines, count, pixels);
#endif
    dense_all<E, 0>(d, lines, count, pixels);
}

// Where the weights of a block of outputs begin.
EVS_INLINE const W *weights_from(const W *weights, int block, int inputs) {
#if EVS_IS_BFLOAT16
    return reinterpret_cast<const W *>(reinterpret_cast<const E *>(weights) + block * (kBlock / kPacked) * dots_of(inputs, 1));
#else
    return weights + ptrdiff_t(block) * inputs * kBlock;
#endif
}

// One row of the 1x1 case.
EVS_INLINE void pointwise(Row in, int inputs, const W *weights, const W *bias, Act act, int pixels, Row out,
                          int out_blocks, Row residual, bool planar = false) {
    const Dense d{weights, bias, inputs, out_blocks, 1, in.block, planar ? 1 : kBlock, act, planar};
    const Line line{{in.p}, out, residual};
    dense(d, &line, 1, pixels);
}

// The same to `outputs` channels, whose weights may be in pairs.
EVS_INLINE void projection(Row in, int inputs, const W *weights, const W *bias, Act act, int pixels, Row out, int outputs, Row residual) {
    if (!takes_pairs(inputs, outputs)) return pointwise(in, inputs, weights, bias, act, pixels, out, blocks_of(outputs), residual);
    pointwise_pairs(Dense{weights, bias, inputs, 1, 1, in.block, kBlock, act}, Line{{in.p}, out, residual}, pixels);
}

}  // namespace evs::EVS_ISA
