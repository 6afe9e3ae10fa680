/* An open MPI file. */
#include <mpi.h>
#include "refuse.h"
int main(int argc, char **argv) {
    int rank;
    MPI_File file;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    CHECK(MPI_File_open(MPI_COMM_WORLD, "mpi.data", MPI_MODE_CREATE | MPI_MODE_RDWR, MPI_INFO_NULL, &file) == MPI_SUCCESS);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("held");
    await("let-go");
    CHECK(MPI_File_close(&file) == MPI_SUCCESS);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("free");
    await("end");
    MPI_Finalize();
    return rank == 0 ? finish(1) : 0;
}
