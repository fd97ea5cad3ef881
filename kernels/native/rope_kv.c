// QK-norm, partial rotary embedding and the write into the paged KV cache, in one pass over the rows of QKV.
//
// Keys lie transposed in their block, fp32 [D][block], bf16 [D / 2][block][2], so that sixteen positions are one
// vector; values lie as they come, [block][D]. An FP8 cache holds both as [block][D], over the scale of their head.
#include "e4m3.h"
#include "pool.h"
#include "rows.h"

enum { MAX_HEAD_DIM = 512, ROWS_PER_ITEM = 8 };

typedef struct {
    int64_t rows, heads, kv_heads, dim, rotary, block_size;
    float eps;
    int dtype;
    int is_fp8;  // the cache's numbers; rows are of `dtype`
} rope_shape;

INLINE void rotate(void *head, const float *cos_sin, int64_t rotary, int dtype) {
    const int64_t half = rotary / 2;
    const float *c = cos_sin, *s = cos_sin + half;
    for (int64_t i = 0; i < half; i++) {
        float a = load_as_float(head, i, dtype), b = load_as_float(head, i + half, dtype);
        store_float(head, i, a * c[i] - b * s[i], dtype);
        store_float(head, i + half, b * c[i] + a * s[i], dtype);
    }
}

// A head without a norm weight passes as it is.
INLINE void read_head(const char *head, const char *weight, const rope_shape *s, void *out) {
    if (weight)
        norm_row(head, weight, s->eps, s->dim, s->dtype, out);
    else
        memcpy(out, head, (size_t)(s->dim * element_size(s->dtype)));
}

INLINE void write_key(const void *head, void *block, int64_t dim, int64_t block_size, int64_t offset, int dtype) {
    for (int64_t d = 0; d < dim; d++) {
        if (dtype == BF16)
            ((bf16 *)block)[((d / 2) * block_size + offset) * 2 + (d & 1)] = ((const bf16 *)head)[d];
        else
            ((float *)block)[d * block_size + offset] = ((const float *)head)[d];
    }
}

INLINE void write_fp8(const void *head, uint8_t *to, float scale, int64_t dim, int dtype) {
    for (int64_t d = 0; d < dim; d++) to[d] = float_to_e4m3(load_as_float(head, d, dtype) / scale);
}

typedef struct {
    rope_shape shape;
    const char *qkv, *q_weight, *k_weight;
    const float *cos_sin, *key_scale, *value_scale;
    const int32_t *positions, *slots;
    char *key, *value, *q;
} rope_job;

static void rope_row(const rope_job *job, int64_t t) {
    const rope_shape *s = &job->shape;
    const int64_t head_bytes = s->dim * element_size(s->dtype), block_bytes = s->block_size * head_bytes;
    const char *row = job->qkv + t * (s->heads + 2 * s->kv_heads) * head_bytes;
    const float *angles = job->cos_sin + job->positions[t] * s->rotary;
    for (int64_t h = 0; h < s->heads; h++) {
        char *out = job->q + (t * s->heads + h) * head_bytes;
        read_head(row + h * head_bytes, job->q_weight, s, out);
        rotate(out, angles, s->rotary, s->dtype);
    }
    const int64_t block = job->slots[t] / s->block_size, offset = job->slots[t] % s->block_size;
    for (int64_t g = 0; g < s->kv_heads; g++) {
        char head[MAX_HEAD_DIM * 4];
        const char *value = row + (s->heads + s->kv_heads + g) * head_bytes;
        const int64_t at = (block * s->kv_heads + g) * block_bytes;
        read_head(row + (s->heads + g) * head_bytes, job->k_weight, s, head);
        rotate(head, angles, s->rotary, s->dtype);
        if (s->is_fp8) {
            const int64_t line = ((block * s->kv_heads + g) * s->block_size + offset) * s->dim;
            write_fp8(head, (uint8_t *)job->key + line, job->key_scale[g], s->dim, s->dtype);
            write_fp8(value, (uint8_t *)job->value + line, job->value_scale[g], s->dim, s->dtype);
            continue;
        }
        write_key(head, job->key + at, s->dim, s->block_size, offset, s->dtype);
        memcpy(job->value + at + offset * head_bytes, value, (size_t)head_bytes);
    }
}

static void rope_item(void *context, int64_t item, int thread) {
    const rope_job *job = context;
    (void)thread;
    for (int64_t t = item * ROWS_PER_ITEM; t < min64(job->shape.rows, (item + 1) * ROWS_PER_ITEM); t++) rope_row(job, t);
}

EXPORT void sigmoe_qk_norm_rope_kv(
    const rope_shape *shape, const char *qkv, const char *q_weight, const char *k_weight, const float *cos_sin,
    const int32_t *positions, const int32_t *slots, char *key, char *value, const float *key_scale, const float *value_scale,
    char *q
) {
    rope_job job = {*shape, qkv, q_weight, k_weight, cos_sin, key_scale, value_scale, positions, slots, key, value, q};
    const int64_t work = shape->rows * (shape->heads + shape->kv_heads) * shape->dim;
    pool_run(ceil_div(shape->rows, ROWS_PER_ITEM), pool_threads_for(work, 1 << 14), rope_item, &job);
}
