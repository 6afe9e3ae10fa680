/* MPI and verbs in one program: two ranks, which tell each other of their queue pairs by messages, then write into each other's memory by
 * their own verbs, and say by MPI when; the sums of both go through reductions. See verbs.h. */
#include <mpi.h>
#include "verbs.h"
enum { WORDS = 256 };
struct area { uint64_t in[WORDS], out[WORDS]; };
int main(int argc, char **argv) {
    struct verbs v = {.rounds = argument(argc, argv, 1, 100), .seed = (uint64_t)argument(argc, argv, 2, 1)};
    int rank, size, other;
    CHECK(MPI_Init(&argc, &argv) == 0);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(size == 2);
    other = 1 - rank;
    prepare(&v, sizeof(struct area), 16, 0);
    struct area *a = (struct area *)v.memory;
    struct ibv_qp *qp = pair(&v, NULL, 8, 8, 0);
    struct side mine = own(&v, qp), theirs;
    MPI_Sendrecv(&mine, sizeof mine, MPI_BYTE, other, 1, &theirs, sizeof theirs, MPI_BYTE, other, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    join(&v, qp, mine.psn, &theirs);
    MPI_Barrier(MPI_COMM_WORLD);
    uint64_t sum = 0, own_words = v.seed + (uint64_t)rank, their_words = v.seed + (uint64_t)other;
    MPI_Request request = MPI_REQUEST_NULL;
    uint64_t part = 0, whole = 0;
    for (long round = 0; round < v.rounds; round++) {
        uint32_t n = (uint32_t)(mix(&own_words) % WORDS + 1), m = (uint32_t)(mix(&their_words) % WORDS + 1);
        for (uint32_t k = 0; k < n; k++) a->out[k] = mix(&own_words);
        struct ibv_sge sge = {.addr = (uintptr_t)a->out, .length = n * 8, .lkey = v.mr->lkey};
        struct ibv_send_wr wr = {.wr_id = (uint64_t)round, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED,
            .wr.rdma = {.remote_addr = theirs.address, .rkey = theirs.rkey}}, *bad;
        CHECK(ibv_post_send(qp, &wr, &bad) == 0);
        CHECK(completion(&v).wr_id == (uint64_t)round);
        long there = round, here = -1;
        MPI_Sendrecv(&there, 1, MPI_LONG, other, 2, &here, 1, MPI_LONG, other, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        CHECK(here == round);
        for (uint32_t k = 0; k < m; k++) CHECK(a->in[k] == mix(&their_words));
        sum = hash(sum, a->in, m * 8);
        /* One reduction is under way while the next round's words are. */
        MPI_Wait(&request, MPI_STATUS_IGNORE);
        sum = hash(sum, &whole, sizeof whole);
        part = own_words;
        MPI_Iallreduce(&part, &whole, 1, MPI_UINT64_T, MPI_BXOR, MPI_COMM_WORLD, &request);
        /* Nobody writes the next words before these have been read. */
        MPI_Barrier(MPI_COMM_WORLD);
    }
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    sum = hash(sum, &whole, sizeof whole);
    uint64_t both = 0;
    MPI_Allreduce(&sum, &both, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    CHECK(ibv_destroy_qp(qp) == 0 && ibv_destroy_cq(v.cq) == 0 && ibv_dereg_mr(v.mr) == 0 && ibv_dealloc_pd(v.pd) == 0);
    CHECK(ibv_close_device(v.context) == 0);
    MPI_Finalize();
    return rank ? 0 : finish(both);
}
