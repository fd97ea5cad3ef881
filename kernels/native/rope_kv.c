// QK-norm, partial rotary embedding and the write into the paged KV cache, in one pass over the rows of QKV.
//
// Keys lie transposed in their block, fp32 [D][block], bf16 [D / 2][block][2], so that sixteen positions are one
// vector; values lie as they come, [block][D].
#include "rows.h"

enum { MAX_HEAD_DIM = 512 };

INLINE void rotate(void *head, const float *cos_sin, int64_t rotary, int dtype) {
    const int64_t half = rotary / 2;
    const float *c = cos_sin, *s = cos_sin + half;
    for (int64_t i = 0; i < half; i++) {
        float a = load_as_float(head, i, dtype), b = load_as_float(head, i + half, dtype);
        store_float(head, i, a * c[i] - b * s[i], dtype);
        store_float(head, i + half, b * c[i] + a * s[i], dtype);
    }
}

INLINE void write_key(const void *head, void *block, int64_t dim, int64_t block_size, int64_t offset, int dtype) {
    for (int64_t d = 0; d < dim; d++) {
        if (dtype == BF16)
            ((bf16 *)block)[((d / 2) * block_size + offset) * 2 + (d & 1)] = ((const bf16 *)head)[d];
        else
            ((float *)block)[d * block_size + offset] = ((const float *)head)[d];
    }
}

typedef struct {
    int64_t rows, heads, kv_heads, dim, rotary, block_size;
    float eps;
    int dtype;
} rope_shape;

EXPORT void sigmoe_qk_norm_rope_kv(
    const rope_shape *shape, const void *qkv, const void *q_weight, const void *k_weight, const float *cos_sin,
    const int32_t *positions, const int32_t *slots, void *key, void *value, void *q
) {
    const rope_shape s = *shape;
    const int64_t size = element_size(s.dtype), row_bytes = (s.heads + 2 * s.kv_heads) * s.dim * size;
    const int64_t head_bytes = s.dim * size, block_bytes = s.block_size * head_bytes;
#pragma omp parallel for schedule(static) num_threads(threads_for(s.rows * (s.heads + s.kv_heads) * s.dim, 1 << 14))
    for (int64_t t = 0; t < s.rows; t++) {
        const char *row = (const char *)qkv + t * row_bytes;
        const float *angles = cos_sin + positions[t] * s.rotary;
        for (int64_t h = 0; h < s.heads; h++) {
            void *out = (char *)q + (t * s.heads + h) * head_bytes;
            norm_row(row + h * head_bytes, q_weight, s.eps, s.dim, s.dtype, out);
            rotate(out, angles, s.rotary, s.dtype);
        }
        const int64_t block = slots[t] / s.block_size, offset = slots[t] % s.block_size;
        for (int64_t g = 0; g < s.kv_heads; g++) {
            char head[MAX_HEAD_DIM * 4];
            const int64_t at = (block * s.kv_heads + g) * block_bytes;
            norm_row(row + (s.heads + g) * head_bytes, k_weight, s.eps, s.dim, s.dtype, head);
            rotate(head, angles, s.rotary, s.dtype);
            write_key(head, (char *)key + at, s.dim, s.block_size, offset, s.dtype);
            memcpy((char *)value + at + offset * head_bytes, row + (s.heads + s.kv_heads + g) * head_bytes, (size_t)head_bytes);
        }
    }
}
