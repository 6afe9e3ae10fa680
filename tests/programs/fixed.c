/* An executable that is not position independent, and so large that it reaches over 3 GiB of fixed addresses: static data,
 * thread-local data read in signal handlers between calls of MPI. fixed [ROUNDS] [SEED] */
#include <mpi.h>
#include <signal.h>
#include <sys/time.h>
#include "check.h"
static char room[(size_t)3400 << 20];
static __thread int own = 77;
static volatile int ticks;
static volatile sig_atomic_t wrong;
static void tick(int signal) {
    (void)signal;
    ticks++;
    if (own != 77) wrong = 1;
}
int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), state = seed, result = 0;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = tick;
    action.sa_flags = SA_RESTART;
    CHECK((uintptr_t)room < 0x10000000 && (uintptr_t)(room + sizeof room) > 0xd0000000);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 500}, {0, 500}}, NULL);
    for (long round = 0; round < rounds; round++) {
        size_t at = mix(&state) % sizeof room;
        if (round % 16 == 0) room[at] = (char)(round + 1);
        int out = (int)round, in = -1, flag;
        for (int i = 0; i < 20; i++) {
            MPI_Sendrecv(&out, 1, MPI_INT, (rank + 1) % size, 1, &in, 1, MPI_INT, (rank + size - 1) % size, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Iprobe(MPI_ANY_SOURCE, 9, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
            CHECK(in == round && !flag);
        }
        CHECK(!wrong);
    }
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
    state = seed;
    for (long round = 0; round < rounds; round++) {
        size_t at = mix(&state) % sizeof room;
        if (round % 16 == 0) result = hash(result, &room[at], 1);
    }
    int status = rank == 0 ? finish(result) : 0;
    MPI_Finalize();
    return status;
}
