/* A Jacobi solver on rows of a square, halos by Sendrecv, the residual by Allreduce(MAX); the checksum is of the bits, and
 * does not depend on the number of ranks. jacobi [ROUNDS] [SEED] */
#include <math.h>
#include <mpi.h>
#include "check.h"
enum { N = 240 };
int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1);
    int first = N * rank / size, rows = N * (rank + 1) / size - first;
    int up = rank ? rank - 1 : MPI_PROC_NULL, down = rank + 1 < size ? rank + 1 : MPI_PROC_NULL;
    double (*old)[N + 2] = calloc((size_t)rows + 2, sizeof *old), (*new)[N + 2] = calloc((size_t)rows + 2, sizeof *new);
    double worst = 0, before = INFINITY;
    CHECK(old && new);
    for (int y = 1; y <= rows; y++)
        for (int x = 1; x <= N; x++) {
            uint64_t state = seed + (uint64_t)(first + y) * N + (uint64_t)x;
            old[y][x] = (double)(mix(&state) >> 11) / 9007199254740992.0;
        }
    for (long round = 0; round < rounds; round++) {
        double largest = 0;
        MPI_Sendrecv(old[1], N + 2, MPI_DOUBLE, up, 0, old[rows + 1], N + 2, MPI_DOUBLE, down, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Sendrecv(old[rows], N + 2, MPI_DOUBLE, down, 1, old[0], N + 2, MPI_DOUBLE, up, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (int y = 1; y <= rows; y++)
            for (int x = 1; x <= N; x++) {
                new[y][x] = 0.25 * ((old[y - 1][x] + old[y + 1][x]) + (old[y][x - 1] + old[y][x + 1]));
                largest = fmax(largest, fabs(new[y][x] - old[y][x]));
            }
        double (*other)[N + 2] = old;
        old = new;
        new = other;
        MPI_Allreduce(&largest, &worst, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        CHECK(worst <= before); /* a contraction in the maximum norm: the step never grows */
        before = worst;
        pace();
    }
    uint64_t bits = 0, sum;
    for (int y = 1; y <= rows; y++) {
        uint64_t row = (uint64_t)(first + y);
        bits += hash(row, &old[y][1], N * sizeof(double));
    }
    MPI_Reduce(&bits, &sum, 1, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Finalize();
    return rank == 0 ? finish(hash(sum, &worst, sizeof worst)) : 0;
}
