// A pool of threads that may be late.
//
// Serving shares its cores with gateways, clients and whatever else a host runs. A pool that waits for every thread
// at the end of every kernel stands still while one of them is off its core; here the caller takes pieces of work
// itself and waits for the pieces, not for the threads. A late thread finds nothing left to do.
#ifndef SIGMOE_POOL_H
#define SIGMOE_POOL_H

#include <stdint.h>

// One piece of work; `thread` is below the number of threads asked for, and no two pieces share it at a time.
typedef void (*pool_body)(void *context, int64_t item, int thread);

// Threads that may work on a piece of work of this size: waking one costs more than a small piece.
int pool_threads_for(int64_t work, int64_t least_per_thread);

// Run body for items 0..items-1 on up to `threads` threads, the caller's among them; returns when all are done.
void pool_run(int64_t items, int threads, pool_body body, void *context);

#endif
