// down(silu(gate x) * (up x)) for the rows of many experts in one parallel region.
//
// Rows lie sorted by expert. Gate and up panels alternate, so that one group of four panels yields 32 products
// silu(gate) * up; the products are rounded once to the activation dtype, as the input of down.
#include "gemm.h"

enum { PAIRS = GROUP / 2 };  // outputs of gate (and of up) in one group

EXPORT int64_t sigmoe_gate_up_bytes(int64_t inner, int64_t hidden, int dtype) {
    return ceil_div(inner, PAIRS) * (GROUP / PANEL) * panel_bytes(hidden, dtype);
}

EXPORT void sigmoe_pack_gate_up(const void *gate, const void *up, int64_t inner, int64_t hidden, int dtype, char *packed) {
    pack_panels(gate, inner, hidden, dtype, packed, 2, 0);
    pack_panels(up, inner, hidden, dtype, packed, 2, 1);
}

// sums: [16 gate][16 up] once or twice; `first` counts panels' outputs, two for each product.
static void store_product(const epilogue *e, const float *sums, int64_t sums_stride, int rows, int width, int64_t row, int64_t first) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < width; i += 2 * PANEL) {
            const float *gate = sums + r * sums_stride + i, *up = gate + PANEL;
            int64_t column = (first + i) / 2, at = (row + r) * e->out_stride + column;
            int64_t count = min64(PANEL, e->num_out - column);
            if (count <= 0) continue;
#ifdef HAS_AVX512
            __m512 g = _mm512_loadu_ps(gate), u = _mm512_loadu_ps(up), one = _mm512_set1_ps(1.0f);
            __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), g))));
            store16(e->out, at, _mm512_mul_ps(silu, u), e->dtype, (int)count);
#else
            for (int64_t j = 0; j < count; j++) store_float(e->out, at + j, gate[j] / (1.0f + expf(-gate[j])) * up[j], e->dtype);
#endif
        }
}

typedef struct {
    int64_t expert, row, rows;
} run;  // the rows of one expert, cut into pieces that fit the cache

static int64_t list_runs(const int32_t *counts, int64_t experts, run *runs) {
    enum { ROW_BLOCK = 192 };
    int64_t n = 0, row = 0;
    for (int64_t e = 0; e < experts; e++)
        for (int64_t left = counts[e]; left > 0; n++) {
            runs[n] = (run){e, row, min64(ROW_BLOCK, left)};
            row += runs[n].rows;
            left -= runs[n].rows;
        }
    return n;
}

typedef struct {
    const run *runs;
    tile_job tile;
    int64_t groups;  // of one expert
    const epilogue *end;
} grouped_job;

static void grouped_item(void *context, int64_t item, int thread) {
    const grouped_job *job = context;
    const run *at = &job->runs[item / job->groups];
    const int64_t g = item % job->groups;
    tile_job tile = job->tile;
    (void)thread;
    tile.weights += (at->expert * job->groups + g) * (GROUP / PANEL) * panel_bytes(tile.k, tile.dtype);
    block_times_group(&tile, at->row, at->rows, g * GROUP, job->end);
}

// rows [R, hidden] sorted by expert, counts [experts] -> out [R, hidden]; scratch [R, inner rounded up to 2].
EXPORT void sigmoe_grouped_swiglu(
    const void *rows, const int32_t *counts, int64_t experts, int64_t hidden, int64_t inner,
    const char *gate_up, const char *down, int dtype, void *scratch, void *out, int64_t num_rows
) {
    run *runs = malloc(sizeof(run) * (size_t)(num_rows + 1));
    int64_t num_runs = list_runs(counts, experts, runs), stride, inner_stride = inner + (inner & 1);
    void *to_free;
    const void *x = pad_rows(rows, num_rows, hidden, dtype, &stride, &to_free);
    const epilogue product = {.store = store_product, .out = scratch, .out_stride = inner_stride, .num_out = inner, .dtype = dtype};
    const epilogue plain = {.store = store_plain, .out = out, .out_stride = hidden, .num_out = hidden, .dtype = dtype};
    const tile_job up_tile = {.x = x, .stride = stride, .weights = gate_up, .k = hidden, .dtype = dtype};
    const tile_job down_tile = {.x = scratch, .stride = inner_stride, .weights = down, .k = inner, .dtype = dtype};
    grouped_job up_job = {.runs = runs, .tile = up_tile, .groups = ceil_div(inner, PAIRS), .end = &product};
    grouped_job down_job = {.runs = runs, .tile = down_tile, .groups = ceil_div(hidden, GROUP), .end = &plain};
    const int threads = pool_threads_for(num_runs * hidden * inner * 3 + num_rows * hidden * inner / 4, 1 << 15);
    pool_run(num_runs * up_job.groups, threads, grouped_item, &up_job);
    pool_run(num_runs * down_job.groups, threads, grouped_item, &down_job);
    free(to_free);
    free(runs);
}
