/* Heat in a rod, in MPI, with checkpoints where the program wants them. heat [ROUNDS]
 *
 *   mpicc -I../include heat.c -o heat -L$LIB -lstillpoint -Wl,-rpath,$LIB
 *   stillpoint run -n 2 -- ./heat            the same program runs without Stillpoint: mpirun -n 2 ./heat
 *
 * It prints `result` and a number that is the same however often it was restarted. */
#include <errno.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "stillpoint.h"

enum { CELLS = 1 << 14, EVERY = 100 };
static double rod[CELLS + 2];
static int rank;

/* The scratch array is worth nothing between two rounds: it stays out of the images. */
static double *scratch;

/* Called on a thread of the library's, on each rank. A lock taken here must not be one that a thread which communicates
 * waits for; these need none. */
static int before(void *calls) {
    ++*(int *)calls;
    return 0;
}
static void restarted(void *calls) {
    fprintf(stderr, "rank %d: restarted, now in process %d, after %d checkpoints\n", rank, (int)getpid(), *(int *)calls);
}

static void say(const char *what, int round) {
    printf("rank %d round %d: %s\n", rank, round, what);
    fflush(stdout);
}

static void one_round(int left, int right) {
    MPI_Sendrecv(&rod[1], 1, MPI_DOUBLE, left, 0, &rod[CELLS + 1], 1, MPI_DOUBLE, right, 0, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    MPI_Sendrecv(&rod[CELLS], 1, MPI_DOUBLE, right, 1, &rod[0], 1, MPI_DOUBLE, left, 1, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    for (int i = 1; i <= CELLS; i++) scratch[i] = rod[i] + 0.25 * (rod[i - 1] - 2 * rod[i] + rod[i + 1]);
    memcpy(rod + 1, scratch + 1, CELLS * sizeof *rod);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1000, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int left = rank > 0 ? rank - 1 : MPI_PROC_NULL, right = rank + 1 < ranks ? rank + 1 : MPI_PROC_NULL;

    static int calls;
    if (stillpoint_on_checkpoint(before, NULL, restarted, &calls) != 0) MPI_Abort(MPI_COMM_WORLD, 1);
    if (posix_memalign((void **)&scratch, 4096, (CELLS + 2) * sizeof *scratch) != 0) MPI_Abort(MPI_COMM_WORLD, 1);
    stillpoint_exclude(scratch, (CELLS + 2) * sizeof *scratch);

    for (int i = 0; i < CELLS + 2; i++) rod[i] = 20;
    if (rank == 0) rod[1] = 1e6;
    for (int round = 1; round <= rounds; round++) {
        one_round(left, right);
        usleep(1000);
        /* One rank asks. The others run on; in the last round they are on their way into a collective call by then, so the
         * answer may be that the checkpoint comes later, or not (see stillpoint_forbid below). */
        if (rank == 0 && round % EVERY == 0) {
            const char *made[] = {"checkpoint", "restarted", "asked"};
            int code = stillpoint_checkpoint();
            say(code >= 0 ? made[code] : code == -ENOSYS ? "alone" : "no checkpoint", round);
        }
    }

    /* What must not be cut in two by a restart: here, the output of the result. */
    stillpoint_forbid();
    double sum = 0;
    for (int i = 1; i <= CELLS; i++) sum += rod[i] * (i + rank);
    MPI_Reduce(rank ? &sum : MPI_IN_PLACE, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("result %.17g\nEXIT-SUCCESS\n", sum);
    fflush(stdout);
    stillpoint_allow();
    stillpoint_include(scratch, (CELLS + 2) * sizeof *scratch);
    free(scratch);
    MPI_Finalize();
    return 0;
}
