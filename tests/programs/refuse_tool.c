/* A handle of the MPI tool interface. */
#include <mpi.h>
#include "refuse.h"
int main(int argc, char **argv) {
    int rank, level, count;
    MPI_T_cvar_handle handle;
    MPI_T_init_thread(MPI_THREAD_SINGLE, &level);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_T_cvar_handle_alloc(0, NULL, &handle, &count);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("held");
    await("let-go");
    MPI_T_cvar_handle_free(&handle);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("free");
    await("end");
    MPI_T_finalize();
    MPI_Finalize();
    return rank == 0 ? finish(1) : 0;
}
