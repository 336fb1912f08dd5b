// Dense convolutions of one output row: sums over taps (1 for 1x1, 9 for 3x3) and input channels.
//
// A tile of kPixels pixels by kBlocks blocks of output channels stays in registers; each step broadcasts one input
// number per pixel and multiplies it by the weights of the tile's channels; with AVX512-BF16, two numbers side by side.
// Weights: [output block][tap][input channel][kBlock], or of pairs of channels, [output block][tap][input channel / 2][kBlock][2].
#pragma once
#include "vector.h"

namespace evs::EVS_ISA {

constexpr int kMaxTaps = 9;

// What the rows of one convolution have in common.
struct Dense {
    const W *weights, *bias;  // weights of pairs, or for dots.h, are E
    int inputs;       // channels
    int outputs;      // blocks
    int taps;
    ptrdiff_t block;  // of the input; of one plane, where planar
    int step;         // numbers between the inputs of neighbouring output pixels
    Act act;
    bool planar = false, image = false;  // whether the input is planar (see narrow.h)
    // Sums may be taken in several steps, each over some of the input channels, in their order. Only then:
    int all = 0;      // input channels of all steps
    int first = 0;    // the first one of this step
    bool begins() const { return first == 0; }
    bool ends() const { return all == 0 || first + inputs == all; }
    int channels() const { return all > 0 ? all : inputs; }
};

// One row.
struct Line {
    const E *from[kMaxTaps];  // first pixel of the row each tap reads; Pixel, not E, where the input is the image
    Row out;
    Row residual;  // p is null where there is none
    float *sums = nullptr;  // between the steps in bfloat16, like `out`; in other precisions they lie there
};

// What a tile multiplies: one channel's number by the weights of its channels, of whatever type the numbers are.
template <typename X>
struct Product {
    typedef X Number;
    typedef W Weight;
    static constexpr int kChannels = 1;
    EVS_INLINE V input(const X *x) { return all(*x); }
    EVS_INLINE V weights(const W *w) { return load(w); }
    EVS_INLINE V add(V sum, V in, V k) { return sum + in * k; }
};

#if EVS_IS_BFLOAT16 && !EVS_AMX
// Two neighbouring channels, whose products the processor adds at once.
struct Pair;
template <>
struct Product<Pair> {
    typedef E Number, Weight;
    static constexpr int kChannels = 2;
    EVS_INLINE V input(const E *x) {
        int two;
        memcpy(&two, x, sizeof two);
        return (V)_mm512_set1_epi32(two);
    }
    EVS_INLINE V weights(const E *w) { return (V)_mm512_load_si512(w); }
    EVS_INLINE V add(V sum, V in, V k) { return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)in, (__m512bh)k); }
};
#endif

static __attribute__((noinline)) void gelu_all(V *v, int count) {
    for (int i = 0; i < count; i++) v[i] = gelu(v[i]);
}

// Neighbouring tiles of a row. kStep: d.step where it is known when compiling, which saves computing addresses; else 0.
// While the first tiles are computed, the weights of the next blocks, `ahead` of them, come to the second-level cache.
template <int kPixels, int kBlocks, typename X, int kStep>
static __attribute__((noinline)) void dense_tiles(const Dense &d, const Line &line, int pixel, int tiles, int block, int ahead) {
    using P = Product<X>;
    constexpr int kVectors = kBlocks * kPerBlock, kWeights = kLanes * P::kChannels;
    const ptrdiff_t step = kStep > 0 ? kStep : d.step, per_block = ptrdiff_t(d.taps) * padded(d.channels(), P::kChannels) * kBlock;
    for (int tile = 0; tile < tiles; tile++, pixel += kPixels) {
        V sum[kPixels][kVectors];
        auto w = reinterpret_cast<const typename P::Weight *>(d.weights) + block * per_block + ptrdiff_t(d.first) * kBlock;
        const ptrdiff_t next = (tile < ahead ? kBlocks + tile : 0) * per_block;
        auto place = [&](Row row, int q, int j) __attribute__((always_inline)) {
            return row.p + (block + j / kPerBlock) * row.block + ptrdiff_t(pixel) * kBlock + (q * kBlock + (j % kPerBlock) * kLanes);
        };
        // Where sums lie between the steps.
        auto between = [&](int q, int j) __attribute__((always_inline)) {
#if EVS_IS_BFLOAT16
            return line.sums + (place(line.out, q, j) - line.out.p);
#else
            return place(line.out, q, j);
#endif
        };
        EVS_UNROLL
        for (int j = 0; j < kVectors; j++) {
            const V b = load(d.bias + block * kBlock + j * kLanes);
            EVS_UNROLL
            for (int q = 0; q < kPixels; q++) sum[q][j] = b;
        }
        if (!d.begins()) {
            EVS_UNROLL
            for (int i = 0; i < kPixels * kVectors; i++) sum[i / kVectors][i % kVectors] = load(between(i / kVectors, i % kVectors));
        }
        for (int t = 0; t < d.taps; t++) {
            auto x = reinterpret_cast<const typename P::Number *>(line.from[t]) + pixel * step;
            int left = d.inputs;
            auto channel = [&](int c) __attribute__((always_inline)) {
                V k[kVectors];
                EVS_UNROLL
                for (int j = 0; j < kVectors; j++) k[j] = P::weights(w + (j / kPerBlock) * per_block + (j % kPerBlock) * kWeights);
                __builtin_prefetch(w + next, 0, 2);
                EVS_UNROLL
                for (int q = 0; q < kPixels; q++) {
                    const V in = P::input(x + q * step + c);
                    EVS_UNROLL
                    for (int j = 0; j < kVectors; j++) sum[q][j] = P::add(sum[q][j], in, k[j]);
                }
                w += kBlock * P::kChannels;
            };
            if (kStep == 0 && P::kChannels == 1 && d.planar) {
                for (; left > 0; left--, x += d.block) {
                    EVS_UNROLL
                    for (int j = 0; j < kVectors; j++) {
                        const V k = P::weights(w + (j / kPerBlock) * per_block + (j % kPerBlock) * kLanes);
                        EVS_UNROLL
                        for (int q = 0; q < kPixels; q++) sum[q][j] = P::add(sum[q][j], P::input(x + q), k);
                    }
                    w += kBlock;
                }
            }
            for (; left >= kBlock; left -= kBlock, x += d.block) {
                for (int c = 0; c < kBlock; c += 4 * P::kChannels) {
                    EVS_UNROLL
                    for (int i = 0; i < 4; i++) channel(c + i * P::kChannels);
                }
            }
            for (int c = 0; c < left; c += P::kChannels) channel(c);
        }
#if EVS_IS_BFLOAT16
        if (!d.ends()) {
            EVS_UNROLL
            for (int i = 0; i < kPixels * kVectors; i++) *reinterpret_cast<V *>(between(i / kVectors, i % kVectors)) = sum[i / kVectors][i % kVectors];
            continue;
        }
#endif
        if (d.act == Act::hardswish) {
            EVS_UNROLL
            for (int i = 0; i < kPixels * kVectors; i++) sum[i / kVectors][i % kVectors] = hardswish(sum[i / kVectors][i % kVectors]);
        } else if (d.act == Act::relu) {
            EVS_UNROLL
            for (int i = 0; i < kPixels * kVectors; i++) sum[i / kVectors][i % kVectors] = relu(sum[i / kVectors][i % kVectors]);
        } else if (d.act == Act::gelu) {
            V copy[kPixels * kVectors];  // so that the sums themselves stay in registers
            EVS_UNROLL
            for (int i = 0; i < kPixels * kVectors; i++) copy[i] = sum[i / kVectors][i % kVectors];
            gelu_all(copy, kPixels * kVectors);
            EVS_UNROLL
            for (int i = 0; i < kPixels * kVectors; i++) sum[i / kVectors][i % kVectors] = copy[i];
        }
        const bool adds = line.residual.p != nullptr && d.ends();
        EVS_UNROLL
        for (int i = 0; i < kPixels * kVectors; i++) {
            const int q = i / kVectors, j = i % kVectors;
            if (adds) sum[q][j] = sum[q][j] + load(place(line.residual, q, j));
            store(place(line.out, q, j), sum[q][j]);
        }
    }
}

// The tiles that fill the vector registers: 32 of 64 bytes, 16 of 32 bytes, or 32 or 16 of 16 bytes.
#if EVS_AMX  // dots.h computes the others; here a block has two vectors
constexpr int kTileBlocks = 1;
constexpr int kTilePixels[kTileBlocks + 1] = {0, 12};
#elif EVS_BYTES == 64
constexpr int kTileBlocks = 4;
constexpr int kTilePixels[kTileBlocks + 1] = {0, 14, 12, 8, 6};
#elif EVS_BYTES == 32
constexpr int kTileBlocks = 1;
constexpr int kTilePixels[kTileBlocks + 1] = {0, 6};
#elif defined(__aarch64__)
constexpr int kTileBlocks = 1;
constexpr int kTilePixels[kTileBlocks + 1] = {0, 6};
#elif defined(__wasm__)  // V8 has 15 registers, too few for this, and is faster all the same than with smaller tiles
constexpr int kTileBlocks = 1;
constexpr int kTilePixels[kTileBlocks + 1] = {0, 4};
#else
constexpr int kTileBlocks = 1;
constexpr int kTilePixels[kTileBlocks + 1] = {0, 3};
#endif

// `tiles` tiles of `pixels` pixels each, up to kPixels.
template <int kPixels, int kBlocks, typename X, int kStep>
static void dense_pixels(const Dense &d, const Line &line, int pixel, int pixels, int tiles, int block, int ahead) {
    if constexpr (kPixels > 1) {
        if (pixels < kPixels) return dense_pixels<kPixels - 1, kBlocks, X, kStep>(d, line, pixel, pixels, tiles, block, ahead);
    }
    dense_tiles<kPixels, kBlocks, X, kStep>(d, line, pixel, tiles, block, ahead);
}

// Rows are divided evenly among as few tiles as can be: the smaller a tile, the more it loads per product.
template <int kBlocks, typename X, int kStep>
static void dense_blocks(const Dense &d, const Line *lines, int count, int pixels, int block) {
    constexpr int kPixels = kTilePixels[kBlocks];
    if (pixels <= 0) return;  // a batch may end with rows outside the image
    const int tiles = (pixels + kPixels - 1) / kPixels, some = pixels / tiles, larger = pixels % tiles;
    const int left = d.outputs - block - kBlocks;
    for (int i = 0; i < count; i++) {
        const int ahead = i > 0 ? 0 : left < kBlocks ? left : kBlocks;
        if (larger > 0) dense_pixels<kPixels, kBlocks, X, kStep>(d, lines[i], 0, some + 1, larger, block, ahead);
        if (larger < tiles) dense_pixels<kPixels, kBlocks, X, kStep>(d, lines[i], larger * (some + 1), some, tiles - larger, block, ahead);
    }
}

template <typename X, int kStep>
static void dense_all(const Dense &d, const Line *lines, int count, int pixels) {
    int block = 0;
#if EVS_BYTES == 64 && !EVS_AMX
    // Mostly 8 pixels by 3 blocks: they read fewer weights per product than 6 by 4, which come from the second-level cache.
    for (; d.outputs - block >= 3 && d.outputs - block != 4; block += 3) dense_blocks<3, X, kStep>(d, lines, count, pixels, block);
    for (; d.outputs - block >= 4; block += 4) dense_blocks<4, X, kStep>(d, lines, count, pixels, block);
    for (; d.outputs - block >= 2; block += 2) dense_blocks<2, X, kStep>(d, lines, count, pixels, block);
#endif
    for (; block < d.outputs; block++) dense_blocks<1, X, kStep>(d, lines, count, pixels, block);
}

// Whether a projection has so few outputs that half of a block would be empty.
constexpr bool takes_pairs(int inputs, int outputs) { return EVS_IS_FLOAT16 && EVS_BYTES == 64 && outputs <= kPacked && inputs % 2 == 0; }

#if EVS_IS_FLOAT16 && EVS_BYTES == 64
typedef uint32_t Pairs __attribute__((vector_size(EVS_BYTES), aligned(EVS_BYTES), may_alias));
typedef uint16_t Halves __attribute__((vector_size(EVS_BYTES / 2), aligned(EVS_BYTES / 2), may_alias));

// A row of a 1x1 convolution to 16 channels. Two neighbouring lanes hold the sums of one output over the even and the odd input
// channels; a pair of inputs is broadcast at once. Weights: [input channel / 2][16][2].
template <int kPixels, Act kAct>
static __attribute__((noinline)) void pairs_tile(const Dense &d, const Line &line, int pixel) {
    V sum[kPixels];
    const Pairs bias = __builtin_convertvector(*reinterpret_cast<const Halves *>(d.bias), Pairs);  // of the even channels
    EVS_UNROLL
    for (int q = 0; q < kPixels; q++) sum[q] = reinterpret_cast<const V &>(bias);
    const E *x = line.from[0] + ptrdiff_t(pixel) * kBlock, *w = d.weights;
    for (int c = 0; c < d.inputs; c += 2, w += 2 * kPacked) {
        const V k = load(w);
        const E *at = x + (c / kBlock) * d.block + c % kBlock;
        EVS_UNROLL
        for (int q = 0; q < kPixels; q++) {
            uint32_t two;
            memcpy(&two, at + q * kBlock, sizeof two);
            const Pairs pairs = Pairs{} + two;
            sum[q] = sum[q] + reinterpret_cast<const V &>(pairs) * k;
        }
    }
    EVS_UNROLL
    for (int q = 0; q < kPixels; q++) {
        const Pairs odd = reinterpret_cast<const Pairs &>(sum[q]) >> 16;
        V v = activated<kAct>(sum[q] + reinterpret_cast<const V &>(odd));
        const Halves numbers = __builtin_convertvector(reinterpret_cast<const Pairs &>(v), Halves);
        const ptrdiff_t at = ptrdiff_t(pixel + q) * kBlock;
        G g = reinterpret_cast<const G &>(numbers);
        if (line.residual.p != nullptr) g = g + *reinterpret_cast<const G *>(line.residual.p + at);
        *reinterpret_cast<G *>(line.out.p + at) = g;
        *reinterpret_cast<G *>(line.out.p + at + kPacked) = G{};
    }
}

template <Act kAct>
static void pairs_act(const Dense &d, const Line &line, int pixels) {
    constexpr int kPixels = 14;
    int q = 0;
    for (; q + kPixels <= pixels; q += kPixels) pairs_tile<kPixels, kAct>(d, line, q);
    for (; q + 4 <= pixels; q += 4) pairs_tile<4, kAct>(d, line, q);
    for (; q < pixels; q++) pairs_tile<1, kAct>(d, line, q);
}

EVS_INLINE void pointwise_pairs(const Dense &d, const Line &line, int pixels) {
    switch (d.act) {
        case Act::none: return pairs_act<Act::none>(d, line, pixels);
        case Act::hardswish: return pairs_act<Act::hardswish>(d, line, pixels);
        case Act::gelu: return pairs_act<Act::gelu>(d, line, pixels);
        case Act::relu: return pairs_act<Act::relu>(d, line, pixels);
    }
}
#else
EVS_INLINE void pointwise_pairs(const Dense &, const Line &, int) {}
#endif

}  // namespace evs::EVS_ISA
