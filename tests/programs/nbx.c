/* Non-blocking consensus (NBX): each rank sends to targets that only it knows by Issend, receives what Iprobe finds, and
 * enters an Ibarrier when its sends are matched. A message read twice or left unread is found. nbx [ROUNDS] [SEED] */
#include <mpi.h>
#include "check.h"
enum { SENDS = 5 };
int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), state = seed * 1000 + (uint64_t)rank, result = 0;
    for (long round = 0; round < rounds; round++) {
        uint64_t word[SENDS], got = 0, given = 0, balance;
        MPI_Request send[SENDS], barrier = MPI_REQUEST_NULL;
        int tag = (int)(round % 2), inside = 0, over = 0;
        for (int i = 0; i < SENDS; i++) {
            word[i] = mix(&state);
            given += word[i];
            MPI_Issend(&word[i], 1, MPI_UINT64_T, (int)(word[i] % (uint64_t)size), tag, MPI_COMM_WORLD, &send[i]);
        }
        while (!over) {
            int found, matched;
            MPI_Status status;
            MPI_Iprobe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &found, &status);
            if (found) {
                uint64_t value;
                MPI_Recv(&value, 1, MPI_UINT64_T, status.MPI_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                CHECK((int)(value % (uint64_t)size) == rank);
                got += value;
            }
            if (inside) MPI_Test(&barrier, &over, MPI_STATUS_IGNORE);
            else {
                MPI_Testall(SENDS, send, &matched, MPI_STATUSES_IGNORE);
                if (matched) { MPI_Ibarrier(MPI_COMM_WORLD, &barrier); inside = 1; }
            }
        }
        uint64_t difference = given - got;
        MPI_Allreduce(&difference, &balance, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
        CHECK(balance == 0);
        result = hash(result, &got, sizeof got);
        pace();
    }
    uint64_t all;
    MPI_Reduce(&result, &all, 1, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Finalize();
    return rank == 0 ? finish(all) : 0;
}
