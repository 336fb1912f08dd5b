// How many multiply-adds a thread does when it does nothing else: sums in registers, independent of each other, by the
// instruction that dense convolutions use.
#pragma once
#include "../platform.h"
#include "dots.h"
#include "vector.h"

namespace evs::EVS_ISA {

#if EVS_IS_BFLOAT16 && EVS_AMX
// Four tiles, as dots_tile has them; their numbers are 0, which takes as long as any other.
EVS_INLINE double multiply_adds(int rounds) {
    begin_dots();
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    end_dots();
    return 4.0 * rounds * kTile * kPacked * kBlock;
}
#else
EVS_INLINE double multiply_adds(int rounds) {
    constexpr int kSums = 10;  // two per cycle, each of which takes four or five; 16 registers hold them and the factor
    volatile float given = 0.5f;  // unknown to the compiler; the sums go to 1
    const float half = given;
#if EVS_IS_BFLOAT16
    constexpr int kEach = 2 * kLanes;
    const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(half), _mm512_set1_ps(half));
#else
    constexpr int kEach = kLanes;
    const V x = all(A(half));
#endif
    V sums[kSums];
    EVS_UNROLL
    for (int i = 0; i < kSums; i++) sums[i] = all(A(half * float(i)));  // different ones: equal sums would be computed once
    for (int r = 0; r < rounds; r++) {
        EVS_UNROLL
        for (int i = 0; i < kSums; i++) {
#if EVS_IS_BFLOAT16
            sums[i] = (V)_mm512_dpbf16_ps((__m512)sums[i], x, x);
#else
            sums[i] = x + sums[i] * x;
#endif
        }
    }
    V total = sums[0];
    EVS_UNROLL
    for (int i = 1; i < kSums; i++) total = total + sums[i];
    volatile float sink = float(total[0]);  // without a use, nothing would be computed
    (void)sink;
    return double(kSums) * rounds * kEach;
}
#endif

// Multiply-adds per second. The first quarter of the time does not count: processors change their clock for wide vectors.
inline double peak() {
    constexpr int kRounds = 4096;
    constexpr int64_t kWarmUp = 10'000'000, kMeasured = 30'000'000;
    const int64_t begin = now_ns();
    while (now_ns() - begin < kWarmUp) multiply_adds(kRounds);
    const int64_t start = now_ns();
    double done = 0;
    int64_t passed = 0;
    while (passed < kMeasured) {
        done += multiply_adds(kRounds);
        passed = now_ns() - start;
    }
    return done / double(passed) * 1e9;
}

}  // namespace evs::EVS_ISA
