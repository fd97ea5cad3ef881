// Rows to expert order and back.
#include "rows.h"

// ids [rows, k] -> counts [experts], places [rows, k]: where each copy lies when sorted by expert, stable.
EXPORT void sigmoe_expert_order(const int32_t *ids, int64_t copies, int64_t experts, int32_t *counts, int32_t *places) {
    int32_t *next = malloc(sizeof(int32_t) * (size_t)experts);
    memset(counts, 0, sizeof(int32_t) * (size_t)experts);
    for (int64_t i = 0; i < copies; i++) counts[ids[i]]++;
    int32_t start = 0;
    for (int64_t e = 0; e < experts; e++) {
        next[e] = start;
        start += counts[e];
    }
    for (int64_t i = 0; i < copies; i++) places[i] = next[ids[i]]++;
    free(next);
}

// out[places[t, k]] = hidden[t]
EXPORT void sigmoe_gather_rows(const char *hidden, const int32_t *places, int64_t rows, int64_t k, int64_t row_bytes, char *out) {
#pragma omp parallel for schedule(static) num_threads(threads_for(rows * k * row_bytes, 1 << 18))
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < k; j++) memcpy(out + places[t * k + j] * row_bytes, hidden + t * row_bytes, (size_t)row_bytes);
}

// out[t] = sum over k of weights[t, k] * rows[places[t, k]], in fp32, in the order of k, rounded once.
EXPORT void sigmoe_combine_rows(
    const char *rows, const int32_t *places, const float *weights, int64_t num_rows, int64_t k, int64_t width, int dtype, char *out
) {
    const int64_t bytes = width * element_size(dtype);
#pragma omp parallel for schedule(static) num_threads(threads_for(num_rows * k * width, 1 << 16))
    for (int64_t t = 0; t < num_rows; t++) {
        const int32_t *place = places + t * k;
        const float *weight = weights + t * k;
        int64_t i = 0;
#ifdef HAS_AVX512
        for (; i + 16 <= width; i += 16) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t j = 0; j < k; j++)
                sum = _mm512_fmadd_ps(_mm512_set1_ps(weight[j]), load16(rows + place[j] * bytes, i, dtype), sum);
            store16(out + t * bytes, i, sum, dtype, 16);
        }
#endif
        for (; i < width; i++) {
            float sum = 0.0f;
            for (int64_t j = 0; j < k; j++) sum = fmaf(weight[j], load_as_float(rows + place[j] * bytes, i, dtype), sum);
            store_float(out + t * bytes, i, sum, dtype);
        }
    }
}
