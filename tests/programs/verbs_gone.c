/* Connections of which one end alone is left. The end that connects destroys its queue pair of some, and has those of others begin anew and
 * connects them with each other. The one that listens keeps all of its own, with a receive posted, while messages go over the
 * rest; at the end it sees that those are connected still, that nothing has come there, and that nobody answers who is destroyed.
 * See verbs.h. */
#include "verbs.h"
#define PAIRS 12
enum { STAYS, GONE, ELSEWHERE };

static struct ibv_qp *qp[PAIRS];
/* Completions that have come, of messages and receives, and those that must have: the other end may be one message ahead. */
static int came[PAIRS], due[PAIRS];
static uint64_t *cell(struct verbs *v, int k) { return (uint64_t *)v->memory + 2 * k; }

static void receive(struct verbs *v, int k) {
    struct ibv_sge to = {.addr = (uintptr_t)cell(v, k), .length = 8, .lkey = v->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = (uint64_t)k, .sg_list = &to, .num_sge = 1}, *bad;
    CHECK(ibv_post_recv(qp[k], &wr, &bad) == 0);
}

static void give(struct verbs *v, int k, uint64_t what) {
    cell(v, k)[1] = what;
    struct ibv_sge from = {.addr = (uintptr_t)(cell(v, k) + 1), .length = 8, .lkey = v->mr->lkey};
    struct ibv_send_wr wr = {.wr_id = (uint64_t)k, .sg_list = &from, .num_sge = 1, .opcode = IBV_WR_SEND,
        .send_flags = IBV_SEND_SIGNALED}, *bad;
    CHECK(ibv_post_send(qp[k], &wr, &bad) == 0);
}

static enum ibv_qp_state state_of(struct ibv_qp *of) {
    struct ibv_qp_attr a;
    struct ibv_qp_init_attr i;
    CHECK(ibv_query_qp(of, &a, IBV_QP_STATE, &i) == 0);
    return a.qp_state;
}

/* A message each way between two queue pairs, or one and the other end's: what came. */
static uint64_t exchange(struct verbs *v, int one, int other, uint64_t what) {
    int ends = one == other ? 1 : 2;
    give(v, one, what);
    if (ends == 2) give(v, other, what);
    due[one] += 2;
    if (ends == 2) due[other] += 2;
    while (came[one] < due[one] || came[other] < due[other]) came[completion(v).wr_id]++;
    uint64_t got = *cell(v, one);
    CHECK(ends == 1 || *cell(v, other) == what);
    receive(v, one);
    if (ends == 2) receive(v, other);
    return got;
}

int main(int argc, char **argv) {
    /* Of seven there is no end on soft-RoCE (rxe_completer in drivers/infiniband/sw/rxe/rxe_comp.c). */
    struct verbs v = {.retries = 6};
    start(&v, argc, argv, 4096, 64, 0);
    uint64_t state = v.seed, sum = 0;
    int first = -1;
    for (int k = 0; k < PAIRS; k++) {
        qp[k] = pair(&v, NULL, 4, 4, 0);
        receive(&v, k);
        connected(&v, qp[k]);
    }
    for (int k = 0; k < PAIRS; k++) {
        uint64_t what = mix(&state);
        CHECK(exchange(&v, k, k, what) == what);
        /* The acknowledgement of the last message may have been lost: who destroys the queue pair must know that the other end has it. */
        char done = 1;
        swap(&v, &done, &done, 1);
        if (v.listens || k % 3 == STAYS) continue;
        if (k % 3 == GONE) {
            CHECK(ibv_destroy_qp(qp[k]) == 0);
            continue;
        }
        struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
        CHECK(ibv_modify_qp(qp[k], &reset, IBV_QP_STATE) == 0);
        ready(qp[k]);
        receive(&v, k);
        if (first < 0) { first = k; continue; }
        struct side a = own(&v, qp[first]), b = own(&v, qp[k]);
        join(&v, qp[first], a.psn, &b);
        join(&v, qp[k], b.psn, &a);
        first = -1;
    }
    for (long round = 0; round < v.rounds; round++) {
        uint64_t what = mix(&state);
        int k = (int)(what % (PAIRS / 3)) * 3;
        uint64_t came = exchange(&v, k, k, what);
        CHECK(came == what);
        sum += came;
        /* 2 with 5, 8 with 11. */
        if (!v.listens && what >> 60 == 0) {
            int one = what >> 59 & 1 ? 2 : 8;
            CHECK(exchange(&v, one, one + 3, what) == what);
        }
    }
    for (int k = 0; v.listens && k < PAIRS; k++) {
        struct ibv_wc wc;
        CHECK(state_of(qp[k]) == IBV_QPS_RTS && ibv_poll_cq(v.cq, 1, &wc) == 0);
    }
    for (int k = 0; v.listens && k < PAIRS; k++) if (k % 3 == GONE) give(&v, k, 1);
    /* Of each the message, then the receive. */
    int failed[PAIRS] = {0};
    for (int left = v.listens ? 2 * PAIRS / 3 : 0; left > 0; left--) {
        struct ibv_wc wc;
        int n;
        while ((n = ibv_poll_cq(v.cq, 1, &wc)) == 0) usleep(50);
        CHECK(n == 1 && wc.wr_id < PAIRS && wc.wr_id % 3 == GONE && wc.qp_num == qp[wc.wr_id]->qp_num);
        CHECK(wc.status == (failed[wc.wr_id]++ ? IBV_WC_WR_FLUSH_ERR : IBV_WC_RETRY_EXC_ERR));
        CHECK(state_of(qp[wc.wr_id]) == IBV_QPS_ERR);
    }
    char both = 1;
    swap(&v, &both, &both, 1);
    return finish(sum);
}
