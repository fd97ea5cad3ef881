// RMSNorm, alone or after adding into the residual stream. One row is one fixed chain of sixteen-lane sums.
#include "pool.h"
#include "rows.h"

enum { ROWS_PER_ITEM = 8 };

typedef struct {
    char *residual, *out;
    const char *x, *weight;
    float eps;
    int64_t rows, width;
    int dtype;
} norm_job;

static void norm_item(void *context, int64_t item, int thread) {
    const norm_job *job = context;
    const int64_t bytes = job->width * element_size(job->dtype);
    (void)thread;
    for (int64_t r = item * ROWS_PER_ITEM; r < min64(job->rows, (item + 1) * ROWS_PER_ITEM); r++) {
        const char *from = job->x + r * bytes;
        if (job->residual != NULL) {
            add_row(job->residual + r * bytes, from, job->width, job->dtype);
            from = job->residual + r * bytes;
        }
        norm_row(from, job->weight, job->eps, job->width, job->dtype, job->out + r * bytes);
    }
}

EXPORT void sigmoe_rms_norm(
    char *residual, const char *x, const char *weight, float eps, int64_t rows, int64_t width, int dtype, char *out
) {
    norm_job job = {residual, out, x, weight, eps, rows, width, dtype};
    pool_run(ceil_div(rows, ROWS_PER_ITEM), pool_threads_for(rows * width, 1 << 16), norm_item, &job);
}
