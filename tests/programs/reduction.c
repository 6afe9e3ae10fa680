/* Non-blocking reductions whose operation is the program's own, and wants a lock: the thread that calls MPI holds it while it
 * computes, so that the operation can run inside its MPI calls only. reduction [ROUNDS] [SEED] */
#include <mpi.h>
#include <pthread.h>
#include "check.h"
enum { N = 100 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void add(void *a, void *b, int *len, MPI_Datatype *t) {
    (void)t;
    pthread_mutex_lock(&lock);
    char *room = malloc(50000);
    for (int i = 0; i < *len; i++) ((int *)b)[i] += ((int *)a)[i];
    room[0] = (char)*len;
    free(room);
    pthread_mutex_unlock(&lock);
}
int main(int argc, char **argv) {
    int level, rank, size;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), state = seed * 100 + (uint64_t)rank, result = 0;
    int right = (rank + 1) % size, left = (rank + size - 1) % size;
    MPI_Op op;
    MPI_Op_create(add, 1, &op);
    for (long round = 0; round < rounds; round++) {
        int mine[N], all[N], from = -1, flag;
        MPI_Request q;
        for (int i = 0; i < N; i++) mine[i] = rank * i + (int)round;
        MPI_Iallreduce(mine, all, N, MPI_INT, op, MPI_COMM_WORLD, &q);
        pthread_mutex_lock(&lock);
        usleep((useconds_t)(mix(&state) % 5000));
        pthread_mutex_unlock(&lock);
        /* meanwhile ranks wait for one another in another way, or not at all */
        switch (round % 4) {
        case 0:
            MPI_Barrier(MPI_COMM_WORLD);
            break;
        case 1:
            if (rank == 0) MPI_Send(&rank, 1, MPI_INT, right, 7, MPI_COMM_WORLD);
            MPI_Recv(&from, 1, MPI_INT, left, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            if (rank != 0) MPI_Send(&rank, 1, MPI_INT, right, 7, MPI_COMM_WORLD);
            CHECK(from == left);
            break;
        case 2:
            do MPI_Test(&q, &flag, MPI_STATUS_IGNORE); while (!flag);
            break;
        }
        MPI_Wait(&q, MPI_STATUS_IGNORE);
        for (int i = 0; i < N; i++) CHECK(all[i] == i * size * (size - 1) / 2 + (int)round * size);
        result = hash(result, all, sizeof all);
    }
    MPI_Op_free(&op);
    int status = rank == 0 ? finish(result) : 0;
    MPI_Finalize();
    return status;
}
