// The end of a classifier, after the sums over all pixels, in float32 whatever the features are: their mean, a linear
// layer, layer norm, activation, a linear layer.
#pragma once
#include "attention.h"
#include "vector.h"

namespace evs::EVS_ISA {

// Adds `pixels` pixels of a row to the sums of a block of tokens: first to each other, from left to right.
static void add_pixels(Row in, int channels, int pixels, float *sums) {
    for (int c = 0; c < padded(channels, kPacked); c += kPacked) {
        const E *from = in.channels_from(c).p;
        for (int lane = 0; lane < kPacked; lane += kFloats) {
            F total = F{};
            for (int i = 0; i < pixels; i++) total = total + load_floats(from + ptrdiff_t(i) * kBlock + lane);
            store_f(sums + c + lane, load_f(sums + c + lane) + total);
        }
    }
}

// 16 outputs of a linear layer. Weights: [input][16].
static void linear(const float *in, int inputs, const float *weights, const float *bias, float *out) {
    constexpr int kVectors = kPacked / kFloats;
    F sum[kVectors];
    EVS_UNROLL
    for (int j = 0; j < kVectors; j++) sum[j] = load_f(bias + j * kFloats);
    for (int i = 0; i < inputs; i++, weights += kPacked) {
        EVS_UNROLL
        for (int j = 0; j < kVectors; j++) sum[j] = sum[j] + all_floats(in[i]) * load_f(weights + j * kFloats);
    }
    EVS_UNROLL
    for (int j = 0; j < kVectors; j++) store_f(out + j * kFloats, sum[j]);
}

// Layer norm, then the activation, in place; the numbers after the last channel have scale and shift 0.
static void normalise(float *x, int channels, float eps, const float *scale, const float *shift, Act act) {
    double total = 0, squares = 0;
    for (int i = 0; i < channels; i++) total += x[i];
    const double mean = total / channels;
    for (int i = 0; i < channels; i++) {
        const double difference = x[i] - mean;
        squares = squares + difference * difference;
    }
    const float middle = float(mean), factor = float(1 / __builtin_sqrt(squares / channels + double(eps)));
    for (int i = 0; i < channels; i += kFloats) {
        const F normal = (load_f(x + i) - all_floats(middle)) * all_floats(factor);
        F y = load_f(shift + i) + normal * load_f(scale + i);
        if (act == Act::hardswish) {
            const F gate = all_floats(0.5f) + y * all_floats(1.0f / 6);
            y = y * min(max(gate, all_floats(0.0f)), all_floats(1.0f));
        } else if (act == Act::gelu) {
            y = gelu_floats(y);
        } else if (act == Act::relu) {
            y = relu(y);
        }
        store_f(x + i, y);
    }
}

}  // namespace evs::EVS_ISA
