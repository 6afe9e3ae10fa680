/* What has no completion ends no request for an event: when both ends have armed their queues, each sends a message without a completion,
 * and gets one message of the same kind; then there is one event, with one completion. It waits in ibv_get_cq_event, or in poll(2) before.
 * An event without a completion is allowed where it would have waited long, which is for at least a tenth of a second.
 * In a hundred rounds (`apart`) one end sends only when the other, which has sent, has heard of that by TCP: who sends waits in poll(2) for what
 * cannot come yet, and if that says that an event is there, ibv_get_cq_event comes back. See verbs.h. */
#include "verbs.h"
#include <fcntl.h>
#include <poll.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int has_event(struct verbs *v, int most) {
    struct pollfd p = {.fd = v->channel->fd, .events = POLLIN};
    return poll(&p, 1, most) == 1;
}

/* One event, acknowledged. */
static void take_event(struct verbs *v, int waits) {
    struct ibv_cq *cq;
    void *context;
    while (ibv_get_cq_event(v->channel, &cq, &context)) {
        CHECK(!waits && errno == EAGAIN);
        while (!has_event(v, -1)) CHECK(errno == EINTR);
    }
    CHECK(cq == v->cq);
    ibv_ack_cq_events(cq, 1);
}
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 64, 1);
    struct ibv_qp *qp = pair(&v, NULL, 8, 8, 16);
    uint64_t *in = (uint64_t *)v.memory, mine = v.seed + (uint64_t)v.listens, theirs = v.seed + (uint64_t)!v.listens, sum = 0;
    /* An event may be left from the round before. */
    int flags = fcntl(v.channel->fd, F_GETFL), spare = 0;
    for (long k = 0; k < 2; k++) {
        struct ibv_sge sge = {.addr = (uintptr_t)&in[k], .length = 8, .lkey = v.mr->lkey};
        struct ibv_recv_wr wr = {.wr_id = (uint64_t)k, .sg_list = &sge, .num_sge = 1}, *bad;
        CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
    }
    connected(&v, qp);
    for (long round = 0; round < v.rounds; round++) {
        /* One message in four has a completion: then nobody waits for an event. */
        int quiet = round % 4 != 3, waits = round % 2, more = 0;
        if (quiet) {
            CHECK(fcntl(v.channel->fd, F_SETFL, waits ? flags : flags | O_NONBLOCK) == 0);
            CHECK(ibv_req_notify_cq(v.cq, 0) == 0);
        }
        char armed = 1;
        swap(&v, &armed, &armed, 1);
        uint64_t word = mix(&mine);
        struct ibv_sge out = {.addr = (uintptr_t)&word, .length = 8};
        struct ibv_send_wr wr = {.wr_id = 99, .sg_list = &out, .num_sge = 1, .opcode = IBV_WR_SEND,
            .send_flags = IBV_SEND_INLINE | (quiet ? 0 : IBV_SEND_SIGNALED)}, *bad;
        int apart = round % 20 == 1 && round < 2000, first = apart && round / 20 % 2 == v.listens;
        char heard = 1;
        if (apart && !first) all(v.tcp, &heard, 1, 0);
        CHECK(ibv_post_send(qp, &wr, &bad) == 0);
        if (first) {
            /* This channel blocks. */
            if (has_event(&v, 20)) take_event(&v, 1);
            all(v.tcp, &heard, 1, 1);
        }
        double since = now();
        if (quiet && !first) take_event(&v, waits);
        for (int left = quiet ? 1 : 2; left > 0; left--) {
            struct ibv_wc wc;
            int n;
            while ((n = ibv_poll_cq(v.cq, 1, &wc)) == 0) {
                if (!quiet) { usleep(50); continue; }
                CHECK(first || spare || (waits && now() - since >= 0.1));
                if (!first) spare = 0;
                CHECK(ibv_req_notify_cq(v.cq, 0) == 0);
                /* If it has come since the last poll, there may be an event, too. */
                if ((more = n = ibv_poll_cq(v.cq, 1, &wc)) != 0) break;
                since = now();
                take_event(&v, waits);
            }
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
        if (quiet) spare = spare || first || more;
    }
    uint64_t other;
    swap(&v, &sum, &other, sizeof sum);
    return finish(sum + other);
}
