// Operations on features of at most 8 channels, whose blocks of channels would be half empty or more: here a vector holds
// neighbouring pixels of one channel. A row of such features is planar: channel c of pixel i is at p[c * block + i].
// Every output is summed in the same order as in dense.h and depthwise.h, so the results are the same bytes.
#pragma once
#include <utility>

#include "vector.h"

namespace evs::EVS_ISA {

typedef E Unaligned __attribute__((vector_size(EVS_BYTES), aligned(sizeof(E)), may_alias));

EVS_INLINE V load_any(const E *p) { return *reinterpret_cast<const Unaligned *>(p); }

// Stores the first `count` lanes.
EVS_INLINE void store_any(E *p, V v, int count) {
    if (count >= kLanes) {
        *reinterpret_cast<Unaligned *>(p) = v;
    } else {
        memcpy(p, &v, size_t(count) * sizeof(E));
    }
}

// Numbers of a plane of so many pixels: what is read a vector at a time may reach a vector beyond.
inline int plane_of(int pixels) { return (pixels + kLanes + kBlock - 1) / kBlock * kBlock; }

// Lanes first, first + 6, first + 12, ... of two vectors side by side, where they lie in them; any other lane elsewhere.
constexpr int within(int lane) { return lane >= 0 && lane < 2 * kLanes ? lane : 0; }

template <int kFirst, int... kLane>
EVS_INLINE V every_sixth(V a, V b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, within(kFirst + 6 * kLane)...);
#else
    return __builtin_shuffle(a, b, I{within(kFirst + 6 * kLane)...});
#endif
}

// Number j of every pair of pixels, which are six numbers each, from six vectors.
template <int j, int... kLane>
EVS_INLINE V of_pairs(const V *a, std::integer_sequence<int, kLane...> lanes) {
    constexpr int kTwo = 2 * kLanes;
    const V first = every_sixth<j>(a[0], a[1], lanes);
    const V second = every_sixth<j - kTwo>(a[2], a[3], lanes);
    const V third = every_sixth<j - 2 * kTwo>(a[4], a[5], lanes);
    const I in_second = {((j + 6 * kLane) / kTwo == 1 ? -1 : 0)...}, in_third = {((j + 6 * kLane) / kTwo == 2 ? -1 : 0)...};
    return in_third ? third : in_second ? second : first;
}

// From pixels with 3 numbers each to six planes: channels of the even pixels, then of the odd ones.
EVS_INLINE void split_pixels(const E *in, int pixels, E *out, int plane) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
    for (int k = 0; 2 * k < pixels; k += kLanes, in += 6 * kLanes) {
        V a[6];
        for (int i = 0; i < 6; i++) a[i] = load_any(in + i * kLanes);
        store(out + k, of_pairs<0>(a, lanes));
        store(out + plane + k, of_pairs<1>(a, lanes));
        store(out + 2 * ptrdiff_t(plane) + k, of_pairs<2>(a, lanes));
        store(out + 3 * ptrdiff_t(plane) + k, of_pairs<3>(a, lanes));
        store(out + 4 * ptrdiff_t(plane) + k, of_pairs<4>(a, lanes));
        store(out + 5 * ptrdiff_t(plane) + k, of_pairs<5>(a, lanes));
    }
}

// The 3x3 convolution with stride 2 at the image. `rows` are what split_pixels makes, from the first output's first tap.
template <Act A>
static void narrow_stem(const E *const *rows, int plane, const E *w, const E *bias, int pixels, Row out) {
    for (int x = 0; x < pixels; x += kLanes) {
        V sum[kNarrow];
        EVS_UNROLL
        for (int o = 0; o < kNarrow; o++) sum[o] = all(bias[o]);
        const E *k = w;
        for (int y = 0; y < 3; y++)
            EVS_UNROLL
            for (int t = 0; t < 9; t++, k += kBlock) {  // three columns of three channels
                const V in = load_any(rows[y] + ptrdiff_t(t % 6) * plane + t / 6 + x);
                EVS_UNROLL
                for (int o = 0; o < kNarrow; o++) sum[o] = sum[o] + in * all(k[o]);
            }
        EVS_UNROLL
        for (int o = 0; o < kNarrow; o++) store_any(out.p + o * out.block + x, activated<A>(sum[o]), pixels - x);
    }
}

// A 3x3 depthwise and a 1x1 convolution. `rows` are planar, from the first output's first tap.
template <Act A>
static void narrow_block(const Row *rows, const E *w2, const E *b2, const E *w3, const E *b3, bool residual,
                         int pixels, Row out) {
    for (int x = 0; x < pixels; x += kLanes) {
        V mid[kNarrow], sum[kNarrow];
        EVS_UNROLL
        for (int c = 0; c < kNarrow; c++) {
            V s = all(b2[c]);
            EVS_UNROLL
            for (int t = 0; t < 9; t++) s = s + load_any(rows[t / 3].p + c * rows[t / 3].block + t % 3 + x) * all(w2[t * kBlock + c]);
            mid[c] = activated<A>(s);
        }
        EVS_UNROLL
        for (int o = 0; o < kNarrow; o++) sum[o] = all(b3[o]);
        EVS_UNROLL
        for (int c = 0; c < kNarrow; c++)
            EVS_UNROLL
            for (int o = 0; o < kNarrow; o++) sum[o] = sum[o] + mid[c] * all(w3[c * kBlock + o]);
        EVS_UNROLL
        for (int o = 0; o < kNarrow; o++) {
            if (residual) sum[o] = sum[o] + load_any(rows[1].p + o * rows[1].block + 1 + x);
            store_any(out.p + o * out.block + x, sum[o], pixels - x);
        }
    }
}

}  // namespace evs::EVS_ISA
