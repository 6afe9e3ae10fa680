/* Ranks in a ring, of which the last one aborts after half of the rounds. abort [ROUNDS] */
#include <mpi.h>
#include "check.h"
int main(int argc, char **argv) {
    int rank, size, got;
    MPI_Init(&argc, &argv);
    long rounds = argument(argc, argv, 1, 100);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    for (long round = 0; round < rounds; round++) {
        MPI_Sendrecv(&rank, 1, MPI_INT, (rank + 1) % size, 0, &got, 1, MPI_INT, (rank + size - 1) % size, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (rank == size - 1 && round == rounds / 2) MPI_Abort(MPI_COMM_WORLD, 7);
        pace();
    }
    MPI_Finalize();
    return finish(0);
}
