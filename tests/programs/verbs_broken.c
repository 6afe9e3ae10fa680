/* A queue pair that its other end has broken, and of which nothing has been seen here: the end that connects writes by a key that is none, which
 * puts both ends into error. Messages go over another pair for a while; then the end that listens looks for the first time. See verbs.h. */
#include "verbs.h"
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 16, 0);
    uint64_t *cell = (uint64_t *)v.memory, state = v.seed, sum = 0;
    struct ibv_qp *broken = pair(&v, NULL, 4, 4, 0), *qp = pair(&v, NULL, 4, 4, 0);
    struct side there = connected(&v, broken);
    struct ibv_sge in = {.addr = (uintptr_t)cell, .length = 8, .lkey = v.mr->lkey};
    struct ibv_sge out = {.addr = (uintptr_t)(cell + 1), .length = 8, .lkey = v.mr->lkey};
    struct ibv_recv_wr receive = {.wr_id = 1, .sg_list = &in, .num_sge = 1}, *worse;
    struct ibv_send_wr send = {.wr_id = 2, .sg_list = &out, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED}, *bad;
    CHECK(ibv_post_recv(qp, &receive, &worse) == 0);
    connected(&v, qp);
    if (!v.listens) {
        struct ibv_send_wr wr = {.wr_id = 3, .sg_list = &out, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED,
            .wr.rdma = {.remote_addr = there.address, .rkey = there.rkey ^ 0x5500}};
        CHECK(ibv_post_send(broken, &wr, &bad) == 0);
        struct ibv_wc wc;
        int n;
        while ((n = ibv_poll_cq(v.cq, 1, &wc)) == 0) usleep(50);
        CHECK(n == 1 && wc.wr_id == 3 && wc.status == IBV_WC_REM_ACCESS_ERR);
    }
    char both = 1;
    swap(&v, &both, &both, 1);
    for (long round = 0; round < v.rounds; round++) {
        uint64_t what = mix(&state);
        cell[1] = what;
        CHECK(ibv_post_send(qp, &send, &bad) == 0);
        for (int left = 2; left > 0; left--) completion(&v);
        CHECK(cell[0] == what);
        sum += what;
        CHECK(ibv_post_recv(qp, &receive, &worse) == 0);
        /* Both have posted before the next is sent. */
        swap(&v, &both, &both, 1);
    }
    struct ibv_qp_attr asked;
    struct ibv_qp_init_attr init;
    CHECK(ibv_query_qp(broken, &asked, IBV_QP_STATE, &init) == 0 && asked.qp_state == IBV_QPS_ERR);
    send.wr_id = 4;
    CHECK(ibv_post_send(broken, &send, &bad) == 0);
    struct ibv_wc wc;
    int n;
    while ((n = ibv_poll_cq(v.cq, 1, &wc)) == 0) usleep(50);
    CHECK(n == 1 && wc.wr_id == 4 && wc.status == IBV_WC_WR_FLUSH_ERR);
    swap(&v, &both, &both, 1);
    return finish(sum);
}
