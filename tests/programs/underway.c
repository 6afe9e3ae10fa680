/* Non-blocking collectives under way, with types and operations freed meanwhile, topologies, intercommunicators,
 * attributes, error handlers, split with undefined. underway [ROUNDS] [SEED] */
#include <mpi.h>
#include "check.h"
static int rank, size, copies, deletes, handled;
static void mat(void *a, void *b, int *len, MPI_Datatype *t) {
    (void)t;
    int *x = a, *y = b;
    for (int i = 0; i < *len; i++) {
        int p = x[2 * i] * y[2 * i], q = x[2 * i] * y[2 * i + 1] + x[2 * i + 1];
        y[2 * i] = p; y[2 * i + 1] = q;
    }
}
static int copy(MPI_Comm c, int k, void *e, void *v, void *o, int *f) {
    (void)c; (void)k; (void)e; *(void **)o = (char *)v + 1; *f = 1; copies++; return MPI_SUCCESS;
}
static int del(MPI_Comm c, int k, void *v, void *e) { (void)c; (void)k; (void)v; (void)e; deletes++; return MPI_SUCCESS; }
static void onerror(MPI_Comm *c, int *code, ...) { (void)c; (void)code; handled++; }
int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(size >= 3);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t result = 0;
    MPI_Comm half, inter, cart, model, graph, dist, undefined, zero, idup;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half);
    MPI_Comm_split(MPI_COMM_WORLD, rank == 1 ? MPI_UNDEFINED : 3, rank, &undefined);
    CHECK((undefined == MPI_COMM_NULL) == (rank == 1));
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, rank % 2 ? (size - 1) / 2 * 2 : (size / 2) * 2 - 1, 17, &inter);
    int dims[2] = {size, 1}, periods[2] = {1, 0}, none[2] = {0, 0};
    MPI_Cart_create(MPI_COMM_WORLD, 2, dims, periods, 1, &cart);
    /* Duplicated without blocking, and used for nothing else: Open MPI 4.1 starts the later rounds of MPI_Comm_idup when a rank
     * makes progress, so that a collective started meanwhile on the same communicator is matched with one of them. */
    MPI_Cart_create(MPI_COMM_WORLD, 2, dims, periods, 1, &model);
    MPI_Cart_sub(cart, none, &zero);
    int index[64], edges[128], n = 0;
    for (int i = 0; i < size; i++) { edges[n++] = (i + 1) % size; edges[n++] = (i + size - 1) % size; index[i] = n; }
    MPI_Graph_create(MPI_COMM_WORLD, size, index, edges, 0, &graph);
    int one = 1, src = rank, dst = (rank + 1) % size, w = 5;
    MPI_Dist_graph_create(MPI_COMM_WORLD, 1, &src, &one, &dst, &w, MPI_INFO_NULL, 0, &dist);
    int key;
    MPI_Comm_create_keyval(copy, del, &key, NULL);
    MPI_Comm_set_attr(model, key, (void *)100);
    int key2 = key;
    MPI_Comm_free_keyval(&key2);
    MPI_Errhandler h;
    MPI_Comm_create_errhandler(onerror, &h);
    MPI_Comm_set_errhandler(graph, h);
    MPI_Errhandler_free(&h);
    for (long round = 0; round < rounds; round++) {
        MPI_Request q[12];
        int k = 0;
        MPI_Datatype pair;
        MPI_Type_contiguous(2, MPI_INT, &pair);
        MPI_Type_commit(&pair);
        MPI_Op op;
        MPI_Op_create(mat, 0, &op);
        int mine[2] = {1 + (int)(round % 3) * rank, rank + 1}, red[2], all[2];
        MPI_Comm dup;
        MPI_Comm_idup(model, &dup, &q[k++]);
        idup = dup;
        MPI_Iallreduce(mine, all, 1, pair, op, MPI_COMM_WORLD, &q[k++]);
        MPI_Ireduce(mine, red, 1, pair, op, 0, half, &q[k++]);
        MPI_Op_free(&op);
        MPI_Ibarrier(inter, &q[k++]);
        long word = rank == 1 ? round : -1, in_inter = -1;
        MPI_Ibcast(&word, 1, MPI_LONG, 1, MPI_COMM_WORLD, &q[k++]);
        long remote[64], me = rank + round * 100;
        MPI_Iallgather(&me, 1, MPI_LONG, remote, 1, MPI_LONG, inter, &q[k++]);
        int counts[64], places[64], sp[64];
        MPI_Datatype types[64], rtypes[64];
        int aout[64 * 4], ain[64 * 4];
        for (int i = 0; i < size; i++) {
            counts[i] = 1; places[i] = sp[i] = i * 16;
            MPI_Type_vector(2, 1, 2, MPI_INT, &types[i]);
            MPI_Type_commit(&types[i]);
            MPI_Type_contiguous(2, MPI_INT, &rtypes[i]);
            MPI_Type_commit(&rtypes[i]);
            for (int j = 0; j < 4; j++) { aout[4 * i + j] = rank * 1000 + i * 10 + j; ain[4 * i + j] = -1; }
        }
        MPI_Ialltoallw(aout, counts, sp, types, ain, counts, places, rtypes, MPI_COMM_WORLD, &q[k++]);
        for (int i = 0; i < size; i++) { MPI_Type_free(&types[i]); MPI_Type_free(&rtypes[i]); }
        MPI_Type_free(&pair);
        int nout[2] = {rank, rank + 100}, nin[4] = {-1, -1, -1, -1}, gin[2], din = -1;
        MPI_Ineighbor_allgather(nout, 1, MPI_INT, nin, 1, MPI_INT, cart, &q[k++]);
        MPI_Ineighbor_alltoall(nout, 1, MPI_INT, gin, 1, MPI_INT, graph, &q[k++]);
        MPI_Ineighbor_allgather(nout, 1, MPI_INT, &din, 1, MPI_INT, dist, &q[k++]);
        if (undefined != MPI_COMM_NULL) MPI_Ibarrier(undefined, &q[k++]);
        if (round % 2) pace();
        if (round % 3 == 0) usleep((useconds_t)rank * 700);
        int done = 0;
        if (round % 4 == 0) while (done < k) {
            int some, where[12];
            if (round % 8) MPI_Waitsome(k, q, &some, where, MPI_STATUSES_IGNORE);
            else MPI_Testsome(k, q, &some, where, MPI_STATUSES_IGNORE);
            done += some;
        } else MPI_Waitall(k, q, MPI_STATUSES_IGNORE);
        int x = 1, y = 0;   /* in rank order: the operation does not commute */
        for (int i = size - 1; i >= 0; i--) {
            int a = 1 + (int)(round % 3) * i, b = i + 1;
            if (i == size - 1) { x = a; y = b; } else { int p = a * x, r = a * y + b; x = p; y = r; }
        }
        CHECK(all[0] == x && all[1] == y);
        CHECK(word == round);
        int rs;
        MPI_Comm_remote_size(inter, &rs);
        for (int i = 0; i < rs; i++) { CHECK(remote[i] / 100 == round || remote[i] >= 100 * round); result += (uint64_t)remote[i]; }
        for (int i = 0; i < size; i++) CHECK(ain[4 * i] == i * 1000 + rank * 10 && ain[4 * i + 1] == i * 1000 + rank * 10 + 2);
        CHECK(din == (rank + size - 1) % size);
        CHECK(nin[0] == (rank + size - 1) % size && nin[1] == (rank + 1) % size);
        result = hash(result, gin, sizeof gin);
        result = hash(result, all, sizeof all);
        /* the dup: its topology, its attribute, its keyval freed long ago */
        void *v; int flag, status;
        MPI_Topo_test(idup, &status);
        CHECK(status == MPI_CART);
        MPI_Comm_get_attr(idup, key, &v, &flag);
        CHECK(flag && v == (void *)101);
        MPI_Neighbor_allgather(nout, 1, MPI_INT, nin, 1, MPI_INT, idup);
        CHECK(nin[0] == (rank + size - 1) % size);
        /* freed with requests under way */
        int tok = -1, put = rank;
        MPI_Request fq[3];
        MPI_Irecv(&tok, 1, MPI_INT, (rank + 1) % size, 4, idup, &fq[0]);
        MPI_Isend(&put, 1, MPI_INT, (rank + size - 1) % size, 4, idup, &fq[1]);
        MPI_Ibarrier(idup, &fq[2]);
        MPI_Comm_free(&idup);
        if (round % 3 == 1) pace();
        MPI_Waitall(3, fq, MPI_STATUSES_IGNORE);
        CHECK(tok == (rank + 1) % size);
        CHECK(copies == round + 1 && deletes == round + 1);
        /* on the intercommunicator: root of one side tells the other */
        in_inter = rank == 0 ? round : -1;
        int hr; MPI_Comm_rank(half, &hr);
        int root0 = (size - 1) / 2;  /* rank 0 is the last in its half */
        MPI_Bcast(&in_inter, 1, MPI_LONG, rank % 2 ? root0 : rank == 0 ? MPI_ROOT : MPI_PROC_NULL, inter);
        if (rank % 2) CHECK(in_inter == round);
        long sum = rank, got = 0;
        MPI_Allreduce(&sum, &got, 1, MPI_LONG, MPI_SUM, inter);
        long expect = 0;
        for (int i = 0; i < size; i++) if (i % 2 != rank % 2) expect += i;
        CHECK(got == expect);
        MPI_Comm merged;
        MPI_Intercomm_merge(inter, rank % 2, &merged);
        int mr; MPI_Comm_rank(merged, &mr);
        result = hash(result, &mr, sizeof mr);
        MPI_Comm_free(&merged);
        MPI_Barrier(zero);
        /* in place: what would be sent is not looked at, types neither */
        MPI_Datatype nothing[64], whole[64];
        memset(nothing, 0x5a, sizeof nothing);
        int one_each[64], at[64], square[64];
        for (int i = 0; i < size; i++) { one_each[i] = 1; at[i] = 4 * i; whole[i] = MPI_INT; square[i] = rank * 100 + i; }
        MPI_Alltoallw(MPI_IN_PLACE, one_each, at, nothing, square, one_each, at, whole, MPI_COMM_WORLD);
        for (int i = 0; i < size; i++) CHECK(square[i] == i * 100 + rank);
        /* errors */
        int before = handled;
        MPI_Send(&x, 1, MPI_INT, size + 5, 0, graph);
        CHECK(handled == before + 1);
    }
    MPI_Comm_free(&cart); MPI_Comm_free(&model); MPI_Comm_free(&graph); MPI_Comm_free(&dist); MPI_Comm_free(&inter); MPI_Comm_free(&half); MPI_Comm_free(&zero);
    if (undefined != MPI_COMM_NULL) MPI_Comm_free(&undefined);
    CHECK(deletes == rounds + 1);
    uint64_t sum;
    MPI_Reduce(&result, &sum, 1, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Finalize();
    return rank == 0 ? finish(sum) : 0;
}
