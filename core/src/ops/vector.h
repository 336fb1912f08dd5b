// A vector of floats as wide as the instruction set, through the compiler's vector extensions.
//
// Results must not depend on the width: every output is one lane, and its sum runs in one fixed order. A product that is
// added is always written `a + x * w` with a single product, so that every compiler contracts it to the same fused
// multiply-add.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../program.h"

#ifndef EVS_WIDTH
#error "EVS_WIDTH: floats in a vector; see build.py"
#endif

namespace evs::EVS_ISA {

constexpr int kLanes = EVS_WIDTH;
constexpr int kPerBlock = kBlock / kLanes;  // vectors in a block of channels

typedef float V __attribute__((vector_size(EVS_WIDTH * 4), aligned(EVS_WIDTH * 4), may_alias));
typedef int32_t I __attribute__((vector_size(EVS_WIDTH * 4), aligned(EVS_WIDTH * 4), may_alias));

#define EVS_INLINE static inline __attribute__((always_inline))

// Before a loop over registers: unless it is unrolled, its array lies in memory.
#if defined(__clang__)
#define EVS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define EVS_UNROLL _Pragma("GCC unroll 64")
#endif

EVS_INLINE V load(const float *p) { return *reinterpret_cast<const V *>(p); }
EVS_INLINE void store(float *p, V v) { *reinterpret_cast<V *>(p) = v; }
EVS_INLINE V all(float x) { return x - V{}; }  // a broadcast: subtracting 0 changes nothing, adding it would change -0
EVS_INLINE V max(V a, V b) { return a > b ? a : b; }
EVS_INLINE V min(V a, V b) { return a < b ? a : b; }

// x * clamp(x / 6 + 1/2, 0, 1)
EVS_INLINE V hardswish(V x) { return x * min(max(all(0.5f) + x * all(1.0f / 6), all(0.0f)), all(1.0f)); }

// e^x for x <= 0, to two units in the last place: a polynomial times 2^n (Cody and Waite's reduction).
EVS_INLINE V exp_negative(V x) {
    x = max(x, all(-86.0f));
    const V shifted = all(12582912.0f) + x * all(1.44269504f);  // 1.5 * 2^23: rounds to an integer
    const V n = shifted - all(12582912.0f);
    V r = x + n * all(-0.693359375f);
    r = r + n * all(2.12194440e-4f);
    V p = all(1.9875691500e-4f);
    p = all(1.3981999507e-3f) + p * r;
    p = all(8.3334519073e-3f) + p * r;
    p = all(4.1665795894e-2f) + p * r;
    p = all(1.6666665459e-1f) + p * r;
    p = all(5.0000001201e-1f) + p * r;
    const V square = r * r;
    p = r + p * square;
    p = p + all(1.0f);
    // Times 2^n through the exponent's bits: a product here might be fused with a sum elsewhere.
    const I bits = reinterpret_cast<const I &>(p) + (__builtin_convertvector(n, I) << 23);
    return reinterpret_cast<const V &>(bits);
}

// GELU in its tanh approximation: x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
EVS_INLINE V gelu(V x) {
    const V square = x * x;
    const V inner = all(1.0f) + square * all(0.044715f);
    const V u = x * inner * all(-1.5957691216f);  // -2 sqrt(2 / pi)
    const V magnitude = max(u, -u);
    const V e = exp_negative(-magnitude);  // e^-|2u|, never overflows
    const V top = u > all(0.0f) ? e : all(1.0f);
    return x * top / (all(1.0f) + e);
}

template <Act A>
EVS_INLINE V activated(V x) {
    if constexpr (A == Act::hardswish) return hardswish(x);
    if constexpr (A == Act::gelu) return gelu(x);
    return x;
}

// A row of features, or a window of one: channel c of pixel i is at p[(c / 16) * block + i * 16 + c % 16].
struct Row {
    float *p;
    ptrdiff_t block;  // floats from one block of channels to the next
    Row from(int pixel) const { return {p + ptrdiff_t(pixel) * kBlock, block}; }
};

}  // namespace evs::EVS_ISA
