// ReLU linear attention in two passes over the tokens: sums of keys and values, then their application to queries.
//
// For one head, with d channels: T[j][i] = sum over tokens of k_j v_i, z[j] = sum of k_j; the answer to a query q is
// (sum_j q_j T[j]) / (sum_j q_j z_j). Sums of one head lie as T (d x d), then z (d).
#pragma once
#include "vector.h"

namespace evs::EVS_ISA {

template <typename T>
EVS_INLINE T relu(T x) { return max(x, T{}); }

inline int sums_of_head(int dim) { return dim * dim + dim; }

// 16 channels of some pixels as floats, 16 for each pixel.
EVS_INLINE const float *floats_of(const E *p, int pixels, float *space) {
#if EVS_HALF
    for (int q = 0; q < pixels; q++)
        for (int lane = 0; lane < 16; lane += kFloats)
            *reinterpret_cast<F *>(space + q * 16 + lane) = load_floats(p + q * kBlock + lane);
    return space;
#else
    (void)pixels, (void)space;
    return p;
#endif
}

EVS_INLINE F load_f(const float *p) { return *reinterpret_cast<const F *>(p); }
EVS_INLINE void store_f(float *p, F v) { *reinterpret_cast<F *>(p) = v; }

// Adds the sums of `pixels` tokens of a row, at most kSumColumns, to `sums`. k and v are the first channels of one head.
static __attribute__((noinline)) void add_sums(Row k, Row v, int dim, int pixels, float *sums) {
    float *z = sums + dim * dim;
    alignas(64) float keys[kSumColumns * 16], space[kSumColumns * 16];
    for (int jb = 0; jb < dim; jb += 16) {
        const float *raw = floats_of(k.channels_from(jb).p, pixels, keys);
        for (int i = 0; i < pixels * 16; i += kFloats) store_f(keys + i, relu(load_f(raw + i)));
        for (int vb = 0; vb < dim; vb += 16) {
            const float *values = floats_of(v.channels_from(vb).p, pixels, space);
            for (int ib = 0; ib < 16; ib += kFloats) {
                F t[16];
                for (int j = 0; j < 16; j++) t[j] = F{};
                const float *key = keys, *val = values + ib;
                for (int q = 0; q < pixels; q++, key += 16, val += 16) {
                    const F value = load_f(val);
#pragma GCC unroll 16
                    for (int j = 0; j < 16; j++) t[j] = t[j] + all_floats(key[j]) * value;
                }
                for (int j = 0; j < 16; j++) {
                    float *at = sums + (jb + j) * dim + vb + ib;
                    store_f(at, load_f(at) + t[j]);
                }
            }
        }
        for (int lane = 0; lane < 16; lane += kFloats) {
            const float *key = keys + lane;
            F total = F{};
            for (int q = 0; q < pixels; q++, key += 16) total = total + load_f(key);
            store_f(z + jb + lane, load_f(z + jb + lane) + total);
        }
    }
}

// q: 16 floats for each pixel, `block` from 16 channels to the next.
template <int kPixels>
static __attribute__((noinline)) void answer(const float *q, ptrdiff_t block, int dim, const float *sums, float eps, Row out) {
    const float *z = sums + dim * dim;
    float inverse[kPixels] = {};  // not a product of two broadcasts: compilers would make a scalar one, and not fuse it
    for (int j = 0; j < dim; j++) {
        const float *qj = q + (j / 16) * block + j % 16;
        EVS_UNROLL
        for (int p = 0; p < kPixels; p++) inverse[p] = inverse[p] + qj[p * 16] * z[j];
    }
    EVS_UNROLL
    for (int p = 0; p < kPixels; p++) inverse[p] = 1.0f / (inverse[p] + eps > 0x1p-100f ? inverse[p] + eps : 0x1p-100f);
    for (int ib = 0; ib < dim; ib += kFloats) {
        F sum[kPixels];
        EVS_UNROLL
        for (int p = 0; p < kPixels; p++) sum[p] = F{};
        for (int j = 0; j < dim; j++) {
            const F t = load_f(sums + j * dim + ib);
            const float *qj = q + (j / 16) * block + j % 16;
            EVS_UNROLL
            for (int p = 0; p < kPixels; p++) sum[p] = sum[p] + all_floats(qj[p * 16]) * t;
        }
        EVS_UNROLL
        for (int p = 0; p < kPixels; p++) store_floats(out.channels_from(ib).p + p * kBlock, sum[p] * all_floats(inverse[p]));
    }
}

constexpr int kMaxDim = 256;

template <int kPixels>
EVS_INLINE void answer_pixels(Row q, int dim, const float *sums, float eps, Row out) {
#if EVS_HALF
    alignas(64) float floats[kMaxDim * kPixels];
    for (int j = 0; j < dim; j += 16) floats_of(q.channels_from(j).p, kPixels, floats + j * kPixels);
    answer<kPixels>(floats, 16 * kPixels, dim, sums, eps, out);
#else
    answer<kPixels>(q.p, q.block, dim, sums, eps, out);
#endif
}

// Answers of one head to `pixels` queries of a row, which are positive already.
EVS_INLINE void answers(Row q, int dim, const float *sums, float eps, int pixels, Row out) {
    constexpr int kPixels = EVS_BYTES == 64 ? 8 : 4;
    int p = 0;
    for (; p + kPixels <= pixels; p += kPixels) answer_pixels<kPixels>(q.from(p), dim, sums, eps, out.from(p));
    for (; p < pixels; p++) answer_pixels<1>(q.from(p), dim, sums, eps, out.from(p));
}

}  // namespace evs::EVS_ISA
