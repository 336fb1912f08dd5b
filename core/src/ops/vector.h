// A vector of numbers as wide as the instruction set, through the compiler's vector extensions.
//
// EVS_PRECISION chooses the numbers: float32; float16, with arithmetic in float16; or bfloat16, which only dense
// convolutions multiply (dots.h), while all other arithmetic is in float32.
// Results must not depend on the width: every output is one lane, and its sum runs in one fixed order. A product that is
// added is always written `a + x * w` with a single product, so that every compiler contracts it to the same fused
// multiply-add.
#pragma once
#define EVS_IS_FLOAT32 (EVS_PRECISION == 0)  // as the names of evitseg.h, which the preprocessor does not know
#define EVS_IS_FLOAT16 (EVS_PRECISION == 1)
#define EVS_IS_BFLOAT16 (EVS_PRECISION == 2)

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../program.h"

#if !EVS_IS_FLOAT32 && defined(__x86_64__)
#include <immintrin.h>
#elif EVS_IS_FLOAT16
#include <arm_neon.h>
#endif

#ifndef EVS_AMX
#define EVS_AMX 0
#endif
#ifndef EVS_WIDTH
#error "EVS_WIDTH: numbers in a vector; see build.py"
#endif

namespace evs::EVS_ISA {

// E is the type of features and weights, A that of arithmetic on them, in vectors V of kLanes; F is a vector of the
// floats for sums that need them.
#if EVS_IS_FLOAT16
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
typedef __fp16 E;  // C++ has no _Float16 there
#define EVS_LISTS_LANES 1
#else
typedef _Float16 E;
#endif
typedef E A;
typedef int16_t EBits;
constexpr int kFloats = EVS_WIDTH / 2;
#define EVS_BYTES (EVS_WIDTH * 2)
#else
typedef float A;
typedef int32_t EBits;
constexpr int kFloats = EVS_WIDTH;
#define EVS_BYTES (EVS_WIDTH * 4)
#if EVS_IS_FLOAT32
typedef float E;
#else
struct E {  // the upper half of a float
    uint16_t bits;
    E() = default;
    explicit E(float x) {
        uint32_t all;
        memcpy(&all, &x, sizeof all);
        bits = uint16_t((all + 0x7fff + (all >> 16 & 1)) >> 16);  // to nearest, ties to even
    }
    operator float() const {
        const uint32_t all = uint32_t(bits) << 16;
        float x;
        memcpy(&x, &all, sizeof x);
        return x;
    }
};
#endif
#endif
// W is the type of biases and of weights that dots.h does not read; Pixel that of normalised pixels that are not planar. In
// bfloat16 both are float32: they are few, and the processor cannot broadcast bfloat16.
#if EVS_IS_BFLOAT16
typedef float W;
typedef float Pixel;
#else
typedef E W;
typedef E Pixel;
#endif
// Channels are stored in blocks of this many, padded with zeros: a vector's lanes in float16, a row of a tile register in AMX.
constexpr int kBlock = EVS_IS_FLOAT16 || EVS_AMX ? 32 : 16;
constexpr int kLanes = EVS_WIDTH;
constexpr int kPerBlock = kBlock / kLanes;  // vectors in a block of channels
constexpr int kGroup = kLanes < 16 ? kLanes : 16;  // lanes of a vector that lies within 16 channels

typedef A V __attribute__((vector_size(EVS_BYTES), aligned(EVS_BYTES), may_alias));
typedef EBits I __attribute__((vector_size(EVS_BYTES), aligned(EVS_BYTES), may_alias));
typedef A G __attribute__((vector_size(kGroup * sizeof(A)), aligned(kGroup * sizeof(A)), may_alias));
typedef float F __attribute__((vector_size(kFloats * 4), aligned(kFloats * 4), may_alias));
typedef int32_t FBits __attribute__((vector_size(kFloats * 4), aligned(kFloats * 4), may_alias));

#define EVS_INLINE static inline __attribute__((always_inline))

// Before a loop over registers: unless it is unrolled, its array lies in memory.
#if defined(__clang__)
#define EVS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define EVS_UNROLL _Pragma("GCC unroll 64")
#endif

inline int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

#if EVS_IS_BFLOAT16
EVS_INLINE V load(const E *p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}
EVS_INLINE V load(const float *p) { return *reinterpret_cast<const V *>(p); }
EVS_INLINE void store(E *p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#else
EVS_INLINE V load(const E *p) { return *reinterpret_cast<const V *>(p); }
EVS_INLINE void store(E *p, V v) { *reinterpret_cast<V *>(p) = v; }
#endif
#if EVS_LISTS_LANES
EVS_INLINE V all(A x) { return V{x, x, x, x, x, x, x, x}; }
#else
EVS_INLINE V all(A x) { return x - V{}; }  // a broadcast: subtracting 0 changes nothing, adding it would change -0
#endif
EVS_INLINE F all_floats(float x) { return x - F{}; }
// Hides where a number comes from. With a constant, GCC makes two instructions of `max` and `min` instead of one; a number
// from memory it would load again for each product, and the processor loads no more than it multiplies.
template <typename T>
EVS_INLINE T hidden(T b) {
#if defined(__x86_64__) && !defined(__clang__)
    asm("" : "+v"(b));
#endif
    return b;
}
template <typename T>
EVS_INLINE T max(T a, T b) {
    b = hidden(b);
    return a > b ? a : b;
}
template <typename T>
EVS_INLINE T min(T a, T b) {
    b = hidden(b);
    return a < b ? a : b;
}

// kFloats numbers as floats, and back. GCC 12 makes scalar code of __builtin_convertvector between these.
EVS_INLINE F load_floats(const E *p) {
#if EVS_IS_FLOAT16 && defined(__x86_64__)
    return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif EVS_IS_FLOAT16
    return (F)vcvt_f32_f16(vld1_f16(reinterpret_cast<const float16_t *>(p)));
#else
    return load(p);
#endif
}
EVS_INLINE void store_floats(E *p, F v) {
#if EVS_IS_FLOAT16 && defined(__x86_64__)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif EVS_IS_FLOAT16
    vst1_f16(reinterpret_cast<float16_t *>(p), vcvt_f16_f32((float32x4_t)v));
#else
    store(p, v);
#endif
}

// What is not a number stays so: a run must not hide that its numbers became too large.
template <typename T>
EVS_INLINE T relu(T x) { return max(hidden(T{}), x); }

// x * clamp(x / 6 + 1/2, 0, 1)
EVS_INLINE V hardswish(V x) { return x * min(max(all(A(0.5f)) + x * all(A(1.0f / 6)), all(A(0.0f))), all(A(1.0f))); }

EVS_INLINE F with_bits(F x, uint32_t clear, uint32_t set) {
    const FBits bits = (reinterpret_cast<const FBits &>(x) & int32_t(~clear)) | int32_t(set);
    return reinterpret_cast<const F &>(bits);
}

// 2^x for -125 <= x <= 0, to two units in the last place: a polynomial times a power of 2.
EVS_INLINE F exp2_negative(F x) {
    const F shifted = x + all_floats(12582912.0f);  // 1.5 * 2^23: rounds to an integer, which the last bits hold
    const F r = x - (shifted - all_floats(12582912.0f));
    F p = all_floats(1.32647157e-3f);
    p = all_floats(9.67151206e-3f) + p * r;
    p = all_floats(5.55073358e-2f) + p * r;
    p = all_floats(2.40222424e-1f) + p * r;
    p = all_floats(6.93147004e-1f) + p * r;
    p = all_floats(1.0f) + p * r;
    // The power through the exponent's bits: a product here might be fused with a sum elsewhere.
    const FBits bits = reinterpret_cast<const FBits &>(p) + (reinterpret_cast<const FBits &>(shifted) << 23);
    return reinterpret_cast<const F &>(bits);
}

// GELU in its tanh approximation: x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3). With e = e^-|2u|, which never
// overflows, it is max(x, 0) - |x| e / (1 + e).
EVS_INLINE F gelu_floats(F x) {
    constexpr uint32_t kSign = 0x80000000;
    const F square = x * x;
    const F inner = all_floats(1.0f) + square * all_floats(0.044715f);
    const F u = x * inner * all_floats(2.30220820f);  // 2 sqrt(2 / pi) log2(e)
    const F e = exp2_negative(max(with_bits(u, 0, kSign), all_floats(-125.0f)));
    // The quotient by Newton's method, which is faster than a division: 1 / below, from 1 to 2, to 1 percent, then 1e-4.
    const F below = all_floats(1.0f) + e;
    F inverse = all_floats(2.12121212f) + below * (all_floats(-1.45454545f) + below * all_floats(0.323232323f));
    inverse = inverse + inverse * (all_floats(1.0f) - below * inverse);
    const F near = e * inverse;
    const F quotient = near + inverse * (e - below * near);
    return max(x, all_floats(0.0f)) - with_bits(x, kSign, 0) * quotient;
}

#if EVS_IS_BFLOAT16
// To 2e-4, which is less than half a unit in the last place of what is stored: 2^t as a polynomial times a power of 2.
EVS_INLINE V gelu(V x) {
    const V t = x * (all(1.0f) + x * x * all(0.044715f)) * all(-2.30220820f);
    const V r = (V)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // t - floor(t)
    const V p = all(0.99992513f) + r * (all(0.69583399f) + r * (all(0.22606707f) + r * all(0.07802403f)));
    const V e = (V)_mm512_scalef_ps((__m512)p, (__m512)t);
    return x * (V)_mm512_rcp14_ps((__m512)(all(1.0f) + e));
}
#elif EVS_IS_FLOAT16
EVS_INLINE V gelu(V x) {
    alignas(EVS_BYTES) E numbers[kLanes];
    store(numbers, x);
    for (int i = 0; i < kLanes; i += kFloats) store_floats(numbers + i, gelu_floats(load_floats(numbers + i)));
    return load(numbers);
}
#else
EVS_INLINE V gelu(V x) { return gelu_floats(x); }
#endif

template <Act A>
EVS_INLINE V activated(V x) {
    if constexpr (A == Act::hardswish) return hardswish(x);
    if constexpr (A == Act::gelu) return gelu(x);
    if constexpr (A == Act::relu) return relu(x);
    return x;
}

// A row of features, or a window of one: channel c of pixel i is at p[(c / kBlock) * block + i * kBlock + c % kBlock].
struct Row {
    E *p;
    ptrdiff_t block;  // numbers from one block of channels to the next
    Row from(int pixel) const { return {p + ptrdiff_t(pixel) * kBlock, block}; }
    Row channels_from(int c) const { return {p + (c / kBlock) * block + c % kBlock, block}; }
};

}  // namespace evs::EVS_ISA
