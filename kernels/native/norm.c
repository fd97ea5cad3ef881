// RMSNorm, alone or after adding into the residual stream. One row is one fixed chain of sixteen-lane sums.
#include "rows.h"

EXPORT void sigmoe_rms_norm(
    void *residual, const void *x, const void *weight, float eps, int64_t rows, int64_t width, int dtype, void *out
) {
    const int64_t bytes = width * element_size(dtype);
#pragma omp parallel for schedule(static) num_threads(threads_for(rows * width, 1 << 16))
    for (int64_t r = 0; r < rows; r++) {
        const void *from = (const char *)x + r * bytes;
        if (residual != NULL) {
            void *stream = (char *)residual + r * bytes;
            add_row(stream, from, width, dtype);
            from = stream;
        }
        norm_row(from, weight, eps, width, dtype, (char *)out + r * bytes);
    }
}
