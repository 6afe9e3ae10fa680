/* What MPI makes and gives back later: types of every constructor with their contents and attributes, packed bytes, information, error
 * classes, ranges of groups, communicators of groups and of nodes, a grid and a graph, requests of the program's own, ready sends.
 * Made once, and looked at in every round, so that a restart must have made them all again. objects [ROUNDS] */
#include <mpi.h>
#include "check.h"
/* Names of MPI 1 too. */
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
enum { TYPES = 13 };
static int rank, size, copies, drops, queried, freed, cancelled;
static MPI_Datatype types[TYPES];
static MPI_Comm grid, graph, some, node, twin;
static int copy(MPI_Datatype t, int k, void *extra, void *in, void *out, int *flag) {
    (void)t; (void)k; (void)extra;
    copies++;
    *(void **)out = (char *)in + 1;
    *flag = 1;
    return MPI_SUCCESS;
}
static int drop(MPI_Datatype t, int k, void *value, void *extra) { (void)t; (void)k; (void)value; drops += extra == &drops; return MPI_SUCCESS; }
static int asked(void *extra, MPI_Status *status) {
    queried++;
    MPI_Status_set_elements(status, MPI_INT, *(int *)extra);
    MPI_Status_set_cancelled(status, 0);
    status->MPI_SOURCE = 7;
    status->MPI_TAG = 8;
    return MPI_SUCCESS;
}
static int released(void *extra) { (void)extra; freed++; return MPI_SUCCESS; }
static int given_up(void *extra, int complete) { (void)extra; (void)complete; cancelled++; return MPI_SUCCESS; }
/* Combiner, extents, size and the contents of one type, as a number. */
static uint64_t look(MPI_Datatype t) {
    int ints, addresses, n, combiner, bytes, i[64] = {0};
    MPI_Count large;
    MPI_Aint a[16] = {0}, low, extent, true_low, true_extent;
    MPI_Datatype of[16];
    CHECK(MPI_Type_get_envelope(t, &ints, &addresses, &n, &combiner) == 0 && ints <= 64 && addresses <= 16 && n <= 16);
    CHECK(MPI_Type_get_contents(t, ints, addresses, n, i, a, of) == 0);
    MPI_Type_size(t, &bytes);
    MPI_Type_size_x(t, &large);
    CHECK(large == bytes);
    MPI_Type_get_extent(t, &low, &extent);
    MPI_Type_get_true_extent(t, &true_low, &true_extent);
    long seen[] = {ints, addresses, n, combiner, bytes, low, extent, true_low, true_extent};
    uint64_t sum = hash(hash(hash(1, seen, sizeof seen), i, (size_t)ints * sizeof *i), a, (size_t)addresses * sizeof *a);
    for (int k = 0; k < n; k++) {
        int inner, none;
        MPI_Type_size(of[k], &inner);
        sum = hash(sum, &inner, sizeof inner);
        MPI_Type_get_envelope(of[k], &none, &none, &none, &combiner);
        if (combiner != MPI_COMBINER_NAMED && combiner < MPI_COMBINER_F90_REAL) MPI_Type_free(&of[k]);
    }
    return sum;
}
static void make_types(void) {
    int lengths[] = {1, 3, 2}, places[] = {0, 4, 9};
    MPI_Aint bytes[] = {0, 32, 96};
    MPI_Type_dup(MPI_INT, &types[0]);
    MPI_Type_contiguous(3, MPI_DOUBLE, &types[1]);
    MPI_Type_vector(3, 2, 5, MPI_INT, &types[2]);
    MPI_Type_create_hvector(3, 2, 24, MPI_INT, &types[3]);
    MPI_Type_indexed(3, lengths, places, MPI_INT, &types[4]);
    MPI_Type_create_hindexed(3, lengths, bytes, MPI_INT, &types[5]);
    MPI_Type_create_indexed_block(3, 2, places, MPI_INT, &types[6]);
    MPI_Type_create_hindexed_block(3, 2, bytes, MPI_INT, &types[7]);
    MPI_Type_create_darray(size, rank, 2, (int[]){6, 9}, (int[]){MPI_DISTRIBUTE_BLOCK, MPI_DISTRIBUTE_CYCLIC},
                           (int[]){MPI_DISTRIBUTE_DFLT_DARG, 2}, (int[]){size, 1}, MPI_ORDER_C, MPI_INT, &types[8]);
    MPI_Type_create_struct(2, (int[]){1, 2}, (MPI_Aint[]){8, 40}, (MPI_Datatype[]){types[2], types[0]}, &types[9]);
    MPI_Type_create_resized(types[9], -8, 160, &types[10]);
    MPI_Type_create_f90_real(10, MPI_UNDEFINED, &types[11]);
    MPI_Type_create_f90_integer(6, &types[12]);
    for (int k = 0; k < 11; k++) MPI_Type_commit(&types[k]);
}
int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    long rounds = argument(argc, argv, 1, 100);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(size >= 3);
    int right = (rank + 1) % size, left = (rank + size - 1) % size, key, of_comm, class, code, flag, provided, main_thread;
    make_types();
    uint64_t seen[TYPES];
    for (int k = 0; k < TYPES; k++) seen[k] = look(types[k]);
    /* Attributes of a type go over to its copy. */
    char base[2], *value;
    MPI_Datatype named;
    MPI_Type_create_keyval(copy, drop, &key, &drops);
    MPI_Type_set_attr(types[4], key, base);
    MPI_Type_dup(types[4], &named);
    MPI_Type_set_name(named, "named");
    MPI_Keyval_create(MPI_DUP_FN, MPI_NULL_DELETE_FN, &of_comm, NULL);
    MPI_Info info, both, got;
    MPI_Info_create(&info);
    MPI_Info_set(info, "first", "1");
    MPI_Info_set(info, "second", "two");
    MPI_Info_dup(info, &both);
    MPI_Info_delete(info, "first");
    MPI_Add_error_class(&class);
    MPI_Add_error_code(class, &code);
    MPI_Add_error_string(code, "of our own");
    /* All but the last, the last, and all from the last to the first. */
    MPI_Group world, but, last, backwards, group;
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_range_excl(world, 1, (int[][3]){{size - 1, size - 1, 1}}, &but);
    MPI_Group_difference(world, but, &last);
    MPI_Group_range_incl(world, 1, (int[][3]){{size - 1, 0, -1}}, &backwards);
    some = MPI_COMM_NULL;
    if (rank < size - 1) MPI_Comm_create_group(MPI_COMM_WORLD, but, 3, &some);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, -rank, MPI_INFO_NULL, &node);
    MPI_Comm_dup_with_info(MPI_COMM_WORLD, info, &twin);
    MPI_Attr_put(twin, of_comm, base);
    MPI_Cart_create(MPI_COMM_WORLD, 2, (int[]){size, 1}, (int[]){1, 0}, 0, &grid);
    /* Each with all others: index and edges. */
    int index[16], edges[256], n = 0;
    CHECK(size <= 16);
    for (int r = 0; r < size; r++) {
        for (int o = 0; o < size; o++) if (o != r) edges[n++] = o;
        index[r] = n;
    }
    MPI_Graph_create(MPI_COMM_WORLD, size, index, edges, 0, &graph);
    int *lent, elements = 0, ready[2] = {0}, go;
    MPI_Alloc_mem(4096, MPI_INFO_NULL, &lent);
    MPI_Request own, send, receive, persistent[2];
    MPI_Rsend_init(lent, 4, MPI_INT, right, 5, MPI_COMM_WORLD, &persistent[0]);
    MPI_Recv_init(lent + 8, 4, MPI_INT, left, 5, MPI_COMM_WORLD, &persistent[1]);
    uint64_t result = 0;
    for (long round = 0; round < rounds; round++) {
        char text[MPI_MAX_ERROR_STRING], words[16], bytes[512], outside[512];
        int length, count, ranks[2], place, dims[2], periods[2], coords[2], near[16];
        MPI_Status status;
        elements = (int)(round % 5);
        MPI_Grequest_start(asked, released, given_up, &elements, &own);
        pace();
        for (int k = 0; k < TYPES; k++) CHECK(look(types[k]) == seen[k]);
        MPI_Type_get_attr(named, key, &value, &flag);
        CHECK(flag && value == base + 1 && copies == 1);
        MPI_Type_get_name(named, text, &length);
        CHECK(strcmp(text, "named") == 0);
        MPI_Attr_get(twin, of_comm, &value, &flag);
        CHECK(flag && value == base);
        MPI_Info_get_nkeys(both, &count);
        MPI_Info_get_valuelen(both, "second", &length, &flag);
        CHECK(count == 2 && flag && length == 3);
        MPI_Info_get(both, "first", 15, words, &flag);
        CHECK(flag && strcmp(words, "1") == 0);
        MPI_Info_get(info, "first", 15, words, &flag);
        CHECK(!flag);
        MPI_Comm_get_info(twin, &got);
        MPI_Info_free(&got);
        MPI_Error_string(code, text, &length);
        CHECK(strcmp(text, "of our own") == 0);
        MPI_Error_class(code, &count);
        CHECK(count == class);
        MPI_Group_translate_ranks(backwards, 2, (int[]){0, size - 1}, world, ranks);
        CHECK(ranks[0] == size - 1 && ranks[1] == 0);
        MPI_Group_intersection(but, last, &group);
        CHECK(group == MPI_GROUP_EMPTY);
        MPI_Group_rank(last, &place);
        CHECK(place == (rank == size - 1 ? 0 : MPI_UNDEFINED));
        if (some != MPI_COMM_NULL) {
            count = 1;
            MPI_Allreduce(MPI_IN_PLACE, &count, 1, MPI_INT, MPI_SUM, some);
            CHECK(count == size - 1);
        }
        MPI_Comm_rank(node, &place);
        MPI_Comm_size(node, &count);
        CHECK(count <= size && place < count);
        MPI_Cart_get(grid, 2, dims, periods, coords);
        CHECK(dims[0] == size && periods[0] == 1 && periods[1] == 0 && coords[0] == rank);
        MPI_Cart_rank(grid, (int[]){rank + size + 1, 0}, &place);
        MPI_Cart_coords(grid, right, 2, coords);
        MPI_Cartdim_get(grid, &count);
        CHECK(place == right && coords[0] == right && count == 2);
        MPI_Graph_neighbors_count(graph, rank, &count);
        MPI_Graph_neighbors(graph, rank, 16, near);
        CHECK(count == size - 1 && near[0] == (rank == 0));
        MPI_Graphdims_get(graph, &count, &length);
        CHECK(count == size && length == size * (size - 1));
        /* Packed here and unpacked there, in this machine's form and in the portable one. */
        int what[12], there[12] = {0}, at = 0;
        for (int k = 0; k < 12; k++) what[k] = rank * 1000 + (int)round + k;
        MPI_Pack_size(1, types[4], MPI_COMM_WORLD, &length);
        CHECK(length >= 24 && length < 512);
        MPI_Pack(what, 1, types[4], bytes, sizeof bytes, &at, MPI_COMM_WORLD);
        MPI_Pack(&round, 1, MPI_LONG, bytes, sizeof bytes, &at, MPI_COMM_WORLD);
        MPI_Isend(bytes, at, MPI_PACKED, right, 1, MPI_COMM_WORLD, &send);
        MPI_Irecv(outside, sizeof outside, MPI_PACKED, left, 1, MPI_COMM_WORLD, &receive);
        pace();
        for (flag = 0; !flag;) MPI_Request_get_status(receive, &flag, &status);
        MPI_Get_count(&status, MPI_PACKED, &count);
        CHECK(count == at && receive != MPI_REQUEST_NULL);
        MPI_Wait(&receive, &status);
        MPI_Wait(&send, MPI_STATUS_IGNORE);
        long same = -1;
        at = 0;
        MPI_Unpack(outside, count, &at, there, 1, types[4], MPI_COMM_WORLD);
        MPI_Unpack(outside, count, &at, &same, 1, MPI_LONG, MPI_COMM_WORLD);
        CHECK(same == round && there[0] == left * 1000 + (int)round && there[6] == there[0] + 6 && there[10] == there[0] + 10 && there[1] == 0);
        MPI_Aint where = 0, room;
        MPI_Pack_external_size("external32", 3, MPI_INT, &room);
        CHECK(room == 12);
        MPI_Pack_external("external32", what, 3, MPI_INT, outside, sizeof outside, &where);
        CHECK(where == 12 && (unsigned char)outside[3] == (unsigned char)what[0]);
        where = 0;
        MPI_Unpack_external("external32", outside, 12, &where, there, 3, MPI_INT);
        CHECK(memcmp(there, what, 12) == 0);
        /* A ready send begins when the receive is there for sure. */
        for (int k = 0; k < 4; k++) lent[k] = rank + k + (int)round;
        MPI_Start(&persistent[1]);
        MPI_Irecv(ready, 1, MPI_INT, left, 6, MPI_COMM_WORLD, &receive);
        MPI_Sendrecv(&rank, 1, MPI_INT, left, 7, &go, 1, MPI_INT, right, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Start(&persistent[0]);
        if (round % 2) MPI_Rsend(&lent[3], 1, MPI_INT, right, 6, MPI_COMM_WORLD);
        else {
            MPI_Irsend(&lent[3], 1, MPI_INT, right, 6, MPI_COMM_WORLD, &send);
            MPI_Wait(&send, MPI_STATUS_IGNORE);
        }
        MPI_Waitall(2, persistent, MPI_STATUSES_IGNORE);
        MPI_Wait(&receive, MPI_STATUS_IGNORE);
        CHECK(ready[0] == left + 3 + (int)round && lent[8] == left + (int)round && lent[11] == ready[0]);
        int token = rank;
        MPI_Sendrecv_replace(&token, 1, MPI_INT, right, 9, left, 9, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        CHECK(token == left);
        int part[2] = {3, 4}, whole[2] = {10, 20};
        MPI_Reduce_local(part, whole, 2, MPI_INT, MPI_SUM);
        CHECK(whole[0] == 13 && whole[1] == 24);
        /* Requests of the program's own: one is given up now and then. */
        if (round % 7 == 0) MPI_Cancel(&own);
        MPI_Test(&own, &flag, &status);
        CHECK(!flag);
        MPI_Grequest_complete(own);
        MPI_Wait(&own, &status);
        MPI_Get_elements(&status, MPI_INT, &count);
        CHECK(count == elements && status.MPI_SOURCE == 7 && status.MPI_TAG == 8 && own == MPI_REQUEST_NULL);
        CHECK(queried == round + 1 && freed == round + 1 && cancelled == (round + 7) / 7);
        MPI_Query_thread(&provided);
        MPI_Is_thread_main(&main_thread);
        CHECK(provided == MPI_THREAD_SINGLE && main_thread);
        result = hash(result, &same, sizeof same);
    }
    MPI_Request_free(&persistent[0]);
    MPI_Request_free(&persistent[1]);
    MPI_Free_mem(lent);
    MPI_Comm_free(&graph);
    MPI_Comm_free(&grid);
    MPI_Attr_delete(twin, of_comm);
    MPI_Keyval_free(&of_comm);
    MPI_Comm_free(&twin);
    MPI_Comm_free(&node);
    if (some != MPI_COMM_NULL) MPI_Comm_free(&some);
    MPI_Group_free(&backwards);
    MPI_Group_free(&last);
    MPI_Group_free(&but);
    MPI_Group_free(&world);
    MPI_Info_free(&info);
    MPI_Info_free(&both);
    MPI_Type_free(&named);
    for (int k = 0; k < 11; k++) MPI_Type_free(&types[k]);
    CHECK(drops == 2);
    MPI_Type_free_keyval(&key);
    MPI_Finalize();
    int over;
    MPI_Finalized(&over);
    CHECK(over);
    return rank == 0 ? finish(result) : 0;
}
