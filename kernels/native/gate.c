// Group-limited sigmoid top-k over the gate's logits, fp32 throughout; ties go to the lower id.
#include "common.h"

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

EXPORT void sigmoe_group_topk(const gate_shape *shape, const float *logits, const float *bias, int32_t *ids, float *weights) {
    const gate_shape s = *shape;
#pragma omp parallel num_threads(threads_for(s.rows * s.experts * s.k, 1 << 14))
    {
        float *scores = malloc(sizeof(float) * (size_t)(2 * s.experts + s.groups)), *biased = scores + s.experts;
        uint8_t *taken = malloc((size_t)s.experts);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < s.rows; t++) {
            sigmoid_row(logits + t * s.experts, s.experts, scores);
            for (int64_t e = 0; e < s.experts; e++) biased[e] = orderly(scores[e] + bias[e]);
            limit_groups(biased, &s, biased + s.experts);
            memset(taken, 0, (size_t)s.experts);
            float sum = 0.0f;
            for (int64_t j = 0; j < s.k; j++) {
                int64_t e = best_expert(biased, taken, s.experts);
                taken[e] = 1;
                ids[t * s.k + j] = (int32_t)e;
                weights[t * s.k + j] = scores[e];
                sum += scores[e];
            }
            const float factor = s.normalise ? s.scale / (sum + 1e-20f) : s.scale;
            for (int64_t j = 0; j < s.k; j++) weights[t * s.k + j] *= factor;
        }
        free(taken);
        free(scores);
    }
}
