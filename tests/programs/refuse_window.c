/* An MPI window. */
#include <mpi.h>
#include "refuse.h"
int main(int argc, char **argv) {
    int rank, cell[4] = {0};
    MPI_Win window;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Win_create(cell, sizeof cell, sizeof *cell, MPI_INFO_NULL, MPI_COMM_WORLD, &window);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("held");
    await("let-go");
    MPI_Win_free(&window);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("free");
    await("end");
    MPI_Finalize();
    return rank == 0 ? finish(1) : 0;
}
