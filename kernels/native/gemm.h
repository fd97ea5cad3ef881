// Micro-kernels over packed weights. A panel holds sixteen outputs; a group is four panels, 64 outputs, read together.
//
// fp32 panel: [K][16].  bf16 panel: [K / 2 rounded up to 16][16][2], pairs of inputs side by side, so that one
// 64-byte row feeds VDPBF16PS and sixteen rows are a tile of TDPBF16PS. Both are padded with zeros.
// Every output is one chain of additions over k, whatever the number of rows: rows do not know their neighbours.
// The tiles add in another order than the vectors; which of the two runs depends on the number of rows (bf16 only).
#ifndef SIGMOE_GEMM_H
#define SIGMOE_GEMM_H

#include "common.h"
#include "pool.h"

enum { PANEL = 16, GROUP = 64, MAX_ROWS = 6, TILE_ROWS_FROM = 12 };

INLINE int64_t padded_k(int64_t k, int dtype) { return dtype == BF16 ? ceil_div(k, 32) * 32 : k; }
INLINE int64_t panel_bytes(int64_t k, int dtype) { return padded_k(k, dtype) * PANEL * element_size(dtype); }

extern int sigmoe_amx_enabled;

// Sums of `rows` rows (1..MAX_ROWS) times four panels: out[row][64]. x rows are `stride` elements apart.
typedef struct {
    const void *x;
    int64_t stride;
    const char *weights;  // the first of four panels that lie side by side
    int64_t k;
    int dtype;
} tile_job;

#ifdef HAS_AVX512

INLINE void fma_rows_f32(int rows, const tile_job *job, __m512 acc[MAX_ROWS][4]) {
    const float *x = job->x;
    const float *w0 = (const float *)job->weights, *w1 = w0 + job->k * PANEL;
    const float *w2 = w1 + job->k * PANEL, *w3 = w2 + job->k * PANEL;
    for (int64_t k = 0; k < job->k; k++) {
        __m512 a = _mm512_loadu_ps(w0 + k * PANEL), b = _mm512_loadu_ps(w1 + k * PANEL);
        __m512 c = _mm512_loadu_ps(w2 + k * PANEL), d = _mm512_loadu_ps(w3 + k * PANEL);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512 v = _mm512_set1_ps(x[r * job->stride + k]);
            acc[r][0] = _mm512_fmadd_ps(a, v, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(b, v, acc[r][1]);
            acc[r][2] = _mm512_fmadd_ps(c, v, acc[r][2]);
            acc[r][3] = _mm512_fmadd_ps(d, v, acc[r][3]);
        }
    }
}

#ifdef HAS_DPBF16
INLINE __m512 dot_pairs(__m512 acc, __m512i w, __m512i x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }
#else
INLINE __m512 dot_pairs(__m512 acc, __m512i w, __m512i x) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w, high)), _mm512_castsi512_ps(_mm512_and_si512(x, high)), acc);
}
#endif

INLINE void fma_rows_bf16(int rows, const tile_job *job, __m512 acc[MAX_ROWS][4]) {
    const bf16 *x = job->x;
    const int64_t pairs = ceil_div(job->k, 2), step = padded_k(job->k, BF16) * PANEL;
    const bf16 *w0 = (const bf16 *)job->weights, *w1 = w0 + step, *w2 = w1 + step, *w3 = w2 + step;
    for (int64_t p = 0; p < pairs; p++) {
        __m512i a = _mm512_loadu_si512(w0 + p * 32), b = _mm512_loadu_si512(w1 + p * 32);
        __m512i c = _mm512_loadu_si512(w2 + p * 32), d = _mm512_loadu_si512(w3 + p * 32);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * job->stride + 2 * p, 4);
            __m512i v = _mm512_set1_epi32(pair);
            acc[r][0] = dot_pairs(acc[r][0], a, v);
            acc[r][1] = dot_pairs(acc[r][1], b, v);
            acc[r][2] = dot_pairs(acc[r][2], c, v);
            acc[r][3] = dot_pairs(acc[r][3], d, v);
        }
    }
}

INLINE void rows_times_group_n(int rows, const tile_job *job, float out[MAX_ROWS][GROUP]) {
    __m512 acc[MAX_ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < 4; p++) acc[r][p] = _mm512_setzero_ps();
    if (job->dtype == BF16)
        fma_rows_bf16(rows, job, acc);
    else
        fma_rows_f32(rows, job, acc);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < 4; p++) _mm512_storeu_ps(out[r] + p * PANEL, acc[r][p]);
}

static inline void rows_times_group(int rows, const tile_job *job, float out[MAX_ROWS][GROUP]) {
    switch (rows) {
        case 1: rows_times_group_n(1, job, out); break;
        case 2: rows_times_group_n(2, job, out); break;
        case 3: rows_times_group_n(3, job, out); break;
        case 4: rows_times_group_n(4, job, out); break;
        case 5: rows_times_group_n(5, job, out); break;
        default: rows_times_group_n(6, job, out); break;
    }
}

#else  // any CPU: the compiler's own vectors

static inline void rows_times_group(int rows, const tile_job *job, float out[MAX_ROWS][GROUP]) {
    const int64_t step = panel_bytes(job->k, job->dtype);
    for (int p = 0; p < 4; p++) {
        const char *panel = job->weights + p * step;
        for (int r = 0; r < rows; r++) {
            float acc[PANEL] = {0};
            for (int64_t k = 0; k < job->k; k++) {
                float v = load_as_float(job->x, r * job->stride + k, job->dtype);
                for (int n = 0; n < PANEL; n++) {
                    int64_t at = job->dtype == BF16 ? (k / 2) * 32 + 2 * n + (k & 1) : k * PANEL + n;
                    acc[n] += v * load_as_float(panel, at, job->dtype);
                }
            }
            memcpy(out[r] + p * PANEL, acc, sizeof acc);
        }
    }
}

#endif

#ifdef HAS_AMX

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
} tile_config;

// Tiles 0..3: sums of two row tiles by two panels; 4, 5: rows; 6, 7: weights.
static inline void configure_tiles(int rows) {
    tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes_per_row[t] = 64;
        config.rows[t] = t < 6 ? (uint8_t)rows : 16;
    }
    _tile_loadconfig(&config);
}

// 32 rows times two panels, or up to 16 rows (as configured) times two panels: out[row][32].
static inline void tiles_32_rows(const bf16 *x, int64_t stride, const char *weights, int64_t k, float out[32][32]) {
    const int64_t chunks = padded_k(k, BF16) / 32, step = panel_bytes(k, BF16);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t c = 0; c < chunks; c++) {
        _tile_loadd(6, weights + c * 1024, 64);
        _tile_loadd(4, x + c * 32, 2 * stride);
        _tile_loadd(7, weights + step + c * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + 16 * stride + c * 32, 2 * stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out[0], 128); _tile_stored(1, out[0] + 16, 128);
    _tile_stored(2, out[16], 128); _tile_stored(3, out[16] + 16, 128);
}

static inline void tiles_16_rows(const bf16 *x, int64_t stride, const char *weights, int64_t k, float out[32][32]) {
    const int64_t chunks = padded_k(k, BF16) / 32, step = panel_bytes(k, BF16);
    _tile_zero(0); _tile_zero(1);
    for (int64_t c = 0; c < chunks; c++) {
        _tile_loadd(4, x + c * 32, 2 * stride);
        _tile_loadd(6, weights + c * 1024, 64);
        _tile_loadd(7, weights + step + c * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, out[0], 128); _tile_stored(1, out[0] + 16, 128);
}

#endif

// What becomes of the sums: `width` (64 or 32) of them for each of `rows` rows, from row `row`, output `first` on.
typedef struct epilogue epilogue;
struct epilogue {
    void (*store)(const epilogue *self, const float *sums, int64_t sums_stride, int rows, int width, int64_t row, int64_t first);
    void *out;
    int64_t out_stride, num_out;
    int dtype;
};

static inline void store_plain(
    const epilogue *e, const float *sums, int64_t sums_stride, int rows, int width, int64_t row, int64_t first
) {
    int64_t count = min64(width, e->num_out - first);
    for (int r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i += PANEL) {
            int64_t at = (row + r) * e->out_stride + first + i;
            const float *from = sums + r * sums_stride + i;
#ifdef HAS_AVX512
            store16(e->out, at, _mm512_loadu_ps(from), e->dtype, (int)min64(PANEL, count - i));
#else
            for (int64_t j = 0; j < min64(PANEL, count - i); j++) store_float(e->out, at + j, from[j], e->dtype);
#endif
        }
}

// Rows [row, row + rows) of x times the group of four panels at `weights`, whose first output is `first`.
static inline void block_times_group(const tile_job *base, int64_t row, int64_t rows, int64_t first, const epilogue *end) {
    tile_job job = *base;
    int64_t done = 0;
#ifdef HAS_AMX
    if (job.dtype == BF16 && sigmoe_amx_enabled && rows >= TILE_ROWS_FROM && job.k % 32 == 0) {
        float sums[32][32] __attribute__((aligned(64)));
        const bf16 *x = (const bf16 *)job.x + row * job.stride;
        const int64_t step = panel_bytes(job.k, BF16);
        configure_tiles(16);
        for (; rows - done >= 32; done += 32)
            for (int half = 0; half < 2; half++) {
                tiles_32_rows(x + done * job.stride, job.stride, job.weights + 2 * half * step, job.k, sums);
                end->store(end, sums[0], 32, 32, 32, row + done, first + 32 * half);
            }
        for (; done < rows; done += 16) {
            int left = (int)min64(16, rows - done);
            if (left < 16) configure_tiles(left);
            for (int half = 0; half < 2; half++) {
                tiles_16_rows(x + done * job.stride, job.stride, job.weights + 2 * half * step, job.k, sums);
                end->store(end, sums[0], 32, left, 32, row + done, first + 32 * half);
            }
        }
        _tile_release();
        return;
    }
#endif
    float sums[MAX_ROWS][GROUP] __attribute__((aligned(64)));
    for (; done < rows; done += MAX_ROWS) {
        int count = (int)min64(MAX_ROWS, rows - done);
        job.x = (const char *)base->x + (row + done) * job.stride * element_size(job.dtype);
        rows_times_group(count, &job, sums);
        end->store(end, sums[0], GROUP, count, GROUP, row + done, first);
    }
}

// bf16 inputs are read in pairs: an odd width needs rows padded with a zero. Returns x itself where none is needed.
static inline void *pad_rows(const void *x, int64_t rows, int64_t k, int dtype, int64_t *stride, void **to_free) {
    *stride = k;
    *to_free = NULL;
    if (dtype != BF16 || k % 2 == 0) return (void *)x;
    *stride = k + 1;
    bf16 *padded = calloc((size_t)(rows * (k + 1)), 2);
    for (int64_t r = 0; r < rows; r++) memcpy(padded + r * (k + 1), (const bf16 *)x + r * k, (size_t)(2 * k));
    *to_free = padded;
    return padded;
}

typedef struct {
    const void *weight;
    int64_t n, k, every, offset;
    int dtype;
    char *packed;
} pack_job;

static inline void pack_panel(void *context, int64_t p, int thread) {
    const pack_job *job = context;
    const int64_t k = job->k, bytes = panel_bytes(k, job->dtype);
    char *panel = job->packed + (p * job->every + job->offset) * bytes;
    (void)thread;
    memset(panel, 0, (size_t)bytes);
    for (int64_t i = 0; i < PANEL && p * PANEL + i < job->n; i++) {
        if (job->dtype == BF16) {
            const bf16 *row = (const bf16 *)job->weight + (p * PANEL + i) * k;
            bf16 *to = (bf16 *)panel + 2 * i;
            for (int64_t c = 0; c < k; c++) to[(c / 2) * 32 + (c & 1)] = row[c];
        } else {
            const float *row = (const float *)job->weight + (p * PANEL + i) * k;
            float *to = (float *)panel + i;
            for (int64_t c = 0; c < k; c++) to[c * PANEL] = row[c];
        }
    }
}

// Pack the outputs of weight [n, k] into every `every`th panel, from panel `offset` on.
static inline void pack_panels(const void *weight, int64_t n, int64_t k, int dtype, char *packed, int64_t every, int64_t offset) {
    pack_job job = {weight, n, k, every, offset, dtype, packed};
    pool_run(ceil_div(n, PANEL), pool_threads_for(n * k, 1 << 16), pack_panel, &job);
}

#endif
