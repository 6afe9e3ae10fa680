/* A communicator to a process that MPI_Comm_spawn has started: this program once more, as a child. */
#include <mpi.h>
#include "refuse.h"
int main(int argc, char **argv) {
    int rank;
    MPI_Comm parent, child;
    MPI_Init(&argc, &argv);
    MPI_Comm_get_parent(&parent);
    if (parent != MPI_COMM_NULL) {
        await("let-go");
        MPI_Comm_disconnect(&parent);
        MPI_Finalize();
        return 0;
    }
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_spawn(argv[0], MPI_ARGV_NULL, 1, MPI_INFO_NULL, 0, MPI_COMM_WORLD, &child, MPI_ERRCODES_IGNORE);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("held");
    await("let-go");
    MPI_Comm_disconnect(&child);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) mark("free");
    await("end");
    MPI_Finalize();
    return rank == 0 ? finish(1) : 0;
}
