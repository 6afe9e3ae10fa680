/* A persistent request on an intercommunicator that has been freed. */
#include <mpi.h>
#include "refuse.h"
int main(int argc, char **argv) {
    int rank, word = 0;
    MPI_Comm half, both;
    MPI_Request request;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_split(MPI_COMM_WORLD, rank, 0, &half);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, 1 - rank, 3, &both);
    if (rank == 0) MPI_Send_init(&word, 1, MPI_INT, 0, 4, both, &request);
    MPI_Comm_free(&both);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("held");
    await("let-go");
    if (rank == 0) MPI_Request_free(&request);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("free");
    await("end");
    MPI_Comm_free(&half);
    MPI_Finalize();
    return rank == 0 ? finish(1) : 0;
}
