// What happens to one row of a matrix, shared by several kernels.
#ifndef SIGMOE_ROWS_H
#define SIGMOE_ROWS_H

#include "common.h"

// stream += x, rounded to the dtype.
INLINE void add_row(void *stream, const void *x, int64_t width, int dtype) {
    int64_t i = 0;
#ifdef HAS_AVX512
    for (; i + 16 <= width; i += 16)
        store16(stream, i, _mm512_add_ps(load16(stream, i, dtype), load16(x, i, dtype)), dtype, 16);
#endif
    for (; i < width; i++) store_float(stream, i, load_as_float(stream, i, dtype) + load_as_float(x, i, dtype), dtype);
}

INLINE float sum_of_squares(const void *x, int64_t width, int dtype) {
    float sum = 0.0f;
    int64_t i = 0;
#ifdef HAS_AVX512
    __m512 lanes = _mm512_setzero_ps();
    for (; i + 16 <= width; i += 16) {
        __m512 v = load16(x, i, dtype);
        lanes = _mm512_fmadd_ps(v, v, lanes);
    }
    sum = _mm512_reduce_add_ps(lanes);
#endif
    for (; i < width; i++) {
        float v = load_as_float(x, i, dtype);
        sum += v * v;
    }
    return sum;
}

// out = weight * round(x * rsqrt(mean(x^2) + eps)): the product after the rounding, as the model was trained.
INLINE void norm_row(const void *x, const void *weight, float eps, int64_t width, int dtype, void *out) {
    const float scale = 1.0f / sqrtf(sum_of_squares(x, width, dtype) / (float)width + eps);
    int64_t i = 0;
#ifdef HAS_AVX512
    const __m512 scales = _mm512_set1_ps(scale);
    for (; i + 16 <= width; i += 16) {
        __m512 u = _mm512_mul_ps(load16(x, i, dtype), scales);
        if (dtype == BF16) u = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16_16(u)), 16));
        store16(out, i, _mm512_mul_ps(load16(weight, i, dtype), u), dtype, 16);
    }
#endif
    for (; i < width; i++) {
        float u = load_as_float(x, i, dtype) * scale;
        if (dtype == BF16) u = bf16_to_float(float_to_bf16(u));
        store_float(out, i, load_as_float(weight, i, dtype) * u, dtype);
    }
}

#endif
