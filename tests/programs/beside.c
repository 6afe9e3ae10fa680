/* A thread that computes and calls MPI no more stands beside one that is held at a collective, and only the release of
 * that lets the others come to rest: 2 waits in Y for 1, which waits for a message of 0, which goes through X first.
 * beside [ROUNDS] [SEED] */
#include <mpi.h>
#include <pthread.h>
#include "check.h"
static volatile int over;
static void *compute(void *unused) {
    int flag;
    MPI_Iprobe(0, 1, MPI_COMM_SELF, &flag, MPI_STATUS_IGNORE);
    while (!over) usleep(10);
    return unused;
}
int main(int argc, char **argv) {
    int rank, given;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &given);
    CHECK(given == MPI_THREAD_MULTIPLE);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    long rounds = argument(argc, argv, 1, 100), word = 0;
    uint64_t result = 0;
    MPI_Comm x, y;
    MPI_Comm_split(MPI_COMM_WORLD, rank < 2 ? 0 : MPI_UNDEFINED, rank, &x);
    MPI_Comm_split(MPI_COMM_WORLD, rank == 1 || rank == 2 ? 0 : MPI_UNDEFINED, rank, &y);
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, compute, NULL));
    for (long round = 0; round < rounds; round++) {
        MPI_Request through;
        if (x != MPI_COMM_NULL) MPI_Ibarrier(x, &through);
        if (rank == 0) {
            pace();
            MPI_Wait(&through, MPI_STATUS_IGNORE);
            MPI_Ibarrier(x, &through);
            MPI_Send(&round, 1, MPI_LONG, 1, 0, MPI_COMM_WORLD);
            MPI_Wait(&through, MPI_STATUS_IGNORE);
        }
        if (rank == 1) {
            MPI_Wait(&through, MPI_STATUS_IGNORE);
            MPI_Recv(&word, 1, MPI_LONG, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            CHECK(word == round);
            MPI_Ibarrier(x, &through);
            MPI_Wait(&through, MPI_STATUS_IGNORE);
        }
        if (y != MPI_COMM_NULL) MPI_Barrier(y);
        result = hash(result, &round, sizeof round);
    }
    over = 1;
    CHECK(!pthread_join(thread, NULL));
    if (x != MPI_COMM_NULL) MPI_Comm_free(&x);
    if (y != MPI_COMM_NULL) MPI_Comm_free(&y);
    MPI_Finalize();
    return rank == 0 ? finish(result) : 0;
}
