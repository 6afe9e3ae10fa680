/* Many kinds of message in flight at once: every rank sends to every other by a kind, a size (0 B to 8 MiB) and contents
 * that the receiver computes from the seed, and receives by another kind; beside them an iallreduce, which overlaps.
 * Order is checked: each message carries its number. many_kinds [ROUNDS] [SEED] */
#include <mpi.h>
#include "check.h"
enum { PER_PEER = 4, LARGEST = 8 << 20, PEERS = 16 };
static int size_of(uint64_t word) { /* mostly small, now and then large: the exponent is drawn, then the size */
    int bits = (int)(word % 24);
    return bits == 0 ? 0 : (int)((word >> 8) % (1u << (bits > 18 && word >> 60 ? 12 : bits)));
}
static uint64_t of(uint64_t seed, long round, int from, int to, int number) {
    uint64_t key[5] = {seed, (uint64_t)round, (uint64_t)from, (uint64_t)to, (uint64_t)number}, state = hash(1, key, sizeof key);
    return mix(&state);
}
static void fill(char *at, int bytes, uint64_t word) { for (int i = 0; i < bytes; i++) at[i] = (char)(word + (uint64_t)i * 31 + (uint64_t)(i >> 8)); }
static void verify(const char *at, int bytes, uint64_t word) {
    for (int i = 0; i < bytes; i++) CHECK(at[i] == (char)(word + (uint64_t)i * 31 + (uint64_t)(i >> 8)));
}
int main(int argc, char **argv) {
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), sum = 0;
    CHECK(size <= PEERS);
    char *attached = malloc(4 * LARGEST), *from = malloc((size_t)LARGEST), *ignored;
    int attached_size;
    MPI_Buffer_attach(attached, 4 * LARGEST);
    uint64_t channel[2] = {0, 0};
    MPI_Request persistent[2];
    int right = (rank + 1) % size, left = (rank + size - 1) % size;
    MPI_Send_init(&channel[0], 1, MPI_UINT64_T, right, 99, MPI_COMM_WORLD, &persistent[0]);
    MPI_Recv_init(&channel[1], 1, MPI_UINT64_T, left, 99, MPI_COMM_WORLD, &persistent[1]);
    for (long round = 0; round < rounds; round++) {
        MPI_Request sends[PEERS * PER_PEER], early[PEERS], total_request;
        char *out[PEERS * PER_PEER] = {0}, *first[PEERS] = {0};
        uint64_t part = of(seed, round, rank, rank, 0), total, expected = 0;
        int count = 0;
        channel[0] = part;
        MPI_Startall(2, persistent);
        for (int peer = 0; peer < size; peer++) { /* message 0 of every peer has its receive posted before the send */
            early[peer] = MPI_REQUEST_NULL;
            if (peer == rank) continue;
            first[peer] = malloc((size_t)LARGEST);
            CHECK(first[peer]);
            MPI_Irecv(first[peer], LARGEST, MPI_BYTE, peer, 7, MPI_COMM_WORLD, &early[peer]);
        }
        MPI_Iallreduce(&part, &total, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD, &total_request);
        for (int number = 0; number < PER_PEER; number++)
            for (int peer = 0; peer < size; peer++) {
                if (peer == rank) continue;
                uint64_t word = of(seed, round, rank, peer, number);
                int bytes = size_of(word), kind = (int)(word >> 40) % 4;
                if (kind == 2 && bytes > 1 << 16) kind = 0; /* no large message through the attached buffer */
                char *data = out[count] = malloc((size_t)bytes + 1);
                CHECK(data);
                fill(data, bytes, word);
                sends[count] = MPI_REQUEST_NULL;
                if (kind == 0) MPI_Isend(data, bytes, MPI_BYTE, peer, 7, MPI_COMM_WORLD, &sends[count]);
                else if (kind == 1) MPI_Issend(data, bytes, MPI_BYTE, peer, 7, MPI_COMM_WORLD, &sends[count]);
                else if (kind == 2) MPI_Bsend(data, bytes, MPI_BYTE, peer, 7, MPI_COMM_WORLD);
                else MPI_Ibsend(data, bytes > 1 << 16 ? 0 : bytes, MPI_BYTE, peer, 7, MPI_COMM_WORLD, &sends[count]);
                count++;
            }
        for (int number = 0; number < PER_PEER; number++)
            for (int step = 1; step < size; step++) {
                int peer = (rank + step) % size, bytes;
                uint64_t word = of(seed, round, peer, rank, number);
                int wanted = size_of(word), kind = (int)(word >> 40) % 4;
                if (kind == 3 && wanted > 1 << 16) wanted = 0;
                MPI_Status status;
                MPI_Message message;
                char *data = from;
                if (number == 0) { MPI_Wait(&early[peer], &status); data = first[peer]; }
                else if (number == 1) MPI_Recv(from, LARGEST, MPI_BYTE, peer, 7, MPI_COMM_WORLD, &status);
                else if (number == 2) {
                    MPI_Probe(peer, 7, MPI_COMM_WORLD, &status);
                    MPI_Get_count(&status, MPI_BYTE, &bytes);
                    MPI_Recv(from, bytes, MPI_BYTE, peer, 7, MPI_COMM_WORLD, &status);
                } else {
                    int found = 0;
                    while (!found) MPI_Improbe(peer, 7, MPI_COMM_WORLD, &found, &message, &status);
                    MPI_Mrecv(from, LARGEST, MPI_BYTE, &message, &status);
                }
                MPI_Get_count(&status, MPI_BYTE, &bytes);
                CHECK(status.MPI_SOURCE == peer && status.MPI_TAG == 7 && bytes == wanted);
                verify(data, bytes, word);
                sum = hash(sum, &word, sizeof word);
            }
        MPI_Waitall(count, sends, MPI_STATUSES_IGNORE);
        MPI_Waitall(2, persistent, MPI_STATUSES_IGNORE);
        MPI_Wait(&total_request, MPI_STATUS_IGNORE);
        for (int peer = 0; peer < size; peer++) expected += of(seed, round, peer, peer, 0);
        CHECK(total == expected && channel[1] == of(seed, round, left, left, 0));
        for (int i = 0; i < count; i++) free(out[i]);
        for (int peer = 0; peer < size; peer++) free(first[peer]);
    }
    MPI_Request_free(&persistent[0]);
    MPI_Request_free(&persistent[1]);
    MPI_Buffer_detach(&ignored, &attached_size);
    CHECK(ignored == attached && attached_size == 4 * LARGEST);
    uint64_t all;
    MPI_Reduce(&sum, &all, 1, MPI_UINT64_T, MPI_BXOR, 0, MPI_COMM_WORLD);
    MPI_Finalize();
    return rank == 0 ? finish(all) : 0;
}
