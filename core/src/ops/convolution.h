// Dense convolutions of one output row, by the kernel that suits the precision and the number of channels.
#pragma once
#include "dense.h"
#include "dots.h"

namespace evs::EVS_ISA {

// Writes `pixels` pixels of one row.
EVS_INLINE void dense(const Dense &d, Act act, int pixels, Row out) {
#if EVS_IS_BFLOAT16
    if (takes_dots(d)) return dots(d, act, pixels, out);
#endif
    switch (act) {
        case Act::none: return dense_act<Act::none>(d, pixels, out);
        case Act::hardswish: return dense_act<Act::hardswish>(d, pixels, out);
        case Act::gelu: return dense_act<Act::gelu>(d, pixels, out);
    }
}

// The 1x1 case.
EVS_INLINE void pointwise(Row in, int inputs, const W *weights, const W *bias, Act act, int pixels, Row out,
                          int out_blocks, Row residual, bool planar = false) {
    const Dense d{weights, bias, inputs, out_blocks, 1, {in.p}, in.block, planar ? 1 : kBlock, residual, planar};
    dense(d, act, pixels, out);
}

// The same to `outputs` channels, whose weights may be in pairs.
EVS_INLINE void projection(Row in, int inputs, const W *weights, const W *bias, Act act, int pixels, Row out, int outputs, Row residual) {
    if (!takes_pairs(inputs, outputs)) return pointwise(in, inputs, weights, bias, act, pixels, out, blocks_of(outputs), residual);
    pointwise_pairs(Dense{weights, bias, inputs, 1, 1, {in.p}, in.block, kBlock, residual}, act, pixels, out);
}

}  // namespace evs::EVS_ISA
