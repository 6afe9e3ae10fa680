/* stillpoint.h: what a program may say about its own checkpoints. Link with -lstillpoint.
 *
 * A program needs none of this to be checkpointed and restarted. In a program that does not run under Stillpoint (and in the
 * children that a program makes by fork) every function is a harmless no-op.
 *
 * Unless said otherwise a function returns 0, or a negative errno:
 *   -EINVAL   the argument is not valid
 *   -ENOSPC   no room for another one
 *   -EDEADLK  not allowed in a callback
 *   -EAGAIN   the library's thread for callbacks cannot be made
 * Functions may be called by any thread, but not by a signal handler.
 */
#ifndef STILLPOINT_H
#define STILLPOINT_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1 in a process that runs under Stillpoint, else 0. */
int stillpoint_active(void);

/* Asks for a checkpoint of the whole job, and waits until it is durable. In an MPI program one rank may call it, or several,
 * or all: each call asks, and one checkpoint answers all who asked before it began.
 *   0        the checkpoint exists; the program runs on
 *   1        the process has been restarted from a checkpoint that was taken during this call
 *   2        asked for, but not waited for: other ranks are in a collective call of MPI that waits for this rank. It is taken,
 *            or given up, once this rank has gone on so far; a restart then begins behind this call. Does not happen if all
 *            ranks ask at the same place of the program.
 *   -ENOSYS  not under Stillpoint (at once)
 *   -EBUSY   it was given up and the program runs on: something cannot be saved, checkpoints are forbidden, or not all ranks
 *            of the job have begun; `stillpoint status` names the reason. The last good checkpoint stands.
 *   -EDEADLK in a callback
 * When it returns 0 or 1, the callbacks of that checkpoint have run. While it waits, signal handlers and other threads run. */
int stillpoint_checkpoint(void);

/* No checkpoint is taken between stillpoint_forbid and stillpoint_allow, on any rank of the job. They nest, and count for the
 * whole process: one thread may forbid and another allow. What is asked for meanwhile is given up, not postponed; periodic
 * checkpoints are tried again when the next is due. stillpoint_allow without stillpoint_forbid: -EINVAL. */
int stillpoint_forbid(void);
int stillpoint_allow(void);

/* Leaves the whole pages in [address, address + length bytes) out of later checkpoints. After a restart these pages hold
 * zeros, whatever they were mapped from; their protection is as it was. Doing it twice does no harm; ranges that touch become
 * one, and there is room for 256 that do not. Before the memory is freed or unmapped it must be given back by
 * stillpoint_include, or what comes to lie there is left out as well. */
int stillpoint_exclude(const void *address, size_t length);

/* Takes memory back into the checkpoints: the opposite, for any part of what was excluded. */
int stillpoint_include(const void *address, size_t length);

/* Registers functions for the life of the process; each may be NULL, and all get `argument`.
 *   before     a checkpoint is about to be taken. A number other than 0 makes it be given up.
 *   after      the program runs on in this process, whether the checkpoint was taken or given up
 *   restarted  the program runs on in a new process
 * They are called on each rank, one at a time, on a thread of the library while the program's own threads run, so they may
 * allocate, lock, and use files. They may not use MPI, ask for a checkpoint, or register functions. As with pthread_atfork,
 * `before` is called in the opposite order of registration, and for each `before` that returned 0 either `after` or
 * `restarted` follows, in the order of registration and on the same thread. To keep something as `before` left it, take a lock
 * there that the program's threads respect, and give it back in both of the others. A thread that waits for that lock must
 * not be one that another rank waits for in a collective call: such a checkpoint is given up. So is one whose `before` has
 * not returned after 8 seconds. */
int stillpoint_on_checkpoint(int (*before)(void *argument), void (*after)(void *argument),
                             void (*restarted)(void *argument), void *argument);

/* How often this process has been restarted; how many checkpoints of it have come to exist since the program began, up to and
 * including the one that it was last restarted from. 0 when not under Stillpoint. */
int stillpoint_restarts(void);
int stillpoint_checkpoints(void);

#ifdef __cplusplus
}
#endif
#endif
