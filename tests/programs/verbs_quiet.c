/* What has no completion ends no request for an event: when both ends have armed their queues, each sends a message without a completion,
 * and gets one message of the same kind; then there is one event, with one completion. It waits in ibv_get_cq_event, or in poll(2) before.
 * See verbs.h. */
#include "verbs.h"
#include <fcntl.h>
#include <poll.h>
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 64, 1);
    struct ibv_qp *qp = pair(&v, NULL, 8, 8, 16);
    uint64_t *in = (uint64_t *)v.memory, mine = v.seed + (uint64_t)v.listens, theirs = v.seed + (uint64_t)!v.listens, sum = 0;
    int flags = fcntl(v.channel->fd, F_GETFL);
    for (long k = 0; k < 2; k++) {
        struct ibv_sge sge = {.addr = (uintptr_t)&in[k], .length = 8, .lkey = v.mr->lkey};
        struct ibv_recv_wr wr = {.wr_id = (uint64_t)k, .sg_list = &sge, .num_sge = 1}, *bad;
        CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
    }
    connected(&v, qp);
    for (long round = 0; round < v.rounds; round++) {
        /* One message in four has a completion: then nobody waits for an event. */
        int quiet = round % 4 != 3;
        if (quiet) CHECK(ibv_req_notify_cq(v.cq, 0) == 0);
        char armed = 1;
        swap(&v, &armed, &armed, 1);
        uint64_t word = mix(&mine);
        struct ibv_sge out = {.addr = (uintptr_t)&word, .length = 8};
        struct ibv_send_wr wr = {.wr_id = 99, .sg_list = &out, .num_sge = 1, .opcode = IBV_WR_SEND,
            .send_flags = IBV_SEND_INLINE | (quiet ? 0 : IBV_SEND_SIGNALED)}, *bad;
        CHECK(ibv_post_send(qp, &wr, &bad) == 0);
        if (quiet) {
            int waits = round % 2;
            CHECK(fcntl(v.channel->fd, F_SETFL, waits ? flags : flags | O_NONBLOCK) == 0);
            struct ibv_cq *cq;
            void *context;
            while (ibv_get_cq_event(v.channel, &cq, &context)) {
                struct pollfd p = {.fd = v.channel->fd, .events = POLLIN};
                CHECK(!waits && errno == EAGAIN && poll(&p, 1, -1) == 1);
            }
            CHECK(cq == v.cq);
            ibv_ack_cq_events(cq, 1);
        }
        for (int left = quiet ? 1 : 2; left > 0; left--) {
            struct ibv_wc wc;
            int n;
            while ((n = ibv_poll_cq(v.cq, 1, &wc)) == 0 && !quiet) usleep(50);
            CHECK(n == 1 && wc.status == IBV_WC_SUCCESS);
            if (!quiet && wc.wr_id == 99) continue;
            CHECK(wc.opcode == IBV_WC_RECV && wc.wr_id == (uint64_t)round % 2);
            uint64_t word = in[wc.wr_id];
            CHECK(word == mix(&theirs));
            sum += word;
            struct ibv_sge sge = {.addr = (uintptr_t)&in[wc.wr_id], .length = 8, .lkey = v.mr->lkey};
            struct ibv_recv_wr rr = {.wr_id = wc.wr_id, .sg_list = &sge, .num_sge = 1};
            struct ibv_recv_wr *worse;
            CHECK(ibv_post_recv(qp, &rr, &worse) == 0);
        }
    }
    uint64_t other;
    swap(&v, &sum, &other, sizeof sum);
    return finish(sum + other);
}
