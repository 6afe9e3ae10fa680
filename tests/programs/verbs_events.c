/* Two threads wait in ibv_get_cq_event, one at each end, for the other end's messages, of which the one that connects sends each back: no
 * event is lost and none comes for nothing. Now and then nothing happens for a while. See verbs.h. */
#include "verbs.h"
static struct verbs v;
static struct ibv_qp *qp;
static uint64_t *in, *out;
static void receive(long number) {
    struct ibv_sge sge = {.addr = (uintptr_t)&in[number % 2], .length = 8, .lkey = v.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = 2, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
}
static void say(long number, uint64_t word) {
    struct ibv_sge sge = {.addr = (uintptr_t)&out[number % 2], .length = 8, .lkey = v.mr->lkey};
    struct ibv_send_wr wr = {.wr_id = 1, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED}, *bad;
    out[number % 2] = word;
    CHECK(ibv_post_send(qp, &wr, &bad) == 0);
}
int main(int argc, char **argv) {
    start(&v, argc, argv, 4096, 64, 1);
    qp = pair(&v, NULL, 8, 8, 0);
    in = (uint64_t *)v.memory;
    out = in + 8;
    uint64_t state = v.seed, here = v.seed, sum = 0;
    long events = 0, got = 0, sent = 0, said = 0;
    CHECK(ibv_req_notify_cq(v.cq, 0) == 0);
    receive(0);
    receive(1);
    connected(&v, qp);
    while (got < v.rounds || sent < v.rounds) {
        /* One at a time. */
        if (v.listens && said == got && said == sent && said < v.rounds) {
            if (said % 50 == 0) usleep(100000);
            say(said++, mix(&here));
        }
        struct ibv_cq *cq;
        void *context;
        CHECK(ibv_get_cq_event(v.channel, &cq, &context) == 0 && cq == v.cq && context == &v);
        ibv_ack_cq_events(cq, 1);
        events++;
        CHECK(ibv_req_notify_cq(cq, 0) == 0);
        struct ibv_wc wc;
        int n;
        while ((n = ibv_poll_cq(cq, 1, &wc)) == 1) {
            CHECK(wc.status == IBV_WC_SUCCESS && (wc.wr_id == 1 || wc.wr_id == 2));
            if (wc.wr_id == 1) { sent++; continue; }
            uint64_t word = in[got % 2];
            CHECK(word == mix(&state));
            sum += word;
            receive(got);
            if (!v.listens) say(got, word);
            got++;
        }
        CHECK(n == 0);
    }
    CHECK(events >= v.rounds / 2);
    /* The acknowledgement of the last message may have been lost: who ends must know that the other end has it. */
    char end = 1;
    swap(&v, &end, &end, 1);
    return finish(sum);
}
