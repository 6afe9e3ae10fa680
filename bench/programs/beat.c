/* A program that shows when it runs: all ranks meet every 10 ms, and rank 0 then adds the time of day, in ms, to a file.
 * beat FILE; it ends when FILE.end exists. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int rank, over = 0;
    char end[4096];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc < 2 || snprintf(end, sizeof end, "%s.end", argv[1]) >= (int)sizeof end) MPI_Abort(MPI_COMM_WORLD, 2);
    while (!over) {
        int seen = rank == 0 && access(end, F_OK) == 0;
        MPI_Allreduce(&seen, &over, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
        if (rank == 0) {
            struct timespec t;
            clock_gettime(CLOCK_REALTIME, &t);
            FILE *file = fopen(argv[1], "a");
            if (!file) MPI_Abort(MPI_COMM_WORLD, 3);
            fprintf(file, "%lld\n", (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000);
            fclose(file);
        }
        usleep(10000);
    }
    MPI_Finalize();
    return 0;
}
