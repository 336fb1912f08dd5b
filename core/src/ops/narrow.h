// Operations on features of at most 8 channels, whose blocks of channels would be half empty or more: here a vector holds
// neighbouring pixels of one channel. A row of such features is planar: channel c of pixel i is at p[c * block + i].
// Every output is summed in the same order as in dense.h and depthwise.h, so the results are the same bytes.
#pragma once
#include <utility>

#include "vector.h"

namespace evs::EVS_ISA {

typedef A Unaligned __attribute__((vector_size(EVS_BYTES), aligned(sizeof(A)), may_alias));

EVS_INLINE V load_any(const E *p) {
#if EVS_IS_BFLOAT16
    return load(p);
#else
    return *reinterpret_cast<const Unaligned *>(p);
#endif
}

// Stores the first `count` lanes.
EVS_INLINE void store_any(E *p, V v, int count) {
#if EVS_IS_BFLOAT16
    if (count >= kLanes) return store(p, v);
    E numbers[kLanes];
    store(numbers, v);
    memcpy(p, numbers, size_t(count) * sizeof(E));
#else
    if (count >= kLanes) {
        *reinterpret_cast<Unaligned *>(p) = v;
    } else {
        memcpy(p, &v, size_t(count) * sizeof(E));
    }
#endif
}

// Number of elements of a plane with this many pixels: reading whole vectors may reach one vector beyond them.
inline int plane_of(int pixels) { return (pixels + kLanes + kBlock - 1) / kBlock * kBlock; }

// Two pixels are three words of two bytes. kWords of these are split at a time.
constexpr int kWords = EVS_BYTES == 64 ? 32 : 8;
typedef uint16_t Words __attribute__((vector_size(kWords * 2), aligned(2), may_alias));
typedef uint16_t LaneWords __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

// Words first, first + 3, first + 6, ... of three vectors side by side.
template <int first, int... k>
EVS_INLINE Words every_third(Words a, Words b, Words c, std::integer_sequence<int, k...>) {
#if defined(__clang__)
    const Words two = __builtin_shufflevector(a, b, (first + 3 * k) % (2 * kWords)...);
    return __builtin_shufflevector(two, c, (first + 3 * k < 2 * kWords ? k : first + 3 * k - kWords)...);
#else
    const Words two = __builtin_shuffle(a, b, Words{(first + 3 * k) % (2 * kWords)...});
    return __builtin_shuffle(two, c, Words{(first + 3 * k < 2 * kWords ? k : first + 3 * k - kWords)...});
#endif
}

EVS_INLINE void normalise(Words words, float scale, float shift, E *out) {
    for (int i = 0; i < kWords; i += kLanes) {
        LaneWords part;
        memcpy(&part, reinterpret_cast<const char *>(&words) + i * 2, sizeof part);
        store(out + i, all(A(shift)) + __builtin_convertvector(part, V) * all(A(scale)));
    }
}

// From RGB pixels of 3 bytes to six planes of normalised numbers: channels of the even pixels, then of the odd ones.
// Reads up to 6 * kWords bytes, and writes up to kWords numbers, more than there are.
EVS_INLINE void split_pixels(const uint8_t *in, int pixels, const float *scale, const float *shift, E *out, int plane) {
    constexpr auto lanes = std::make_integer_sequence<int, kWords>();
    for (int k = 0; 2 * k < pixels; k += kWords, in += 6 * kWords, out += kWords) {
        Words part[3];
        memcpy(part, in, sizeof part);
        const Words words[3] = {every_third<0>(part[0], part[1], part[2], lanes), every_third<1>(part[0], part[1], part[2], lanes),
                                every_third<2>(part[0], part[1], part[2], lanes)};
        for (int j = 0; j < 6; j++)  // the first of a word's bytes is its lower one
            normalise(j % 2 ? words[j / 2] >> 8 : words[j / 2] & 255, scale[j % 3], shift[j % 3], out + ptrdiff_t(j) * plane);
    }
}

// The 3x3 convolution with stride 2 at the image. `rows` are what split_pixels makes, from the first output's first tap.
template <Act A>
static void narrow_stem(const E *const *rows, int plane, const W *w, const W *bias, int pixels, Row out) {
    for (int x = 0; x < pixels; x += kLanes) {
        V sum[kNarrow];
        EVS_UNROLL
        for (int o = 0; o < kNarrow; o++) sum[o] = all(bias[o]);
        const W *k = w;
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
static void narrow_block(const Row *rows, const W *w2, const W *b2, const W *w3, const W *b3, bool residual,
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
