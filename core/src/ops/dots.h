// Dense convolutions in bfloat16: products of pairs of input channels, added in float32.
//
// The processor multiplies and adds pairs at once: AMX for 16 pixels by 16 output channels by 32 input channels,
// AVX512-BF16 for 16 output channels of one pixel (in dense.h). Both read weights in pairs: [16 outputs][tap][input channel / 2][16][2],
// the input channels padded with zeros to a multiple of kDotInputs.
#pragma once
#include "dense.h"
#include "vector.h"

namespace evs::EVS_ISA {

#if EVS_IS_BFLOAT16
constexpr int kDotInputs = EVS_AMX ? kBlock : 2;

// Numbers of the weights of 16 output channels.
inline ptrdiff_t dots_of(int inputs, int taps) { return ptrdiff_t(taps) * padded(inputs, kDotInputs) * kPacked; }

// Whether the weights of a convolution lie in pairs: all but those that read the image or planar rows.
EVS_INLINE bool takes_dots(const Dense &d) { return !d.planar && d.step % kBlock == 0; }

#if EVS_AMX
// Pixels that tile registers compute at once; fewer are computed with what follows them, see kOverread.
constexpr int kDotPixels = 32;

// Numbers of Line::sums: 32 for each pixel, [block][pixel][32].
inline ptrdiff_t sums_of_dots(int pixels, int blocks) { return ptrdiff_t(blocks) * padded(pixels, kDotPixels) * kBlock; }

// Finishes some pixels of 32 output channels. sums: 32 for each pixel.
template <Act kAct, bool kResidual>
EVS_INLINE void finish_pixels(const Dense &d, const Line &line, const float *sums, int pixel, int pixels, int block) {
    const V bias[2] = {load(d.bias + block * kBlock), load(d.bias + block * kBlock + 16)};
    const E *residual = kResidual ? line.residual.p + block * line.residual.block + ptrdiff_t(pixel) * kBlock : nullptr;
    E *to = line.out.p + block * line.out.block + ptrdiff_t(pixel) * kBlock;
#pragma GCC unroll 4
    for (int i = 0; i < pixels * 2; i++) {
        V v = activated<kAct>(*reinterpret_cast<const V *>(sums + i * 16) + bias[i % 2]);
        if constexpr (kResidual) v = v + load(residual + i * 16);
        store(to + i * 16, v);
    }
}

template <Act kAct>
EVS_INLINE void finish_act(const Dense &d, const Line &line, const float *sums, int pixel, int pixels, int block) {
    if (line.residual.p != nullptr) return finish_pixels<kAct, true>(d, line, sums, pixel, pixels, block);
    finish_pixels<kAct, false>(d, line, sums, pixel, pixels, block);
}

static __attribute__((noinline)) void finish(const Dense &d, const Line &line, const float *sums, int pixel, int pixels, int block) {
    switch (d.act) {
        case Act::none: return finish_act<Act::none>(d, line, sums, pixel, pixels, block);
        case Act::hardswish: return finish_act<Act::hardswish>(d, line, sums, pixel, pixels, block);
        case Act::gelu: return finish_act<Act::gelu>(d, line, sums, pixel, pixels, block);
        case Act::relu: return finish_act<Act::relu>(d, line, sums, pixel, pixels, block);
    }
}

constexpr int kTile = 16;        // pixels of a tile register
static_assert(kTile * 2 * kBlock * sizeof(E) <= kOverread);

// The whole registers: 16 rows of 64 bytes.
struct TileShape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

EVS_INLINE void begin_dots() {
    const TileShape shape;
    _tile_loadconfig(&shape);
}
EVS_INLINE void end_dots() { _tile_release(); }

// `all`: pixels of the row.
static __attribute__((noinline)) void dots_tile(const Dense &d, const Line &line, int pixel, int all, int block) {
    alignas(64) float own[kDotPixels * kBlock];
    float *sums = line.sums == nullptr ? own : line.sums + (ptrdiff_t(block) * padded(all, kDotPixels) + pixel) * kBlock;
    const int pixels = all - pixel < kDotPixels ? all - pixel : kDotPixels;
    const bool two = pixels > kTile;
    const ptrdiff_t stride = ptrdiff_t(d.step) * sizeof(E), per_half = dots_of(d.channels(), d.taps);
    const E *w = reinterpret_cast<const E *>(d.weights) + 2 * block * per_half + ptrdiff_t(d.first) * kPacked;
    if (d.begins()) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, kBlock * sizeof(float));
        _tile_loadd(1, sums + 16, kBlock * sizeof(float));
        _tile_loadd(2, sums + kTile * kBlock, kBlock * sizeof(float));
        _tile_loadd(3, sums + kTile * kBlock + 16, kBlock * sizeof(float));
    }
    for (int t = 0; t < d.taps; t++) {
        const E *x = line.from[t] + ptrdiff_t(pixel) * d.step;
        for (int c = 0; c < d.inputs; c += kBlock, x += d.block, w += kBlock * kPacked) {
            _tile_loadd(6, w, 64);
            _tile_loadd(7, w + per_half, 64);
            _tile_loadd(4, x, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (two) {
                _tile_loadd(5, x + kTile * ptrdiff_t(d.step), stride);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, sums, kBlock * sizeof(float));
    _tile_stored(1, sums + 16, kBlock * sizeof(float));
    if (two) {
        _tile_stored(2, sums + kTile * kBlock, kBlock * sizeof(float));
        _tile_stored(3, sums + kTile * kBlock + 16, kBlock * sizeof(float));
    }
    if (d.ends()) finish(d, line, sums, pixel, pixels, block);
}

static void dots(const Dense &d, const Line *lines, int count, int pixels) {
    for (int b = 0; b < d.outputs; b++)
        for (int i = 0; i < count; i++)
            for (int q = 0; q < pixels; q += kDotPixels) dots_tile(d, lines[i], q, pixels, b);
}
#else
// Numbers of Line::sums.
inline ptrdiff_t sums_of_dots(int pixels, int blocks) { return ptrdiff_t(blocks) * pixels * kBlock; }

static void dots(const Dense &d, const Line *lines, int count, int pixels) {
    if (d.step == kBlock) return dense_all<Pair, kBlock>(d, lines, count, pixels);
    dense_all<Pair, 0>(d, lines, count, pixels);
}
#endif
#endif

#if !EVS_AMX
EVS_INLINE void begin_dots() {}
EVS_INLINE void end_dots() {}
#endif

}  // namespace evs::EVS_ISA
