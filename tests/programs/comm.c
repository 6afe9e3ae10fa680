/* Communicators: dup with attributes, split, a cartesian grid, an intercommunicator, names, an errhandler; made once, used
 * in every round, so that a restart must have rebuilt them all. comm [ROUNDS] */
#include <mpi.h>
#include "check.h"
static int copies, deletes, errors;
static int copy(MPI_Comm c, int k, void *extra, void *in, void *out, int *flag) {
    (void)c; (void)k;
    copies += extra == &copies;
    *(void **)out = (char *)in + 1;
    *flag = 1;
    return MPI_SUCCESS;
}
static int drop(MPI_Comm c, int k, void *value, void *extra) { (void)c; (void)k; (void)value; deletes += extra == &copies; return MPI_SUCCESS; }
static void on_error(MPI_Comm *c, int *code, ...) { (void)c; (void)code; errors++; }
int main(int argc, char **argv) {
    int rank, size, key, flag, length, half_size, remote, dims[1] = {0}, periods[1] = {1}, left, right, one = 1, two = 2;
    char base[2], *value, name[MPI_MAX_OBJECT_NAME];
    MPI_Comm with, twin, half, cart, inter;
    MPI_Group world, odd_ones;
    MPI_Errhandler handler;
    MPI_Init(&argc, &argv);
    long rounds = argument(argc, argv, 1, 100);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(size >= 2);
    MPI_Comm_create_keyval(copy, drop, &key, &copies);
    MPI_Comm_dup(MPI_COMM_WORLD, &with);
    MPI_Comm_set_attr(with, key, base);
    MPI_Comm_dup(with, &twin);
    MPI_Comm_set_name(twin, "twin");
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half);
    MPI_Dims_create(size, 1, dims);
    MPI_Cart_create(MPI_COMM_WORLD, 1, dims, periods, 0, &cart);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, (size - 1) - ((size - 1) % 2 == rank % 2), 5, &inter);
    MPI_Comm_create_errhandler(on_error, &handler);
    MPI_Comm_set_errhandler(half, handler);
    MPI_Errhandler_free(&handler);
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_excl(world, 1, (int[]){0}, &odd_ones);
    MPI_Cart_shift(cart, 0, 1, &left, &right);
    MPI_Comm_size(half, &half_size);
    for (long round = 0; round < rounds; round++) {
        int got = -1, sum, leader, place, topology, result;
        MPI_Comm_get_attr(twin, key, &value, &flag);
        CHECK(flag && value == base + 1 && copies == 1);
        MPI_Comm_get_name(twin, name, &length);
        CHECK(strcmp(name, "twin") == 0 && length == 4);
        leader = rank;
        MPI_Bcast(&leader, 1, MPI_INT, 0, half); /* the split turned the order round: its first is the largest */
        CHECK(leader % 2 == rank % 2 && leader >= size - 2);
        MPI_Comm_rank(half, &place);
        CHECK(place == half_size - 1 - rank / 2);
        MPI_Sendrecv(&rank, 1, MPI_INT, right, 1, &got, 1, MPI_INT, left, 1, cart, MPI_STATUS_IGNORE);
        CHECK(got == left && got == (rank + size - 1) % size);
        MPI_Comm_remote_size(inter, &remote);
        CHECK(remote == size - half_size);
        MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, inter);
        CHECK(sum == remote);
        MPI_Neighbor_allgather(&rank, 1, MPI_INT, (int[]){0, 0}, 1, MPI_INT, cart);
        MPI_Topo_test(cart, &topology);
        MPI_Comm_compare(with, twin, &result);
        CHECK(topology == MPI_CART && result == MPI_CONGRUENT);
        MPI_Send(&two, 1, MPI_INT, 1000, 0, half); /* no such rank: our handler is told */
        CHECK(errors == round + 1);
        MPI_Group_size(odd_ones, &sum);
        CHECK(sum == size - 1);
        pace();
    }
    MPI_Group_free(&world);
    MPI_Group_free(&odd_ones);
    MPI_Comm_free(&inter);
    MPI_Comm_free(&cart);
    MPI_Comm_free(&half);
    MPI_Comm_free(&twin);
    MPI_Comm_free(&with);
    CHECK(deletes == 2);
    MPI_Comm_free_keyval(&key);
    MPI_Finalize();
    return rank == 0 ? finish((uint64_t)errors) : 0;
}
