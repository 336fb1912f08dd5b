// The class of every pixel from logits at stride 8, exactly, without the full-size logits.
//
// Four neighbouring logits span a cell. Bilinear weights are positive and sum to one, so a class that is the largest at
// all four corners is the largest in the whole cell. Only the cells that a boundary crosses are interpolated, 5 to 10 % of
// them on street images.
//
// No product is fused with a sum here (build.py compiles this with -ffp-contract=off), so that processors without fused
// multiply-add give the same mask.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(EVS_WIDTH) || !defined(EVS_PRECISION)
#error "EVS_WIDTH, EVS_PRECISION: numbers in a vector, and which; see build.py"
#endif

namespace evs::EVS_ISA {

#define EVS_INLINE static inline __attribute__((always_inline))

template <int kCount>
struct Vectors {  // where they lie in memory, only the numbers are aligned
    typedef float F __attribute__((vector_size(kCount * 4), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(kCount * 4), aligned(4), may_alias));
    typedef uint8_t B __attribute__((vector_size(kCount), aligned(1), may_alias));
    typedef uint16_t S __attribute__((vector_size(kCount * 2), aligned(2), may_alias));
};

constexpr int kFloats = EVS_PRECISION == 1 ? EVS_WIDTH / 2 : EVS_WIDTH;  // in a vector
// Pixels at a time: a cell of logits at stride 8 has 8 in a row.
constexpr int kCellLanes = kFloats < 8 ? kFloats : 8;
using F = Vectors<kCellLanes>::F;
using I = Vectors<kCellLanes>::I;
template <typename Class>
struct Stored;
template <>
struct Stored<uint8_t> : Vectors<kCellLanes> { using V = B; };
template <>
struct Stored<uint16_t> : Vectors<kCellLanes> { using V = S; };

// The largest of `classes` numbers that are `plane` apart, for kVectors vectors of neighbours; of equal ones the first.
template <int kLanes, int kVectors>
EVS_INLINE void winners_of(const float *logits, ptrdiff_t plane, int classes, uint16_t *out) {
    using V = typename Vectors<kLanes>::F;
    using N = typename Vectors<kLanes>::I;
    V best[kVectors];
    N index[kVectors];
    for (int i = 0; i < kVectors; i++) {
        best[i] = reinterpret_cast<const V *>(logits)[i];
        index[i] = N{};
    }
    for (int c = 1; c < classes; c++) {
        const V *from = reinterpret_cast<const V *>(logits += plane);
        const N number = c - N{};
        for (int i = 0; i < kVectors; i++) {
            const V other = from[i];
            const N better = other > best[i];
            index[i] = better ? number : index[i];
            best[i] = better ? other : best[i];
        }
    }
    for (int i = 0; i < kVectors; i++)
        reinterpret_cast<typename Vectors<kLanes>::S *>(out)[i] = __builtin_convertvector(index[i], typename Vectors<kLanes>::S);
}

// The class with the largest logit, for `count` neighbours.
static void winners(const float *logits, ptrdiff_t plane, int classes, int count, uint16_t *out) {
    constexpr int kVectors = 4, kStep = kVectors * kFloats;
    int x = 0;
    for (; x + kStep <= count; x += kStep) winners_of<kFloats, kVectors>(logits + x, plane, classes, out + x);
    for (; x + kFloats <= count; x += kFloats) winners_of<kFloats, 1>(logits + x, plane, classes, out + x);
    for (; x < count; x++) winners_of<1, 1>(logits + x, plane, classes, out + x);
}

// A class that may be the largest somewhere in a cell, with its logits at the four corners.
struct Candidate {
    float top_left, top_right, bottom_left, bottom_right;
    int32_t number;
    float left[kCellLanes], right[kCellLanes];  // interpolated between the corners, for some rows of pixels
};

EVS_INLINE float larger(float a, float b) { return a > b ? a : b; }
EVS_INLINE float smaller(float a, float b) { return a < b ? a : b; }

// The classes that may be the largest somewhere between four corners: no class exceeds its largest corner, and the best
// one is never below the largest of all classes' smallest corners. That leaves two or three, in ascending order.
//   top, bottom: logits of class 0 in two rows; low, high: columns. candidates: space for one more than the classes.
static int find_candidates(const float *top, const float *bottom, int low, int high, ptrdiff_t plane, int classes, Candidate *candidates) {
    float reached = -__builtin_inff();
    for (ptrdiff_t c = 0; c < classes; c++) {
        const float *t = top + c * plane, *b = bottom + c * plane;
        reached = larger(reached, smaller(smaller(t[low], t[high]), smaller(b[low], b[high])));
    }
    int count = 0;
    for (int c = 0; c < classes; c++) {
        const float *t = top + c * plane, *b = bottom + c * plane;
        Candidate &next = candidates[count];
        next.top_left = t[low], next.top_right = t[high], next.bottom_left = b[low], next.bottom_right = b[high];
        next.number = c;
        count += larger(larger(t[low], t[high]), larger(b[low], b[high])) >= reached;
    }
    return count;
}

EVS_INLINE F load_fractions(const float *p) { return *reinterpret_cast<const F *>(p); }

// Writes the best candidate of every pixel of a cell.
//   down, across: weights of the lower and of the right logits, per row and column of pixels; more may be read than used.
template <typename Class>
static void fill_cell(Candidate *candidates, int count, const float *down, int rows, const float *across, int columns, Class *mask, ptrdiff_t width) {
    const F one = 1.0f - F{};
    for (int y0 = 0; y0 < rows; y0 += kCellLanes) {
        const F low = load_fractions(down + y0), high = one - low;
        for (int k = 0; k < count; k++) {
            Candidate &c = candidates[k];
            // Not top + (bottom - top) * low: a sum of weighted corners keeps their order after rounding.
            *reinterpret_cast<F *>(c.left) = c.top_left * high + c.bottom_left * low;
            *reinterpret_cast<F *>(c.right) = c.top_right * high + c.bottom_right * low;
        }
        const int last = rows - y0 < kCellLanes ? rows - y0 : kCellLanes;
        for (int x0 = 0; x0 < columns; x0 += kCellLanes) {
            const F right = load_fractions(across + x0), left = one - right;
            const int given = columns - x0 < kCellLanes ? columns - x0 : kCellLanes;
            for (int y = 0; y < last; y++) {
                F best = candidates[0].left[y] * left + candidates[0].right[y] * right;
                I number = candidates[0].number - I{};
                for (int k = 1; k < count; k++) {
                    const F other = candidates[k].left[y] * left + candidates[k].right[y] * right;
                    const I better = other > best;
                    number = better ? candidates[k].number - I{} : number;
                    best = better ? other : best;
                }
                using Numbers = typename Stored<Class>::V;
                const Numbers numbers = __builtin_convertvector(number, Numbers);
                Class *to = mask + (y0 + y) * width + x0;
                if (given == kCellLanes) {
                    memcpy(to, &numbers, sizeof numbers);
                } else {
                    for (int x = 0; x < given; x++) to[x] = numbers[x];
                }
            }
        }
    }
}

}  // namespace evs::EVS_ISA
