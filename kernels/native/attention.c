// Causal attention over the paged KV cache: decodes, chunks and verifies alike.
//
// The queries of some rows that share a KV head walk its positions in chunks of 64, aligned to absolute positions
// whatever the batch: scores = Q K^T by the GEMM micro-kernels, online softmax, sums += P V by the same kernels.
// Positions past a sequence's context are read as zero, so that stale blocks cannot leak in. Chunks that a window hides
// from a whole item are not walked; to a single row a hidden chunk adds nothing, bit by bit.
// An FP8 cache becomes numbers of the rows' dtype, in which e4m3 is exact, on the way into the panels; the scales of its
// heads go into the scores and into what comes out.
#include "e4m3.h"
#include "gemm.h"

enum { CHUNK = 64, MAX_QUERIES = 64 };

typedef struct {
    int64_t sequences, heads, kv_heads, dim, block_size, table_width;
    int64_t window;  // positions that a row sees, its own included; at least its position + 1: all
    float scale;
    int dtype;
    int is_fp8;  // the cache's numbers; queries are of `dtype`
} attention_shape;

typedef struct {
    const char *key, *value;
    const float *key_scale, *value_scale;  // of an FP8 cache, one a KV head
    char numbers[E4M3_NUMBERS * 4];        // its numbers in the dtype of the queries
} attention_cache;

typedef struct {
    int64_t sequence, kv_head, first_row, rows;
} attention_item;

typedef struct {
    char *query, *keys, *values, *probabilities;
    float *scores, *partial, *sums, *largest, *total, *shrink;
    char *end;
} attention_scratch;

static int64_t list_items(const attention_shape *s, const int32_t *row_starts, attention_item *items) {
    const int64_t block = s->heads / s->kv_heads < MAX_QUERIES ? MAX_QUERIES / (s->heads / s->kv_heads) : 1;
    int64_t n = 0;
    for (int64_t b = 0; b < s->sequences; b++)
        for (int64_t row = row_starts[b]; row < row_starts[b + 1]; row += block)
            for (int64_t g = 0; g < s->kv_heads; g++, n++)
                if (items) items[n] = (attention_item){b, g, row, min64(block, row_starts[b + 1] - row)};
    return n;
}

// Keys of positions [start, start + count) as four panels over `dim` inputs.
static void gather_keys(const attention_shape *s, const char *cache, const int32_t *table, int64_t g, int64_t start, int64_t count, char *panels) {
    const int64_t bytes = panel_bytes(s->dim, s->dtype), unit = 4;  // a pair of bf16, or one float
    const int64_t lines = s->dtype == BF16 ? s->dim / 2 : s->dim;
    const int64_t block_bytes = s->block_size * s->dim * element_size(s->dtype);
    if (count < CHUNK) memset(panels, 0, (size_t)(4 * bytes));
    for (int64_t i = 0; i < count;) {
        int64_t position = start + i, offset = position % s->block_size;
        int64_t run = min64(min64(s->block_size - offset, count - i), PANEL - i % PANEL);
        const char *from = cache + (table[position / s->block_size] * s->kv_heads + g) * block_bytes + offset * unit;
        char *to = panels + (i / PANEL) * bytes + (i % PANEL) * unit;
        if (run == PANEL)
            for (int64_t l = 0; l < lines; l++) memcpy(to + l * PANEL * unit, from + l * s->block_size * unit, PANEL * 4);
        else
            for (int64_t l = 0; l < lines; l++) memcpy(to + l * PANEL * unit, from + l * s->block_size * unit, (size_t)(run * unit));
        i += run;
    }
}

INLINE const char *value_at(const attention_shape *s, const char *cache, const int32_t *table, int64_t g, int64_t position) {
    const int64_t row = (table[position / s->block_size] * s->kv_heads + g) * s->block_size + position % s->block_size;
    return cache + row * s->dim * element_size(s->dtype);
}

// Values of positions [start, start + count) as panels of sixteen channels over 64 inputs, a multiple of four of them.
static void gather_values(const attention_shape *s, const char *cache, const int32_t *table, int64_t g, int64_t start, int64_t count, char *panels) {
    const int64_t bytes = panel_bytes(CHUNK, s->dtype);
    if (count < CHUNK || s->dim % GROUP) memset(panels, 0, (size_t)(ceil_div(s->dim, GROUP) * 4 * bytes));
    for (int64_t i = 0; i < count; i += 2) {
        const char *even = value_at(s, cache, table, g, start + i);
        const char *odd = i + 1 < count ? value_at(s, cache, table, g, start + i + 1) : NULL;
        for (int64_t d = 0; d < s->dim; d += PANEL) {
            const int64_t width = min64(PANEL, s->dim - d);
            if (s->dtype == F32) {
                float *to = (float *)(panels + (d / PANEL) * bytes) + i * PANEL;
                memcpy(to, (const float *)even + d, (size_t)(4 * width));
                if (odd) memcpy(to + PANEL, (const float *)odd + d, (size_t)(4 * width));
                continue;
            }
            bf16 *to = (bf16 *)(panels + (d / PANEL) * bytes) + i * PANEL;
#ifdef HAS_AVX512
            if (width == PANEL && odd) {
                __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const bf16 *)even + d)));
                __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const bf16 *)odd + d)));
                _mm512_storeu_si512(to, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
                continue;
            }
#endif
            for (int64_t j = 0; j < width; j++) {
                to[2 * j] = ((const bf16 *)even)[d + j];
                to[2 * j + 1] = odd ? ((const bf16 *)odd)[d + j] : 0;
            }
        }
    }
}

INLINE void copy_number(void *to, int64_t at, const void *numbers, uint8_t which, int dtype) {
    if (dtype == BF16)
        ((bf16 *)to)[at] = ((const bf16 *)numbers)[which];
    else
        ((float *)to)[at] = ((const float *)numbers)[which];
}

INLINE const uint8_t *fp8_at(const attention_shape *s, const char *cache, const int32_t *table, int64_t g, int64_t position) {
    const int64_t row = (table[position / s->block_size] * s->kv_heads + g) * s->block_size + position % s->block_size;
    return (const uint8_t *)cache + row * s->dim;
}

// As gather_keys, out of an FP8 cache: [block][D].
static void gather_fp8_keys(const attention_shape *s, const attention_cache *cache, const int32_t *table, int64_t g, int64_t start, int64_t count, char *panels) {
    const int64_t bytes = panel_bytes(s->dim, s->dtype);
    if (count < CHUNK) memset(panels, 0, (size_t)(4 * bytes));
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = fp8_at(s, cache->key, table, g, start + i);
        char *to = panels + (i / PANEL) * bytes;
        const int64_t lane = i % PANEL;
        if (s->dtype == BF16)
            for (int64_t d = 0; d < s->dim; d++) copy_number(to, d / 2 * 32 + 2 * lane + (d & 1), cache->numbers, from[d], BF16);
        else
            for (int64_t d = 0; d < s->dim; d++) copy_number(to, d * PANEL + lane, cache->numbers, from[d], F32);
    }
}

// As gather_values, out of an FP8 cache.
static void gather_fp8_values(const attention_shape *s, const attention_cache *cache, const int32_t *table, int64_t g, int64_t start, int64_t count, char *panels) {
    const int64_t bytes = panel_bytes(CHUNK, s->dtype);
    if (count < CHUNK || s->dim % GROUP) memset(panels, 0, (size_t)(ceil_div(s->dim, GROUP) * 4 * bytes));
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = fp8_at(s, cache->value, table, g, start + i);
        for (int64_t d = 0; d < s->dim; d++) {
            char *to = panels + (d / PANEL) * bytes;
            const int64_t lane = d % PANEL;
            if (s->dtype == BF16)
                copy_number(to, i / 2 * 32 + 2 * lane + (i & 1), cache->numbers, from[d], BF16);
            else
                copy_number(to, i * PANEL + lane, cache->numbers, from[d], F32);
        }
    }
}

#ifdef HAS_AVX512
INLINE __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1u);
}
#endif

// One query's scores -> probabilities (not normalised), its running maximum and total; returns what shrinks its sums.
// It sees the positions [hidden, visible) of the chunk.
static float soften(float *scores, int64_t hidden, int64_t visible, float scale, float *largest, float *total, void *probabilities, int dtype) {
    float most = *largest, sum = 0.0f;
#ifdef HAS_AVX512
    __m512 v[4], top = _mm512_set1_ps(-INFINITY), added = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
        __mmask16 mask = first_lanes(visible - 16 * i) & ~first_lanes(hidden - 16 * i);
        __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(scores + 16 * i), _mm512_set1_ps(scale));
        v[i] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), mask, scaled);
        top = _mm512_max_ps(top, v[i]);
    }
    most = fmaxf(most, _mm512_reduce_max_ps(top));
    for (int i = 0; i < 4; i++) {
        __mmask16 seen = _mm512_cmp_ps_mask(v[i], _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        __m512 p = _mm512_maskz_mov_ps(seen, exp16(_mm512_sub_ps(v[i], _mm512_set1_ps(most))));
        added = _mm512_add_ps(added, p);
        store16(probabilities, 16 * i, p, dtype, 16);
    }
    sum = _mm512_reduce_add_ps(added);
#else
    for (int64_t i = hidden; i < visible; i++) most = fmaxf(most, scores[i] * scale);
    for (int64_t i = 0; i < CHUNK; i++) {
        float p = i >= hidden && i < visible ? expf(scores[i] * scale - most) : 0.0f;
        sum += p;
        store_float(probabilities, i, p, dtype);
    }
#endif
    const float shrink = *largest == -INFINITY ? 0.0f : expf(*largest - most);
    *total = *total * shrink + sum;
    *largest = most;
    return shrink;
}

static void multiply(const void *x, int64_t rows, int64_t k, const char *panels, int64_t groups, int dtype, float *out) {
    const epilogue end = {.store = store_plain, .out = out, .out_stride = groups * GROUP, .num_out = groups * GROUP, .dtype = F32};
    for (int64_t g = 0; g < groups; g++) {
        tile_job job = {.x = x, .stride = k, .weights = panels + g * 4 * panel_bytes(k, dtype), .k = k, .dtype = dtype};
        block_times_group(&job, 0, rows, g * GROUP, &end);
    }
}

static void attend(
    const attention_shape *s, const attention_item *item, const char *q, const attention_cache *cache, const int32_t *table,
    int32_t context, const int32_t *positions, attention_scratch *m, char *out
) {
    const int64_t per = s->heads / s->kv_heads, queries = item->rows * per, size = element_size(s->dtype);
    const int64_t width = ceil_div(s->dim, GROUP) * GROUP, groups = width / GROUP, head_bytes = s->dim * size;
    const float scale = s->is_fp8 ? s->scale * cache->key_scale[item->kv_head] : s->scale;
    for (int64_t r = 0; r < item->rows; r++)
        memcpy(m->query + r * per * head_bytes, q + ((item->first_row + r) * s->heads + item->kv_head * per) * head_bytes, (size_t)(per * head_bytes));
    for (int64_t i = 0; i < queries; i++) m->largest[i] = -INFINITY, m->total[i] = 0.0f;
    memset(m->sums, 0, (size_t)(queries * width * 4));
    const int64_t last = positions[item->first_row + item->rows - 1];
    const int64_t first = positions[item->first_row] + 1 - min64(positions[item->first_row] + 1, s->window);
    for (int64_t start = first / CHUNK * CHUNK; start <= last; start += CHUNK) {
        const int64_t count = min64(CHUNK, min64(last + 1, context) - start);
        if (s->is_fp8)
            gather_fp8_keys(s, cache, table, item->kv_head, start, count, m->keys);
        else
            gather_keys(s, cache->key, table, item->kv_head, start, count, m->keys);
        multiply(m->query, queries, s->dim, m->keys, 1, s->dtype, m->scores);
        for (int64_t i = 0; i < queries; i++) {
            const int64_t seen = positions[item->first_row + i / per] - start + 1;
            const int64_t visible = min64(seen, CHUNK), hidden = seen < s->window ? 0 : seen - s->window;
            m->shrink[i] = 1.0f;
            void *p = m->probabilities + i * CHUNK * size;
            if (visible <= hidden)
                memset(p, 0, (size_t)(CHUNK * size));
            else
                m->shrink[i] = soften(m->scores + i * CHUNK, hidden, visible, scale, &m->largest[i], &m->total[i], p, s->dtype);
        }
        if (s->is_fp8)
            gather_fp8_values(s, cache, table, item->kv_head, start, count, m->values);
        else
            gather_values(s, cache->value, table, item->kv_head, start, count, m->values);
        multiply(m->probabilities, queries, CHUNK, m->values, groups, s->dtype, m->partial);
        for (int64_t i = 0; i < queries; i++)
            for (int64_t d = 0; d < width; d++)
                m->sums[i * width + d] = fmaf(m->sums[i * width + d], m->shrink[i], m->partial[i * width + d]);
    }
    for (int64_t i = 0; i < queries; i++) {
        const float inverse = s->is_fp8 ? cache->value_scale[item->kv_head] / m->total[i] : 1.0f / m->total[i];
        char *to = out + ((item->first_row + i / per) * s->heads + item->kv_head * per + i % per) * head_bytes;
        for (int64_t d = 0; d < s->dim; d++) store_float(to, d, m->sums[i * width + d] * inverse, s->dtype);
    }
}

typedef struct {
    attention_shape shape;
    const attention_item *items;
    int64_t num_items, scratch_bytes;
    const char *q;
    const attention_cache *cache;
    const int32_t *tables, *contexts, *positions;
    char *out, *scratch;
} attention_job;

static void *carve(char **from, int64_t bytes) {
    void *piece = *from;
    *from += ceil_div(bytes, 64) * 64;
    return piece;
}

static attention_scratch scratch_at(const attention_shape *s, char *rest) {
    const int64_t per = s->heads / s->kv_heads, most = per < MAX_QUERIES ? MAX_QUERIES : per;
    const int64_t width = ceil_div(s->dim, GROUP) * GROUP;
    attention_scratch m;
    m.query = carve(&rest, most * s->dim * 4);
    m.keys = carve(&rest, 4 * panel_bytes(s->dim, s->dtype));
    m.values = carve(&rest, width / PANEL * panel_bytes(CHUNK, s->dtype));
    m.probabilities = carve(&rest, most * CHUNK * 4);
    m.scores = carve(&rest, most * CHUNK * 4);
    m.partial = carve(&rest, most * width * 4);
    m.sums = carve(&rest, most * width * 4);
    m.largest = carve(&rest, most * 4);
    m.total = carve(&rest, most * 4);
    m.shrink = carve(&rest, most * 4);
    m.end = rest;
    return m;
}

static void attention_task(void *context, int64_t task, int thread) {
    const attention_job *job = context;
    // The last rows of a prompt see the most positions: taken first, they do not end up as the tail.
    const attention_item *item = &job->items[job->num_items - 1 - task];
    attention_scratch m = scratch_at(&job->shape, job->scratch + thread * job->scratch_bytes);
    const int32_t *table = job->tables + item->sequence * job->shape.table_width;
    attend(&job->shape, item, job->q, job->cache, table, job->contexts[item->sequence], job->positions, &m, job->out);
}

EXPORT void sigmoe_paged_attention(
    const attention_shape *shape, const char *q, const char *key, const char *value, const float *key_scale,
    const float *value_scale, const int32_t *tables, const int32_t *row_starts, const int32_t *contexts,
    const int32_t *positions, char *out
) {
    attention_cache cache = {.key = key, .value = value, .key_scale = key_scale, .value_scale = value_scale};
    if (shape->is_fp8) e4m3_numbers(cache.numbers, shape->dtype);
    const int64_t num_items = list_items(shape, row_starts, NULL), scratch_bytes = scratch_at(shape, NULL).end - (char *)NULL;
    int64_t work = 0;
    for (int64_t b = 0; b < shape->sequences; b++)
        work += min64(contexts[b], shape->window) * (row_starts[b + 1] - row_starts[b]) * shape->heads * shape->dim;
    const int threads = pool_threads_for(work, 1 << 15);
    attention_item *items = malloc(sizeof(attention_item) * (size_t)(num_items + 1));
    list_items(shape, row_starts, items);
    char *scratch = aligned_alloc(64, (size_t)(threads * scratch_bytes));
    attention_job job = {*shape, items, num_items, scratch_bytes, q, &cache, tables, contexts, positions, out, scratch};
    pool_run(num_items, threads, attention_task, &job);
    free(scratch);
    free(items);
}
