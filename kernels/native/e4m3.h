// FP8 of the KV cache: e4m3 without infinities, whose largest number is 448. Every one of them is exact in bf16.
#ifndef SIGMOE_E4M3_H
#define SIGMOE_E4M3_H

#include "common.h"

enum { E4M3_NAN = 0x7f, E4M3_LARGEST = 0x7e, E4M3_NUMBERS = 256 };

INLINE float e4m3_to_float(uint8_t x) {
    const int exponent = (x >> 3) & 15, mantissa = x & 7;
    const float size = (x & 0x7f) == E4M3_NAN ? NAN : exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : (float)mantissa * 0x1p-9f;
    return x & 0x80 ? -size : size;
}

// Round to nearest even; past 448 it saturates, a NaN stays a NaN.
INLINE uint8_t float_to_e4m3(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | E4M3_NAN;
    if (bits >= 0x43e00000u) return sign | E4M3_LARGEST;                              // 448
    if (bits < 0x3c800000u) return sign | (uint8_t)lrintf(fabsf(x) * 0x1p9f);         // 2^-6: steps of 2^-9 below
    return sign | (uint8_t)(((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120 << 3));  // the exponent's bias: 127 to 7
}

// Every number in the dtype of the rows, by its byte.
INLINE void e4m3_numbers(void *numbers, int dtype) {
    for (int x = 0; x < E4M3_NUMBERS; x++) store_float(numbers, x, e4m3_to_float((uint8_t)x), dtype);
}

#endif
