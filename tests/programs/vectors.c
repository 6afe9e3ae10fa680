/* Collectives with a count for each rank and their kin, each blocking in one round and under way while time passes in the next: gather,
 * scatter, all to all, prefixes, reductions that scatter, and neighbours of a directed graph. vectors [ROUNDS] */
#include <mpi.h>
#include "check.h"
enum { N = 8, ROOM = 4 };
static int rank, size, requests;
static long now;
static MPI_Request request[32];
/* What one rank has for another, and how much of it. */
static int value(int from, int to, int k) { return (int)(now * 31) + from * 1000 + to * 100 + k; }
static int many(int from, int to) { return (int)((from + 2 * to + now) % ROOM); }
/* x -> ax + b, composed: does not commute. */
static void compose(void *in, void *inout, int *count, MPI_Datatype *type) {
    int *first = in, *second = inout;
    (void)type;
    for (int i = 0; i < *count; i++, first += 2, second += 2) {
        second[1] = (second[0] * first[1] + second[1]) % 10007;
        second[0] = second[0] * first[0] % 10007;
    }
}
/* Blocking in every other round. */
#define EITHER(n, name, iname, ...) do { if ((now + (n)) % 2) CHECK(MPI_##name(__VA_ARGS__) == 0); \
    else CHECK(MPI_I##iname(__VA_ARGS__, &request[requests++]) == 0); } while (0)
int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    long rounds = argument(argc, argv, 1, 100);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(size >= 3 && size <= N);
    MPI_Datatype map;
    MPI_Op op;
    MPI_Type_contiguous(2, MPI_INT, &map);
    MPI_Type_commit(&map);
    MPI_Op_create(compose, 0, &op);
    int commutes = -1, from[2] = {(rank + size - 1) % size, (rank + size - 2) % size}, to[2] = {(rank + 1) % size, (rank + 2) % size};
    MPI_Op_commutative(op, &commutes);
    CHECK(commutes == 0);
    MPI_Comm graph;
    MPI_Dist_graph_create_adjacent(MPI_COMM_WORLD, 2, from, (int[]){1, 2}, 2, to, (int[]){1, 2}, MPI_INFO_NULL, 0, &graph);
    uint64_t result = 0;
    for (now = 0; now < rounds; now++) {
        int root = (int)(now % size), own[N][ROOM], all[N * ROOM], counts[N], places[N], at[N], sends[N], outs[N];
        int gathered[N][ROOM] = {{0}}, scattered[ROOM] = {0}, each[N][ROOM] = {{0}}, swapped[N][ROOM] = {{0}}, pairs[N][2], pairs_in[N][2];
        int gather2[N][2] = {{0}}, scatter2[2] = {0}, parts[N * 3], part[3] = {0}, blocks[N][2], block[2] = {0};
        int mine[2] = {rank + 2, (int)(now % 97)}, upto[2] = {0}, before[2] = {1, 0}, sum[3], total[3];
        int near[2][ROOM] = {{0}}, two[2][2], two_in[2][2] = {{0}}, outv[2][ROOM], inv[2][ROOM] = {{0}}, inw[2][ROOM] = {{0}};
        int lengths[N], offset = 0, nc[2], np[2] = {0, ROOM}, no[2];
        MPI_Aint bytes[2] = {0, ROOM * sizeof(int)};
        MPI_Datatype ints[2] = {MPI_INT, MPI_INT};
        requests = 0;
        for (int r = 0; r < size; r++) {
            for (int k = 0; k < ROOM; k++) own[r][k] = value(rank, r, k);
            for (int k = 0; k < 2; k++) pairs[r][k] = value(rank, r, k + 7), blocks[r][k] = value(rank, r, k + 5);
            counts[r] = many(r, root);
            at[r] = many(r, 0);
            places[r] = r * ROOM;
            sends[r] = many(rank, r);
            outs[r] = many(r, rank);
            lengths[r] = 1 + (r + (int)now) % 3;
        }
        for (int r = 0; r < size; r++) for (int k = 0; k < lengths[r]; k++) parts[offset++] = value(rank, r, k);
        for (int k = 0; k < 3; k++) sum[k] = value(rank, 0, k);
        EITHER(0, Gatherv, gatherv, own[root], many(rank, root), MPI_INT, gathered, counts, places, MPI_INT, root, MPI_COMM_WORLD);
        for (int r = 0; r < size; r++) all[r] = many(root, r);
        EITHER(1, Scatterv, scatterv, own, all, places, MPI_INT, scattered, many(root, rank), MPI_INT, root, MPI_COMM_WORLD);
        EITHER(0, Allgatherv, allgatherv, own[0], at[rank], MPI_INT, each, at, places, MPI_INT, MPI_COMM_WORLD);
        EITHER(1, Alltoallv, alltoallv, own, sends, places, MPI_INT, swapped, outs, places, MPI_INT, MPI_COMM_WORLD);
        EITHER(0, Alltoall, alltoall, pairs, 2, MPI_INT, pairs_in, 2, MPI_INT, MPI_COMM_WORLD);
        EITHER(1, Gather, gather, pairs[root], 2, MPI_INT, gather2, 2, MPI_INT, root, MPI_COMM_WORLD);
        EITHER(0, Scatter, scatter, pairs, 2, MPI_INT, scatter2, 2, MPI_INT, root, MPI_COMM_WORLD);
        EITHER(1, Scan, scan, mine, upto, 1, map, op, MPI_COMM_WORLD);
        EITHER(0, Exscan, exscan, mine, before, 1, map, op, MPI_COMM_WORLD);
        EITHER(1, Reduce_scatter, reduce_scatter, parts, part, lengths, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        EITHER(0, Reduce_scatter_block, reduce_scatter_block, blocks, block, 2, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
        EITHER(1, Reduce, reduce, sum, total, 3, MPI_INT, MPI_SUM, root, MPI_COMM_WORLD);
        for (int n = 0; n < 2; n++) {
            nc[n] = many(from[n], from[n]);
            no[n] = many(rank, to[n]);
            for (int k = 0; k < 2; k++) two[n][k] = value(rank, to[n], k + 3);
            for (int k = 0; k < ROOM; k++) outv[n][k] = value(rank, to[n], k + 4);
        }
        int ni[2] = {many(from[0], rank), many(from[1], rank)};
        EITHER(0, Neighbor_allgatherv, neighbor_allgatherv, own[rank], many(rank, rank), MPI_INT, near, nc, np, MPI_INT, graph);
        EITHER(1, Neighbor_alltoall, neighbor_alltoall, two, 2, MPI_INT, two_in, 2, MPI_INT, graph);
        EITHER(0, Neighbor_alltoallv, neighbor_alltoallv, outv, no, np, MPI_INT, inv, ni, np, MPI_INT, graph);
        EITHER(1, Neighbor_alltoallw, neighbor_alltoallw, outv, no, bytes, ints, inw, ni, bytes, ints, graph);
        pace();
        /* Each way to complete several. */
        for (int left = requests, index, flag = 0; left > 0 && now % 3 != 2; left -= flag) {
            if (now % 3) flag = MPI_Waitany(requests, request, &index, MPI_STATUS_IGNORE) == 0;
            else MPI_Testany(requests, request, &index, &flag, MPI_STATUS_IGNORE);
            CHECK(!flag || index != MPI_UNDEFINED);
        }
        if (now % 3 == 2) MPI_Waitall(requests, request, MPI_STATUSES_IGNORE);
        for (int r = 0; r < requests; r++) CHECK(request[r] == MPI_REQUEST_NULL);
        int map_of[2] = {1, 0};
        for (int r = 0; r < size; r++) {
            if (rank == root) {
                for (int k = 0; k < counts[r]; k++) CHECK(gathered[r][k] == value(r, root, k));
                for (int k = 0; k < 2; k++) CHECK(gather2[r][k] == value(r, root, k + 7));
            }
            for (int k = 0; k < at[r]; k++) CHECK(each[r][k] == value(r, 0, k));
            for (int k = 0; k < outs[r]; k++) CHECK(swapped[r][k] == value(r, rank, k));
            for (int k = 0; k < 2; k++) CHECK(pairs_in[r][k] == value(r, rank, k + 7));
            if (r == rank && rank > 0) CHECK(before[0] == map_of[0] && before[1] == map_of[1]);
            map_of[1] = ((r + 2) * map_of[1] + (int)(now % 97)) % 10007;
            map_of[0] = (r + 2) * map_of[0] % 10007;
            if (r == rank) CHECK(upto[0] == map_of[0] && upto[1] == map_of[1]);
        }
        for (int k = 0; k < many(root, rank); k++) CHECK(scattered[k] == value(root, rank, k));
        for (int k = 0; k < 2; k++) CHECK(scatter2[k] == value(root, rank, k + 7) && block[k] == value(size - 1, rank, k + 5));
        for (int k = 0; k < 3; k++) {
            int whole = 0, first = 0;
            for (int r = 0; r < size; r++) whole += value(r, rank, k), first += value(r, 0, k);
            CHECK(k >= lengths[rank] || part[k] == whole);
            CHECK(rank != root || total[k] == first);
        }
        for (int n = 0; n < 2; n++) {
            for (int k = 0; k < nc[n]; k++) CHECK(near[n][k] == value(from[n], from[n], k));
            for (int k = 0; k < 2; k++) CHECK(two_in[n][k] == value(from[n], rank, k + 3));
            for (int k = 0; k < ni[n]; k++) CHECK(inv[n][k] == value(from[n], rank, k + 4) && inw[n][k] == inv[n][k]);
        }
        result = hash(result, map_of, sizeof map_of);
    }
    MPI_Comm_free(&graph);
    MPI_Op_free(&op);
    MPI_Type_free(&map);
    MPI_Finalize();
    return rank == 0 ? finish(result) : 0;
}
