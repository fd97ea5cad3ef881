// Draws one token per row by inverse distribution function, from the whole vocabulary or from its likeliest tokens.
//
// Masses are exp((x - max) / temperature) in fp32, 1 for the best token; sums of them are fp64.
#include "common.h"
#include "pool.h"

enum { BLOCK = 1024 };       // tokens under one partial sum of the whole vocabulary's distribution function
enum { FEW = 512, MAX_HALVINGS = 24 };  // candidates worth sorting at once; steps towards so few
static const float NOTHING = -87.0f;    // exponents below: less than 1e-37 of the best token counts as none

typedef struct {
    const float *logits;  // [rows, vocab]
    const float *temperature, *min_p;  // [rows]
    const double *top_p;               // [rows]
    const int64_t *top_k;                      // [rows], in [1, vocab]
    const double *points;                      // [rows], in [0, 1)
    int64_t rows, vocab;
    int64_t *ids;  // [rows]
} draw_job;

typedef struct {
    float logit, mass;
    int64_t id;
} candidate;

static float largest(const float *x, int64_t n) {
    float best = -INFINITY;
    int64_t i = 0;
#ifdef HAS_AVX512
    __m512 lanes = _mm512_set1_ps(-INFINITY);
    for (; i + 16 <= n; i += 16) lanes = _mm512_max_ps(lanes, _mm512_loadu_ps(x + i));
    best = _mm512_reduce_max_ps(lanes);
#endif
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

INLINE float mass_of(float x, float best, float temperature, float floor) {
    float exponent = (x - best) / temperature;
    float mass = exponent > NOTHING ? expf(exponent) : 0.0f;
    return mass >= floor ? mass : 0.0f;
}

// The mass of every token, 0 below `floor`; returns their sum, and the sum of each BLOCK.
static double all_masses(const float *x, int64_t n, float best, float temperature, float floor, float *mass, double *blocks) {
    double total = 0.0;
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = min64(n, start + BLOCK);
        double sum = 0.0;
        int64_t i = start;
#ifdef HAS_AVX512
        const __m512 bests = _mm512_set1_ps(best), temperatures = _mm512_set1_ps(temperature), floors = _mm512_set1_ps(floor);
        __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
        for (; i + 16 <= end; i += 16) {
            __m512 exponent = _mm512_div_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), bests), temperatures);
            __m512 m = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(exponent, _mm512_set1_ps(NOTHING), _CMP_GT_OQ), exp16(exponent));
            m = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(m, floors, _CMP_GE_OQ), m);
            _mm512_storeu_ps(mass + i, m);
            low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(m)));
            high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(m, 1)));
        }
        sum = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
#endif
        for (; i < end; i++) {
            mass[i] = mass_of(x[i], best, temperature, floor);
            sum += mass[i];
        }
        blocks[start / BLOCK] = sum;
        total += sum;
    }
    return total;
}

// The token at which the distribution function over the ids passes point * total.
static int64_t pick_by_id(const float *mass, const double *blocks, int64_t n, double total, double point) {
    const double target = point * total;
    double passed = 0.0;
    int64_t block = 0, last = 0;
    const int64_t num_blocks = ceil_div(n, BLOCK);
    while (block + 1 < num_blocks && passed + blocks[block] <= target) passed += blocks[block++];
    // Within the block the sum is taken one by one and may end a rounding error short: then its last token is meant,
    // or, where the block is empty, the last one before it.
    for (int64_t i = block * BLOCK; i < n; i++) {
        if (mass[i] > 0.0f) last = i;
        passed += mass[i];
        if (passed > target) return i;
    }
    for (int64_t i = block * BLOCK; last == 0 && i-- > 0;)
        if (mass[i] > 0.0f) last = i;
    return last;
}

typedef struct {
    int64_t count;
    double mass;
} share;

// How many tokens reach `bound`, and what they weigh where their masses are known.
static share share_above(const float *x, const float *mass, int64_t n, float bound) {
    share found = {0, 0.0};
    int64_t i = 0;
#ifdef HAS_AVX512
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    for (; i + 16 <= n; i += 16) {
        __mmask16 above = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_set1_ps(bound), _CMP_GE_OQ);
        found.count += __builtin_popcount(above);
        if (mass && above) {
            __m512 m = _mm512_maskz_loadu_ps(above, mass + i);
            low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(m)));
            high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(m, 1)));
        }
    }
    found.mass = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
#endif
    for (; i < n; i++)
        if (x[i] >= bound) {
            found.count++;
            if (mass) found.mass += mass[i];
        }
    return found;
}

// A bound that enough tokens reach, and few more: `k` of them, or `nucleus` of their mass where masses are known.
static float candidate_bound(const float *x, const float *mass, int64_t n, float best, int64_t k, double nucleus) {
    float far = 1.0f, near = 0.0f;  // distances below the best logit; `far` is enough
    share found = share_above(x, mass, n, best - far);
    // A rounding error in the sum must not leave the last token of the nucleus out.
    nucleus *= 1.0 + 1e-9;
    while (found.count < k && !(mass && found.mass >= nucleus)) {
        if (far > 1e38f) return -INFINITY;
        near = far;
        far *= 2.0f;
        found = share_above(x, mass, n, best - far);
    }
    for (int step = 0; step < MAX_HALVINGS && found.count > FEW; step++) {
        const float middle = 0.5f * (near + far);
        const share closer = share_above(x, mass, n, best - middle);
        if (closer.count >= k || (mass && closer.mass >= nucleus)) {
            far = middle;
            found = closer;
        } else
            near = middle;
    }
    return best - far;
}

static int likelier_first(const void *a, const void *b) {
    const candidate *p = a, *q = b;
    if (p->logit != q->logit) return p->logit > q->logit ? -1 : 1;
    return p->id < q->id ? -1 : 1;
}

// The tokens that reach `bound`, likeliest first, equals by id; returns their number.
static int64_t gather(const float *x, int64_t n, float bound, candidate *out) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        if (x[i] >= bound) out[count++] = (candidate){x[i], 0.0f, i};
    qsort(out, (size_t)count, sizeof(candidate), likelier_first);
    return count;
}

// Top-k, then top-p of what it left, then min-p; the distribution function runs from the likeliest token down.
static int64_t pick_ranked(const draw_job *job, int64_t r, const float *x, float best, float *mass, double *blocks, candidate *line) {
    const int64_t n = job->vocab, k = job->top_k[r];
    const float temperature = job->temperature[r];
    const double top_p = job->top_p[r];
    const int has_top_k = k < n;
    // With top-k the masses of the others do not matter.
    const double everything = has_top_k ? 0.0 : all_masses(x, n, best, temperature, 0.0f, mass, blocks);
    const float bound = candidate_bound(x, has_top_k ? NULL : mass, n, best, k, top_p * everything);
    const int64_t count = min64(gather(x, n, bound, line), k);
    if (count == 0) return 0;  // no logit is a number: any id will do
    double ranked = 0.0;
    for (int64_t i = 0; i < count; i++) {
        line[i].mass = has_top_k ? mass_of(line[i].logit, best, temperature, 0.0f) : mass[line[i].id];
        ranked += line[i].mass;
    }
    const double nucleus = top_p < 1.0 ? top_p * (has_top_k ? ranked : everything) : (double)INFINITY;
    int64_t kept = 0;
    double total = 0.0;
    while (kept < count && (kept == 0 || (total < nucleus && line[kept].mass >= job->min_p[r]))) total += line[kept++].mass;
    double passed = 0.0;
    int64_t last = 0;
    for (int64_t i = 0; i < kept; i++) {
        if (line[i].mass > 0.0f) last = i;
        passed += line[i].mass;
        if (passed > job->points[r] * total) return line[i].id;
    }
    return line[last].id;
}

static void draw_row(void *context, int64_t r, int thread) {
    const draw_job *job = context;
    const int64_t n = job->vocab;
    const float *x = job->logits + r * n;
    const float best = largest(x, n);
    (void)thread;
    float *mass = malloc((size_t)n * sizeof(float));
    double *blocks = malloc((size_t)ceil_div(n, BLOCK) * sizeof(double));
    if (job->top_k[r] < n || job->top_p[r] < 1.0) {
        candidate *line = malloc((size_t)n * sizeof(candidate));
        job->ids[r] = pick_ranked(job, r, x, best, mass, blocks, line);
        free(line);
    } else {
        double total = all_masses(x, n, best, job->temperature[r], job->min_p[r], mass, blocks);
        job->ids[r] = pick_by_id(mass, blocks, n, total, job->points[r]);
    }
    free(blocks);
    free(mass);
}

EXPORT void sigmoe_draw_tokens(const draw_job *job) {
    draw_job copy = *job;
    pool_run(copy.rows, pool_threads_for(copy.rows * copy.vocab, 1 << 14), draw_row, &copy);
}
