// ReLU linear attention in two passes over the tokens: sums of keys and values, then their application to queries.
//
// For one head, with d channels: T[j][i] = sum over tokens of k_j v_i, z[j] = sum of k_j; the answer to a query q is
// (sum_j q_j T[j]) / (sum_j q_j z_j). Sums of one head lie as T (d x d), then z (d).
#pragma once
#include "vector.h"

namespace evs::EVS_ISA {

// 16 numbers, those below 0 as 0.
EVS_INLINE void rectify(const E *from, E *to) {
    for (int lane = 0; lane < 16; lane += kGroup) {
#if EVS_IS_FLOAT16
        *reinterpret_cast<G *>(to + lane) = relu(*reinterpret_cast<const G *>(from + lane));
#else
        store(to + lane, relu(load(from + lane)));
#endif
    }
}

inline int sums_of_head(int dim) { return dim * dim + dim; }

// 16 channels of some pixels as floats, 16 for each pixel.
EVS_INLINE const float *floats_of(const E *p, int pixels, float *space) {
#if !EVS_IS_FLOAT32
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

// Adds t[j] += k_j v over some tokens, 16 floats each, and totals += k where wanted.
template <bool kTotals>
EVS_INLINE void add_products(const float *key, const float *value, int pixels, F *t, F *totals) {
    for (int q = 0; q < pixels; q++, key += 16, value += 16) {
        const F v = load_f(value);
        EVS_UNROLL
        for (int j = 0; j < 16; j++) t[j] = t[j] + all_floats(key[j]) * v;
        if constexpr (kTotals) {
            EVS_UNROLL
            for (int i = 0; i < 16 / kFloats; i++) totals[i] = totals[i] + load_f(key + i * kFloats);
        }
    }
}

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
                F t[16] = {};
                if (vb == 0 && ib == 0) {
                    F totals[16 / kFloats] = {};
                    add_products<true>(keys, values, pixels, t, totals);
                    for (int i = 0; i < 16 / kFloats; i++) store_f(z + jb + i * kFloats, load_f(z + jb + i * kFloats) + totals[i]);
                } else {
                    add_products<false>(keys, values + ib, pixels, t, nullptr);
                }
                EVS_UNROLL
                for (int j = 0; j < 16; j++) {
                    float *at = sums + (jb + j) * dim + vb + ib;
                    store_f(at, load_f(at) + t[j]);
                }
            }
        }
    }
}

// Adds t_j q_j and, where wanted, z_j q_j over the channels of a head, for some channels of the answer.
template <bool kDivisors, int kPixels, int kVectors>
EVS_INLINE void add_answers(const float *q, ptrdiff_t block, int dim, const float *t, const float *z, F (*sum)[kVectors], F *divisors) {
    for (int j = 0; j < dim; j++, t += dim, z += kFloats) {
        const float *qj = q + (j / 16) * block + j % 16;
        EVS_UNROLL
        for (int p = 0; p < kPixels; p++) {
            const F in = hidden(all_floats(qj[p * 16]));
            EVS_UNROLL
            for (int v = 0; v < kVectors; v++) sum[p][v] = sum[p][v] + in * load_f(t + v * kFloats);
            if constexpr (kDivisors) divisors[p] = divisors[p] + in * load_f(z);
        }
    }
}

// q: 16 floats for each pixel, `block` from 16 channels to the next. z: kFloats times each of the sums of keys.
template <int kPixels, int kVectors>
static __attribute__((noinline)) void answer(const float *q, ptrdiff_t block, int dim, const float *sums, const float *z, float eps, Row out) {
    F inverse[kPixels] = {};
    for (int ib = 0; ib < dim; ib += kVectors * kFloats) {
        F sum[kPixels][kVectors] = {};
        if (ib == 0) {
            add_answers<true, kPixels, kVectors>(q, block, dim, sums, z, sum, inverse);
            EVS_UNROLL
            for (int p = 0; p < kPixels; p++) {  // all lanes of a divisor are the same: one division is enough
                const float divisor = max(inverse[p] + all_floats(eps), all_floats(0x1p-100f))[0];
                inverse[p] = all_floats(1.0f / divisor);
            }
        } else {
            add_answers<false, kPixels, kVectors>(q, block, dim, sums + ib, z, sum, inverse);
        }
        EVS_UNROLL
        for (int p = 0; p < kPixels; p++) {
            EVS_UNROLL
            for (int v = 0; v < kVectors; v++) {
                const int c = ib + v * kFloats;
                store_floats(out.channels_from(c).p + p * kBlock, sum[p][v] * inverse[p]);
            }
        }
    }
}

constexpr int kMaxDim = 256;

template <int kPixels>
EVS_INLINE void answer_pixels(Row q, int dim, const float *sums, const float *z, float eps, Row out) {
#if !EVS_IS_FLOAT32
    alignas(64) float floats[kMaxDim * kPixels];
    for (int j = 0; j < dim; j += 16) floats_of(q.channels_from(j).p, kPixels, floats + j * kPixels);
    const float *from = floats;
    const ptrdiff_t block = 16 * kPixels;
#else
    const float *from = q.p;
    const ptrdiff_t block = q.block;
#endif
    if (dim % (2 * kFloats) == 0) {
        answer<kPixels, 2>(from, block, dim, sums, z, eps, out);
    } else {
        answer<kPixels, 1>(from, block, dim, sums, z, eps, out);
    }
}

// Answers of one head to `pixels` queries of a row, which are positive already.
EVS_INLINE void answers(Row q, int dim, const float *sums, float eps, int pixels, Row out) {
    constexpr int kPixels = EVS_BYTES == 64 ? 8 : 4;
    // From memory: a compiler would make a scalar product of two broadcasts, and not fuse it with the sum.
    alignas(64) float z[kMaxDim * kFloats];
    for (int j = 0; j < dim; j++) store_f(z + j * kFloats, all_floats(sums[dim * dim + j]));
    int p = 0;
    for (; p + kPixels <= pixels; p += kPixels) answer_pixels<kPixels>(q.from(p), dim, sums, z, eps, out.from(p));
    for (; p < pixels; p++) answer_pixels<1>(q.from(p), dim, sums, z, eps, out.from(p));
}

}  // namespace evs::EVS_ISA
