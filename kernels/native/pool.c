#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

enum { MAX_THREADS = 256, SPIN_NS = 200000, PATIENCE_NS = 50000 };

// The job lies in plain sight of late threads. `left` holds its generation above and the number of items that nobody
// has claimed below: a thread reads the job and then claims an item by comparing both, so a claim cannot mix two
// jobs. The caller rewrites the job only after every item is done; nothing is left then, and nothing can be claimed,
// until `left` is set anew as the last word.
static struct {
    atomic_uint_fast64_t left;
    atomic_int_fast64_t items, done;
    _Atomic(pool_body) body;
    _Atomic(void *) context;
    atomic_int threads;
} job;

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER;  // one job at a time
static pthread_mutex_t bed = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t alarm_bell = PTHREAD_COND_INITIALIZER;
static atomic_int sleepers;
static int wanted_threads = 1, started_threads = 1;
static pid_t owner;

enum { COUNT_BITS = 32 };
#define GENERATION(left) ((left) >> COUNT_BITS)
#define COUNT(left) ((int64_t)((left) & 0xffffffffu))

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Take items until none is left.
static void work(int thread) {
    for (;;) {
        uint_fast64_t left = atomic_load_explicit(&job.left, memory_order_acquire);
        pool_body body = atomic_load_explicit(&job.body, memory_order_relaxed);
        void *context = atomic_load_explicit(&job.context, memory_order_relaxed);
        int64_t item = atomic_load_explicit(&job.items, memory_order_relaxed) - COUNT(left);
        if (COUNT(left) == 0 || thread >= atomic_load_explicit(&job.threads, memory_order_relaxed)) return;
        if (!atomic_compare_exchange_weak_explicit(&job.left, &left, left - 1, memory_order_acq_rel, memory_order_relaxed)) continue;
        body(context, item, thread);
        atomic_fetch_add_explicit(&job.done, 1, memory_order_release);
    }
}

static void wait_for_job(uint_fast64_t seen) {
    const int64_t until = now_ns() + SPIN_NS;
    while (GENERATION(atomic_load_explicit(&job.left, memory_order_acquire)) == seen) {
        sched_yield();
        if (now_ns() < until) continue;
        pthread_mutex_lock(&bed);
        atomic_fetch_add(&sleepers, 1);
        while (GENERATION(atomic_load(&job.left)) == seen) pthread_cond_wait(&alarm_bell, &bed);
        atomic_fetch_sub(&sleepers, 1);
        pthread_mutex_unlock(&bed);
    }
}

static void *live(void *thread) {
    uint_fast64_t seen = 0;
    for (;;) {
        wait_for_job(seen);
        seen = GENERATION(atomic_load_explicit(&job.left, memory_order_acquire));
        work((int)(intptr_t)thread);
    }
    return NULL;
}

// Threads do not survive a fork: the child starts its own.
static void start_threads(void) {
    if (owner != getpid()) {
        owner = getpid();
        started_threads = 1;
        atomic_store(&sleepers, 0);
    }
    for (; started_threads < wanted_threads; started_threads++) {
        pthread_t handle;
        if (pthread_create(&handle, NULL, live, (void *)(intptr_t)started_threads) != 0) return;
        pthread_detach(handle);
    }
}

// A thread that lost its core in the middle of an item waits in the queue of that core. Giving up ours for a moment lets
// the system move it here; a caller that only yields keeps its core busy and the thread where it is.
static void wait_for_late_threads(int64_t items) {
    const struct timespec moment = {0, 1};
    const int64_t until = now_ns() + PATIENCE_NS;
    while (atomic_load_explicit(&job.done, memory_order_acquire) < items) {
        if (now_ns() < until)
            sched_yield();
        else
            nanosleep(&moment, NULL);
    }
}

EXPORT void sigmoe_use_threads(int threads) {
    pthread_mutex_lock(&caller);
    wanted_threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    pthread_mutex_unlock(&caller);
}

int pool_threads_for(int64_t work_size, int64_t least_per_thread) {
    int64_t most = work_size / least_per_thread;
    return most < 1 ? 1 : most < wanted_threads ? (int)most : wanted_threads;
}

void pool_run(int64_t items, int threads, pool_body body, void *context) {
    // A second engine in this process finds the pool taken and works alone.
    if (threads <= 1 || items <= 1 || pthread_mutex_trylock(&caller) != 0) {
        for (int64_t i = 0; i < items; i++) body(context, i, 0);
        return;
    }
    start_threads();
    atomic_store_explicit(&job.done, 0, memory_order_relaxed);
    atomic_store_explicit(&job.body, body, memory_order_relaxed);
    atomic_store_explicit(&job.context, context, memory_order_relaxed);
    atomic_store_explicit(&job.threads, threads, memory_order_relaxed);
    atomic_store_explicit(&job.items, items, memory_order_relaxed);
    uint_fast64_t generation = GENERATION(atomic_load_explicit(&job.left, memory_order_relaxed)) + 1;
    atomic_store(&job.left, generation << COUNT_BITS | (uint_fast64_t)items);
    if (atomic_load(&sleepers) > 0) {
        pthread_mutex_lock(&bed);
        pthread_cond_broadcast(&alarm_bell);
        pthread_mutex_unlock(&bed);
    }
    work(0);
    wait_for_late_threads(items);
    pthread_mutex_unlock(&caller);
}
