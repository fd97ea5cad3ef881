// Many small jobs on more threads than cores: every item of every job runs exactly once.
#include "pool.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { JOBS = 1500000, MOST_ITEMS = 12, THREADS = 4 };

void sigmoe_use_threads(int threads);

static atomic_int hits[MOST_ITEMS];
static atomic_long expected_job;

static void body(void *context, int64_t item, int thread) {
    if ((intptr_t)context != atomic_load(&expected_job) || thread < 0 || thread >= THREADS) abort();
    atomic_fetch_add(&hits[item], 1);
    for (volatile int i = 0; i < 30; i++) {  // long enough for the others to join
    }
}

int main(void) {
    unsigned seed = 1;
    sigmoe_use_threads(THREADS);
    for (long number = 1; number <= JOBS; number++) {
        int items = 2 + rand_r(&seed) % (MOST_ITEMS - 1);
        for (int i = 0; i < MOST_ITEMS; i++) atomic_store(&hits[i], 0);
        atomic_store(&expected_job, number);
        pool_run(items, THREADS, body, (void *)(intptr_t)number);
        for (int i = 0; i < MOST_ITEMS; i++)
            if (atomic_load(&hits[i]) != (i < items)) {
                printf("job %ld of %d items: item %d ran %d times\n", number, items, i, atomic_load(&hits[i]));
                return 1;
            }
    }
    return 0;
}
