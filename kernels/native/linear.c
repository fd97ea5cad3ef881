// y = x W^T over packed weights, and what the other kernels share: the backend's name and the tile switch.
#include "gemm.h"

#ifdef HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

int sigmoe_amx_enabled = 0;

// The kernel hands out the tile registers on request, once per process.
EXPORT void sigmoe_use_amx(int wanted) {
#ifdef HAS_AMX
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    sigmoe_amx_enabled = wanted && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    (void)wanted;
#endif
}

EXPORT const char *sigmoe_backend(void) {
#if defined(HAS_DPBF16)
    return sigmoe_amx_enabled ? "native avx512_bf16+amx" : "native avx512_bf16";
#elif defined(HAS_AVX512)
    return "native avx512";
#else
    return "native generic";
#endif
}

EXPORT int64_t sigmoe_packed_bytes(int64_t n, int64_t k, int dtype) {
    return ceil_div(n, GROUP) * (GROUP / PANEL) * panel_bytes(k, dtype);
}

// Panels past the last output stay as the caller made them: zero.
EXPORT void sigmoe_pack(const void *weight, int64_t n, int64_t k, int dtype, char *packed) {
    pack_panels(weight, n, k, dtype, packed, 1, 0);
}

enum { ROW_BLOCK = 192 };  // rows that stay in L2 beside a group of weights

typedef struct {
    tile_job tile;
    int64_t rows, groups;
    const epilogue *end;
} linear_job;

static void linear_item(void *context, int64_t item, int thread) {
    const linear_job *job = context;
    const int64_t g = item % job->groups, row = (item / job->groups) * ROW_BLOCK;
    tile_job tile = job->tile;
    (void)thread;
    tile.weights += g * (GROUP / PANEL) * panel_bytes(tile.k, tile.dtype);
    block_times_group(&tile, row, min64(ROW_BLOCK, job->rows - row), g * GROUP, job->end);
}

// x [rows, k], packed weights of n outputs -> out [rows, n] of out_dtype.
EXPORT void sigmoe_linear(
    const void *x, int64_t rows, const char *packed, int64_t n, int64_t k, int dtype, void *out, int out_dtype
) {
    int64_t stride;
    void *to_free;
    const void *base = pad_rows(x, rows, k, dtype, &stride, &to_free);
    const epilogue end = {.store = store_plain, .out = out, .out_stride = n, .num_out = n, .dtype = out_dtype};
    const tile_job tile = {.x = base, .stride = stride, .weights = packed, .k = k, .dtype = dtype};
    linear_job job = {.tile = tile, .rows = rows, .groups = ceil_div(n, GROUP), .end = &end};
    pool_run(job.groups * ceil_div(rows, ROW_BLOCK), pool_threads_for(n * k * ceil_div(rows, 8), 1 << 15), linear_item, &job);
    free(to_free);
}
