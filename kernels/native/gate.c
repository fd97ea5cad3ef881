// Group-limited sigmoid top-k over the gate's logits, fp32 throughout; ties go to the lower id.
#include "common.h"
#include "pool.h"

enum { ROWS_PER_ITEM = 16 };

typedef struct {
    int64_t rows, experts, groups, kept_groups, k;
    float scale;
    int normalise;
} gate_shape;

// A NaN never wins: as -inf it is chosen last, and the row's weights stay NaN.
INLINE float orderly(float x) { return x == x ? x : -INFINITY; }

static void sigmoid_row(const float *logits, int64_t n, float *scores) {
    int64_t i = 0;
#ifdef HAS_AVX512
    const __m512 one = _mm512_set1_ps(1.0f);
    for (; i + 16 <= n; i += 16) {
        __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_loadu_ps(logits + i)));
        _mm512_storeu_ps(scores + i, _mm512_div_ps(one, _mm512_add_ps(one, e)));
    }
#endif
    for (; i < n; i++) scores[i] = 1.0f / (1.0f + expf(-logits[i]));
}

// Marks the `keep` groups with the largest sums of their two best biased scores: the rest fall to -inf.
static void limit_groups(float *biased, const gate_shape *s, float *group_scores) {
    const int64_t size = s->experts / s->groups;
    for (int64_t g = 0; g < s->groups; g++) {
        float best = -INFINITY, second = -INFINITY;
        for (int64_t i = 0; i < size; i++) {
            float b = biased[g * size + i];
            if (b > best) {
                second = best;
                best = b;
            } else if (b > second)
                second = b;
        }
        group_scores[g] = best + second;
    }
    for (int64_t g = 0; g < s->groups; g++) {
        int64_t ahead = 0;
        for (int64_t o = 0; o < s->groups; o++)
            ahead += group_scores[o] > group_scores[g] || (group_scores[o] == group_scores[g] && o < g);
        if (ahead >= s->kept_groups)
            for (int64_t i = 0; i < size; i++) biased[g * size + i] = -INFINITY;
    }
}

static int64_t best_expert(const float *biased, const uint8_t *taken, int64_t n) {
    int64_t best = -1;
    for (int64_t e = 0; e < n; e++)
        if (!taken[e] && (best < 0 || biased[e] > biased[best])) best = e;
    return best;
}

typedef struct {
    gate_shape shape;
    const float *logits, *bias;
    int32_t *ids;
    float *weights;
} gate_job;

static void gate_row(const gate_job *job, int64_t t, float *scores, uint8_t *taken) {
    const gate_shape *s = &job->shape;
    float *biased = scores + s->experts, sum = 0.0f;
    int32_t *ids = job->ids + t * s->k;
    float *weights = job->weights + t * s->k;
    sigmoid_row(job->logits + t * s->experts, s->experts, scores);
    for (int64_t e = 0; e < s->experts; e++) biased[e] = orderly(scores[e] + job->bias[e]);
    limit_groups(biased, s, biased + s->experts);
    memset(taken, 0, (size_t)s->experts);
    for (int64_t j = 0; j < s->k; j++) {
        int64_t e = best_expert(biased, taken, s->experts);
        taken[e] = 1;
        ids[j] = (int32_t)e;
        weights[j] = scores[e];
        sum += scores[e];
    }
    const float factor = s->normalise ? s->scale / (sum + 1e-20f) : s->scale;
    for (int64_t j = 0; j < s->k; j++) weights[j] *= factor;
}

static void gate_item(void *context, int64_t item, int thread) {
    const gate_job *job = context;
    const int64_t experts = job->shape.experts;
    (void)thread;
    float *scores = malloc((size_t)((2 * experts + job->shape.groups) * 4 + experts));
    uint8_t *taken = (uint8_t *)(scores + 2 * experts + job->shape.groups);
    for (int64_t t = item * ROWS_PER_ITEM; t < min64(job->shape.rows, (item + 1) * ROWS_PER_ITEM); t++) gate_row(job, t, scores, taken);
    free(scores);
}

EXPORT void sigmoe_group_topk(const gate_shape *shape, const float *logits, const float *bias, int32_t *ids, float *weights) {
    gate_job job = {*shape, logits, bias, ids, weights};
    pool_run(ceil_div(shape->rows, ROWS_PER_ITEM), pool_threads_for(shape->rows * shape->experts * shape->k, 1 << 14), gate_item, &job);
}
