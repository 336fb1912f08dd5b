// ReLU linear attention in two passes over the tokens: sums of keys and values, then their application to queries.
//
// For one head, with d channels: T[j][i] = sum over tokens of k_j v_i, z[j] = sum of k_j; the answer to a query q is
// (sum_j q_j T[j]) / (sum_j q_j z_j). Sums of one head lie as T (d x d), then z (d).
#pragma once
#include "vector.h"

namespace evs::EVS_ISA {

EVS_INLINE V relu(V x) { return max(x, all(0.0f)); }

inline int sums_of_head(int dim) { return dim * dim + dim; }

// Adds the sums of `pixels` tokens of a row to `sums`. k and v are the first blocks of one head.
EVS_INLINE void add_sums(Row k, Row v, int dim, int pixels, float *sums) {
    float *z = sums + dim * dim;
    for (int jb = 0; jb < dim; jb += kBlock) {
        for (int ib = 0; ib < dim; ib += kLanes) {
            V t[kBlock];
            for (int j = 0; j < kBlock; j++) t[j] = V{};
            const float *key = k.p + (jb / kBlock) * k.block;
            const float *val = v.p + (ib / kBlock) * v.block + ib % kBlock;
            for (int q = 0; q < pixels; q++, key += kBlock, val += kBlock) {
                const V value = load(val);
#pragma GCC unroll 16
                for (int j = 0; j < kBlock; j++) {
                    const float kj = key[j] > 0.0f ? key[j] : 0.0f;
                    t[j] = t[j] + all(kj) * value;
                }
            }
            for (int j = 0; j < kBlock; j++) {
                float *at = sums + (jb + j) * dim + ib;
                store(at, load(at) + t[j]);
            }
        }
        for (int lane = 0; lane < kBlock; lane += kLanes) {
            const float *key = k.p + (jb / kBlock) * k.block + lane;
            V total = V{};
            for (int q = 0; q < pixels; q++, key += kBlock) total = total + relu(load(key));
            store(z + jb + lane, load(z + jb + lane) + total);
        }
    }
}

template <int kPixels>
EVS_INLINE void answer(const float *q, ptrdiff_t block, int dim, const float *sums, float eps, float *out, ptrdiff_t out_block) {
    const float *z = sums + dim * dim;
    V divisor[kPixels];
    for (int p = 0; p < kPixels; p++) divisor[p] = V{};
    for (int j = 0; j < dim; j++)
        for (int p = 0; p < kPixels; p++)
            divisor[p] = divisor[p] + all(q[(j / kBlock) * block + p * kBlock + j % kBlock]) * all(z[j]);
    for (int ib = 0; ib < dim; ib += kLanes) {
        V sum[kPixels];
        for (int p = 0; p < kPixels; p++) sum[p] = V{};
        for (int j = 0; j < dim; j++) {
            const V t = load(sums + j * dim + ib);
            for (int p = 0; p < kPixels; p++)
                sum[p] = sum[p] + all(q[(j / kBlock) * block + p * kBlock + j % kBlock]) * t;
        }
        for (int p = 0; p < kPixels; p++)
            store(out + (ib / kBlock) * out_block + p * kBlock + ib % kBlock,
                  sum[p] / max(divisor[p] + all(eps), all(0x1p-100f)));
    }
}

// Answers of one head to `pixels` queries of a row, which are positive already.
EVS_INLINE void answers(Row q, int dim, const float *sums, float eps, int pixels, Row out) {
    int p = 0;
    for (; p + 4 <= pixels; p += 4) answer<4>(q.p + p * kBlock, q.block, dim, sums, eps, out.p + p * kBlock, out.block);
    for (; p < pixels; p++) answer<1>(q.p + p * kBlock, q.block, dim, sums, eps, out.p + p * kBlock, out.block);
}

}  // namespace evs::EVS_ISA
