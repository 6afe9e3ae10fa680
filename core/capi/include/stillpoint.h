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
#include <stdint.h>

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

/* ---- Plugins ----
 *
 * A plugin stands for something that cannot be saved as memory, because it lives below: in a library that is loaded natively
 * beside the program, with connections to hardware or to other processes, and is thrown away at a restart. The plugin keeps up
 * here what it needs to make that anew, and brings home what is under way before each checkpoint. The MPI front is one. The
 * functions below return -ENOSYS in a program that does not run under Stillpoint; then the plugin has nothing to do.
 *
 * At a checkpoint every thread of every rank stands still, and each plugin gets commands, one at a time, on a stack of 1 MiB. What
 * it runs then must not allocate, lock or print: a thread that stands still may hold the allocator's lock, or another. It may
 * call below (stillpoint_call). It returns one of the numbers that stand behind the command:
 *
 *   COUNTS    write into `out` what others must know before the drain: DONE
 *   DRAIN     `input` is what others said to it; bring home what is under way.
 *               DONE    all is home, as far as this rank knows. It is called again all the same, with the same input: others may
 *                       need its progress
 *               AGAIN   `deadline` has passed, not all is home: call again
 *               SPEAKS  others must hear what it has written into `out` before it goes on. It is called again when all ranks have
 *                       said their part of this round, with what was said to it
 *             While a round lasts it is called again for its progress. What another rank says may give a plugin that was DONE
 *             more to do.
 *   RESUME    threads run on next. `input` is one byte: 0 the snapshot was taken; 1 given up before it, and all ranks, or none, have
 *             heard what COUNTS said; 2 given up, and some may have heard it and others not. In a restarted process it comes
 *             after REBUILD on all ranks, with 0: DONE
 *   REBUILD   in a restarted process: make anew what was below: DONE, or SPEAKS, as in DRAIN
 *
 * A negative number fails the command: the checkpoint is given up, or the restart refused, with the text that is in `out` (up to
 * `out_cap` bytes). Other numbers are not for plugins; of a command that it does not know a plugin returns DONE.
 *
 * Plugins of several ranks find each other by their name. What they say and hear is a sequence of records,
 *
 *   uint32_t rank, uint32_t length, `length` bytes, padding to a multiple of 4          (in the machine's byte order)
 *
 * said to a rank, or heard from it. Three numbers are no ranks: what is said to PUBLISH, a uint32_t length of a key, the key and a
 * value, is heard by whoever says in the same round to ASK the key: from FOUND comes uint32_t rank, uint32_t length of the
 * key, the key and the value, once for each rank that has published it. */
struct stillpoint_still {
    const unsigned char *input;
    size_t input_len;
    unsigned char *out;
    size_t out_cap;
    size_t out_len;    /* to be set; if greater than out_cap, nothing was written, and it is called again with so much room */
    uint64_t deadline; /* CLOCK_MONOTONIC in ns */
    uint32_t round;    /* rounds that were handed on before, in this checkpoint or rebuild */
};
enum { STILLPOINT_COUNTS = 2, STILLPOINT_DRAIN = 3, STILLPOINT_RESUME = 4, STILLPOINT_REBUILD = 5 };
enum { STILLPOINT_DONE = 0, STILLPOINT_AGAIN = 1, STILLPOINT_SPEAKS = 2 };
#define STILLPOINT_PUBLISH 0xfffffffdu
#define STILLPOINT_ASK 0xfffffffeu
#define STILLPOINT_FOUND 0xffffffffu

/* Registers a plugin for the life of the process; its place, which all its functions want. `name` has at most 24 bytes. `refused`
 * are up to 8 texts, which must live as long as the process: what each kind of thing that it may not be able to save is called
 * in a message to the user, behind their number ("2 device memories; they can be saved once they are freed").
 *   -EEXIST  another plugin has this name
 *   -ENOSPC  there are 16 already */
int stillpoint_plugin(const char *name, int64_t (*still)(uint32_t command, struct stillpoint_still *argument),
                      const char *const *refused, size_t n);

/* Commands come from now on (1), because there is something below, or not any more (0, as in the beginning). */
int stillpoint_plugin_live(int plugin, int live);

/* There are `by` more of what the text number `what` says; less, if it is negative. While there is one, checkpoints are refused. */
int stillpoint_plugin_refuse(int plugin, size_t what, int by);

/* A number for a function of a library below, by its names (as for dlopen and dlsym), which must live as long as the process. It is
 * looked for at its first call in each start, so the number holds across restarts, which no address does.
 *   -ENOSPC  there are 1024 already */
int stillpoint_below(const char *library, const char *name);

/* Calls it with up to 10 integers or pointers. `*result`, unless NULL, is what it returns, as an integer. Objects that it returns the
 * address of are gone after a restart. The thread cannot be stopped meanwhile, so the function must not wait for long, and
 * it must not call functions of the program.
 *   -ENOENT  the library cannot be loaded, or has no such function; why is on standard error */
int stillpoint_call(int function, uint64_t *result, const uint64_t *arguments, size_t n);

#ifdef __cplusplus
}
#endif
#endif
