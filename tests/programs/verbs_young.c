/* A queue pair that begins anew waits in INIT for a while, with receives, when its other end is connected and has sent already: a message and a
 * write, which arrive as soon as somebody is there. The two take turns. See verbs.h. */
#include "verbs.h"
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 64, 0);
    struct ibv_qp *qp = pair(&v, NULL, 8, 8, 16);
    struct side mine = own(&v, qp), theirs = connected(&v, qp);
    volatile uint64_t *in = (uint64_t *)v.memory;
    uint64_t state = v.seed, pauses = v.seed + (uint64_t)v.listens, sum = 0;
    for (long round = 0; round < v.rounds; round++) {
        struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
        char both = 1;
        CHECK(ibv_modify_qp(qp, &reset, IBV_QP_STATE) == 0);
        ready(qp);
        struct ibv_sge to = {.addr = (uintptr_t)in, .length = 8, .lkey = v.mr->lkey};
        struct ibv_recv_wr rr = {.wr_id = 1, .sg_list = &to, .num_sge = 1}, *worse;
        CHECK(ibv_post_recv(qp, &rr, &worse) == 0);
        swap(&v, &both, &both, 1);
        uint64_t first = mix(&state), second = mix(&state);
        if (v.listens == (int)(round % 2)) {
            join(&v, qp, mine.psn, &theirs);
            struct ibv_sge sges[2] = {{.addr = (uintptr_t)&first, .length = 8}, {.addr = (uintptr_t)&second, .length = 8}};
            struct ibv_send_wr write = {.wr_id = 3, .sg_list = &sges[1], .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                .send_flags = IBV_SEND_INLINE | IBV_SEND_SIGNALED, .wr.rdma = {.remote_addr = theirs.address + 8, .rkey = theirs.rkey}},
                wr = {.wr_id = 2, .sg_list = &sges[0], .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_INLINE, .next = &write}, *bad;
            /* The write first, now and then. */
            if (first % 2) write.next = &wr, wr.next = NULL, write.send_flags = IBV_SEND_INLINE, wr.send_flags |= IBV_SEND_SIGNALED;
            CHECK(ibv_post_send(qp, first % 2 ? &write : &wr, &bad) == 0);
            struct ibv_wc wc = completion(&v);
            CHECK(wc.wr_id == (first % 2 ? 2 : 3));
        } else {
            usleep((unsigned)(mix(&pauses) % 100000));
            join(&v, qp, mine.psn, &theirs);
            struct ibv_wc wc = completion(&v);
            CHECK(wc.wr_id == 1 && wc.opcode == IBV_WC_RECV);
            while (in[1] != second) usleep(50);
            CHECK(in[0] == first);
        }
        sum += first ^ second;
        swap(&v, &both, &both, 1);
    }
    return finish(sum);
}
