// Rows to expert order and back.
#include "pool.h"
#include "rows.h"

enum { ROWS_PER_ITEM = 16 };

// ids [rows, k] -> counts [experts], places [rows, k]: where each copy lies when sorted by expert, stable; -1 for -1.
EXPORT void sigmoe_expert_order(const int32_t *ids, int64_t copies, int64_t experts, int32_t *counts, int32_t *places) {
    int32_t *next = malloc(sizeof(int32_t) * (size_t)experts);
    memset(counts, 0, sizeof(int32_t) * (size_t)experts);
    for (int64_t i = 0; i < copies; i++)
        if (ids[i] >= 0) counts[ids[i]]++;
    int32_t start = 0;
    for (int64_t e = 0; e < experts; e++) {
        next[e] = start;
        start += counts[e];
    }
    for (int64_t i = 0; i < copies; i++) places[i] = ids[i] < 0 ? -1 : next[ids[i]]++;
    free(next);
}

typedef struct {
    const char *from;
    const int32_t *places;
    const float *weights;
    int64_t rows, k, width;
    int dtype;
    char *out;
} permute_job;

static void gather_item(void *context, int64_t item, int thread) {
    const permute_job *job = context;
    const int64_t bytes = job->width;
    (void)thread;
    for (int64_t t = item * ROWS_PER_ITEM; t < min64(job->rows, (item + 1) * ROWS_PER_ITEM); t++)
        for (int64_t j = 0; j < job->k; j++)
            if (job->places[t * job->k + j] >= 0) memcpy(job->out + job->places[t * job->k + j] * bytes, job->from + t * bytes, (size_t)bytes);
}

// out[places[t, k]] = hidden[t], where there is a place
EXPORT void sigmoe_gather_rows(const char *hidden, const int32_t *places, int64_t rows, int64_t k, int64_t row_bytes, char *out) {
    permute_job job = {.from = hidden, .places = places, .rows = rows, .k = k, .width = row_bytes, .out = out};
    pool_run(ceil_div(rows, ROWS_PER_ITEM), pool_threads_for(rows * k * row_bytes, 1 << 18), gather_item, &job);
}

static void combine_row(const permute_job *job, int64_t t) {
    const int64_t bytes = job->width * element_size(job->dtype);
    const int32_t *place = job->places + t * job->k;
    const float *weight = job->weights + t * job->k;
    char *out = job->out + t * bytes;
    int64_t i = 0;
#ifdef HAS_AVX512
    for (; i + 16 <= job->width; i += 16) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t j = 0; j < job->k; j++)
            if (place[j] >= 0) sum = _mm512_fmadd_ps(_mm512_set1_ps(weight[j]), load16(job->from + place[j] * bytes, i, job->dtype), sum);
        store16(out, i, sum, job->dtype, 16);
    }
#endif
    for (; i < job->width; i++) {
        float sum = 0.0f;
        for (int64_t j = 0; j < job->k; j++)
            if (place[j] >= 0) sum = fmaf(weight[j], load_as_float(job->from + place[j] * bytes, i, job->dtype), sum);
        store_float(out, i, sum, job->dtype);
    }
}

static void combine_item(void *context, int64_t item, int thread) {
    const permute_job *job = context;
    (void)thread;
    for (int64_t t = item * ROWS_PER_ITEM; t < min64(job->rows, (item + 1) * ROWS_PER_ITEM); t++) combine_row(job, t);
}

// out[t] = sum over k of weights[t, k] * rows[places[t, k]], in fp32, in the order of k, rounded once; a place of -1 adds nothing.
EXPORT void sigmoe_combine_rows(
    const char *rows, const int32_t *places, const float *weights, int64_t num_rows, int64_t k, int64_t width, int dtype, char *out
) {
    permute_job job = {rows, places, weights, num_rows, k, width, dtype, out};
    pool_run(ceil_div(num_rows, ROWS_PER_ITEM), pool_threads_for(num_rows * k * width, 1 << 16), combine_item, &job);
}
