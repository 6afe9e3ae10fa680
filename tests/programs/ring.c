/* A token goes round a ring of blocking sends and receives; each rank adds to it. ring [ROUNDS] [SEED] */
#include <mpi.h>
#include "check.h"
int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t token = (uint64_t)argument(argc, argv, 2, 1), expected = token;
    for (long round = 0; round < rounds; round++) {
        int next = (rank + 1) % size, previous = (rank + size - 1) % size, tag = (int)(round % 1000);
        MPI_Status status;
        if (rank == 0) { token = hash(token, &rank, sizeof rank); MPI_Send(&token, 1, MPI_UINT64_T, next, tag, MPI_COMM_WORLD); }
        MPI_Recv(&token, 1, MPI_UINT64_T, previous, tag, MPI_COMM_WORLD, &status);
        CHECK(status.MPI_SOURCE == previous && status.MPI_TAG == tag);
        if (rank != 0) { token = hash(token, &rank, sizeof rank); MPI_Send(&token, 1, MPI_UINT64_T, next, tag, MPI_COMM_WORLD); }
        for (int each = 0; each < size; each++) {
            expected = hash(expected, &each, sizeof each);
            if (each == rank && rank != 0) CHECK(token == expected);
        }
        if (rank == 0) CHECK(token == expected);
        pace();
    }
    MPI_Finalize();
    return rank == 0 ? finish(token) : 0;
}
