/* What a call costs: MPI_Comm_rank and MPI_Iprobe in ns, and half the round trip of 8 bytes between ranks 0 and 1.
 * Prints the minimum over blocks, `name value`, from rank 0. */
#include <mpi.h>
#include <stdio.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return 1e9 * (double)t.tv_sec + (double)t.tv_nsec; }
enum { BLOCKS = 40, CALLS = 20000 };
int main(int argc, char **argv) {
    int rank, size, flag;
    double best[3] = {1e18, 1e18, 1e18}, word = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    for (int block = 0; block < BLOCKS; block++) {
        double spent[3], begun = now();
        for (int i = 0; i < CALLS; i++) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        spent[0] = (now() - begun) / CALLS;
        begun = now();
        for (int i = 0; i < CALLS; i++) MPI_Iprobe(MPI_ANY_SOURCE, 9, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
        spent[1] = (now() - begun) / CALLS;
        MPI_Barrier(MPI_COMM_WORLD);
        begun = now();
        for (int i = 0; i < CALLS && rank < 2 && size > 1; i++) {
            if (rank == 0) MPI_Send(&word, 8, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(&word, 8, MPI_BYTE, 1 - rank, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            if (rank == 1) MPI_Send(&word, 8, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
        spent[2] = (now() - begun) / CALLS / 2;
        for (int i = 0; i < 3; i++) if (spent[i] < best[i]) best[i] = spent[i];
    }
    if (rank == 0) printf("comm_rank %.2f\niprobe %.2f\npingpong %.2f\n", best[0], best[1], best[2]);
    MPI_Finalize();
    return 0;
}
