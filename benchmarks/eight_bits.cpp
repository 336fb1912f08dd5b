// Are 8-bit integers faster than float16 in B0's 1×1 convolutions? One thread, on processors with AVX-512 FP16 and VNNI.
//
//     g++ -O3 -march=native -std=c++20 benchmarks/eight_bits.cpp -o eight_bits && ./eight_bits
//
// Integers: uint8 pixels and int8 weights, sums of 32 bits, rounded to uint8 with one factor per channel and ReLU.
// Float16: multiply-adds and ReLU. Both keep 8 pixels × 32 channels in registers, the weights lie in the order in which
// they are read, and the two take turns. "256 px" stays in the caches.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

constexpr int PIXELS = 8, TRIALS = 41;
using Clock = std::chrono::steady_clock;

// Weights: [outputs / 16][inputs / 4][16][4].
static void integers(const uint8_t *x, int inputs, int outputs, const int8_t *weights, const int32_t *bias,
                     const float *factor, uint8_t *out) {
    for (int o = 0; o < outputs; o += 32) {
        __m512i sums[PIXELS][2];
        for (auto &pair : sums) pair[0] = _mm512_loadu_si512(bias + o), pair[1] = _mm512_loadu_si512(bias + o + 16);
        const int8_t *first = weights + size_t(o) * inputs, *second = first + size_t(16) * inputs;
        for (int i = 0; i < inputs; i += 4) {
            const __m512i a = _mm512_loadu_si512(first + i * 16), b = _mm512_loadu_si512(second + i * 16);
            for (int p = 0; p < PIXELS; p++) {
                int32_t four;
                std::memcpy(&four, x + size_t(p) * inputs + i, 4);
                const __m512i pixel = _mm512_set1_epi32(four);
                sums[p][0] = _mm512_dpbusd_epi32(sums[p][0], pixel, a);
                sums[p][1] = _mm512_dpbusd_epi32(sums[p][1], pixel, b);
            }
        }
        for (int p = 0; p < PIXELS; p++)
            for (int half = 0; half < 2; half++) {
                const __m512 scaled =
                    _mm512_mul_ps(_mm512_cvtepi32_ps(sums[p][half]), _mm512_loadu_ps(factor + o + 16 * half));
                const __m512i rounded = _mm512_max_epi32(_mm512_cvtps_epi32(scaled), _mm512_setzero_si512());
                _mm_storeu_si128((__m128i *)(out + size_t(p) * outputs + o + 16 * half), _mm512_cvtusepi32_epi8(rounded));
            }
    }
}

// Weights: [outputs / 32][inputs][32].
static void floats(const _Float16 *x, int inputs, int outputs, const _Float16 *weights, const _Float16 *bias,
                   _Float16 *out) {
    for (int o = 0; o < outputs; o += 32) {
        __m512h sums[PIXELS];
        for (auto &sum : sums) sum = _mm512_loadu_ph(bias + o);
        const _Float16 *part = weights + size_t(o) * inputs;
        for (int i = 0; i < inputs; i++) {
            const __m512h weight = _mm512_loadu_ph(part + i * 32);
            for (int p = 0; p < PIXELS; p++)
                sums[p] = _mm512_fmadd_ph(_mm512_set1_ph(x[size_t(p) * inputs + i]), weight, sums[p]);
        }
        for (int p = 0; p < PIXELS; p++)
            _mm512_storeu_ph(out + size_t(p) * outputs + o, _mm512_max_ph(sums[p], _mm512_setzero_ph()));
    }
}

static double median(std::vector<double> times) {
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

int main() {
    // For an image of 1024×2048.
    const struct {
        const char *name;
        int inputs, outputs, pixels;
    } layers[] = {{"stage 2, expand", 32, 128, 128 * 256},  {"stage 2, project", 128, 32, 128 * 256},
                  {"stage 3, expand", 64, 256, 64 * 128},   {"stage 3, project", 256, 64, 64 * 128},
                  {"stage 4, expand", 128, 512, 32 * 64},   {"stage 4, project", 512, 128, 32 * 64}};
    for (const auto &layer : layers)
        for (const int pixels : {256, layer.pixels}) {
            const int inputs = layer.inputs, outputs = layer.outputs;
            const size_t read = size_t(pixels) * inputs, written = size_t(pixels) * outputs;
            std::vector<uint8_t> x8(read), out8(written);
            std::vector<int8_t> weights8(size_t(inputs) * outputs);
            std::vector<int32_t> bias8(outputs, 100);
            std::vector<float> factors(outputs, 1e-3f);
            std::vector<_Float16> x16(read), out16(written), weights16(weights8.size()), bias16(outputs, _Float16(0.1f));
            for (auto &value : x8) value = rand() % 256;
            for (auto &value : weights8) value = rand() % 255 - 127;
            for (auto &value : x16) value = _Float16(rand() % 256 / 256.f);
            for (auto &value : weights16) value = _Float16((rand() % 255 - 127) / 127.f);
            const double products = double(pixels) * inputs * outputs;
            const int turns = std::max(1, int(3e7 / products));
            std::vector<double> times8, times16;
            for (int trial = 0; trial < TRIALS; trial++) {
                const auto begin = Clock::now();
                for (int turn = 0; turn < turns; turn++)
                    for (int p = 0; p + PIXELS <= pixels; p += PIXELS)
                        integers(&x8[size_t(p) * inputs], inputs, outputs, weights8.data(), bias8.data(), factors.data(),
                                 &out8[size_t(p) * outputs]);
                const auto middle = Clock::now();
                for (int turn = 0; turn < turns; turn++)
                    for (int p = 0; p + PIXELS <= pixels; p += PIXELS)
                        floats(&x16[size_t(p) * inputs], inputs, outputs, weights16.data(), bias16.data(),
                               &out16[size_t(p) * outputs]);
                const auto end = Clock::now();
                times8.push_back(std::chrono::duration<double>(middle - begin).count() / turns);
                times16.push_back(std::chrono::duration<double>(end - middle).count() / turns);
            }
            const double fast = median(times8), slow = median(times16);
            std::printf("%-17s %6d px  int8 %6.1f G products/s  float16 %6.1f  %.2f times as fast\n", layer.name, pixels,
                        products / fast / 1e9, products / slow / 1e9, slow / fast);
        }
}
