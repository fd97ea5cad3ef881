// Shared by all native kernels: bf16, vectors of sixteen floats, threads.
//
// Every kernel keeps one rule: the arithmetic of a row does not depend on how many rows there are or where it lies.
#ifndef SIGMOE_COMMON_H
#define SIGMOE_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define HAS_AVX512 1
#include <immintrin.h>
#endif
#if defined(HAS_AVX512) && defined(__AVX512BF16__)
#define HAS_DPBF16 1
#endif
#if defined(HAS_DPBF16) && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define HAS_AMX 1
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

typedef uint16_t bf16;
enum dtype { F32 = 0, BF16 = 1 };

INLINE float bf16_to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// Round to nearest even; a NaN stays a NaN.
INLINE bf16 float_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

INLINE float load_as_float(const void *data, int64_t i, int dtype) {
    return dtype == BF16 ? bf16_to_float(((const bf16 *)data)[i]) : ((const float *)data)[i];
}

INLINE void store_float(void *data, int64_t i, float x, int dtype) {
    if (dtype == BF16)
        ((bf16 *)data)[i] = float_to_bf16(x);
    else
        ((float *)data)[i] = x;
}

INLINE int64_t element_size(int dtype) { return dtype == BF16 ? 2 : 4; }
INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#ifdef HAS_AVX512
INLINE __m512 load16(const void *data, int64_t i, int dtype) {
    if (dtype == BF16) {
        __m256i half = _mm256_loadu_si256((const __m256i *)((const bf16 *)data + i));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    return _mm512_loadu_ps((const float *)data + i);
}

INLINE __m256i to_bf16_16(__m512 x) {
#ifdef HAS_DPBF16
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(up, nan, quiet));
#endif
}

INLINE void store16(void *data, int64_t i, __m512 x, int dtype, int count) {
    __mmask16 mask = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1u);
    if (dtype == BF16)
        _mm256_mask_storeu_epi16((bf16 *)data + i, mask, to_bf16_16(x));
    else
        _mm512_mask_storeu_ps((float *)data + i, mask, x);
}

// e^x by 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2]; relative error under 2e-7, exact limits.
INLINE __m512 exp16(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    __m512 clipped = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-103.9f)), _mm512_set1_ps(88.7228f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(clipped, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), clipped);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.3888889e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3333333e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1666667e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666667e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    __m512 y = _mm512_scalef_ps(p, n);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(y, nan, x);
}
#endif

#endif
