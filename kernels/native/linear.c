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

// x [rows, k], packed weights of n outputs -> out [rows, n] of out_dtype.
EXPORT void sigmoe_linear(
    const void *x, int64_t rows, const char *packed, int64_t n, int64_t k, int dtype, void *out, int out_dtype
) {
    enum { ROW_BLOCK = 192 };  // rows that stay in L2 beside a group of weights
    int64_t stride, groups = ceil_div(n, GROUP), blocks = ceil_div(rows, ROW_BLOCK);
    void *to_free;
    const void *base = pad_rows(x, rows, k, dtype, &stride, &to_free);
    const epilogue end = {.store = store_plain, .out = out, .out_stride = n, .num_out = n, .dtype = out_dtype};
    const int64_t group_bytes = (GROUP / PANEL) * panel_bytes(k, dtype);
#pragma omp parallel for schedule(dynamic) num_threads(threads_for(n * k * ceil_div(rows, 8), 1 << 15))
    for (int64_t item = 0; item < groups * blocks; item++) {
        int64_t g = item % groups, row = (item / groups) * ROW_BLOCK;
        tile_job job = {.x = base, .stride = stride, .weights = packed + g * group_bytes, .k = k, .dtype = dtype};
        block_times_group(&job, row, min64(ROW_BLOCK, rows - row), g * GROUP, &end);
    }
    free(to_free);
}
