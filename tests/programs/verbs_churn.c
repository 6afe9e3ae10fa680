/* Threads that make and destroy queue pairs, queues, channels and regions: in each round a pair of queue pairs that are connected with each other,
 * whose sends complete in one queue that all threads share, and whose receives in one of its own, with events. The shared queue is resized all
 * the while, and polled when all have sent. One more thread talks to the other process. See verbs.h. */
#include "verbs.h"
#include <pthread.h>
/* So many sends have a completion: the others leave no trace in the shared queue. */
enum { THREADS = 3, DEPTH = 8, WORDS = 8, FEW = 2 * THREADS };
static struct verbs v;
static struct ibv_cq *shared;
static volatile int over;
static pthread_barrier_t all_have;
static uint64_t sums[THREADS];

static void *resizes(void *arg) {
    (void)arg;
    for (int k = 0; !over; k++) {
        CHECK(ibv_resize_cq(shared, FEW + 4 * (k % 2)) == 0);
        usleep(500);
    }
    return NULL;
}

static struct ibv_qp *one(struct ibv_cq *out, struct ibv_cq *cq) {
    struct ibv_qp_init_attr attr = {.send_cq = out, .recv_cq = cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp *qp = ibv_create_qp(v.pd, &attr);
    CHECK(qp);
    ready(qp);
    return qp;
}

/* Posts DEPTH sends, of which the last alone has a completion. */
static void sends(struct ibv_qp *qp, uint64_t *out, uint32_t lkey, uint64_t who) {
    struct ibv_sge sges[DEPTH];
    struct ibv_send_wr wrs[DEPTH], *bad;
    for (int k = 0; k < DEPTH; k++) {
        sges[k] = (struct ibv_sge){.addr = (uintptr_t)&out[k * WORDS], .length = WORDS * 8, .lkey = lkey};
        wrs[k] = (struct ibv_send_wr){.wr_id = who, .next = k + 1 < DEPTH ? &wrs[k + 1] : NULL, .sg_list = &sges[k], .num_sge = 1,
            .opcode = IBV_WR_SEND, .send_flags = k + 1 < DEPTH ? 0 : IBV_SEND_SIGNALED};
    }
    CHECK(ibv_post_send(qp, wrs, &bad) == 0);
}

static void receives(struct ibv_qp *qp, uint64_t *in, uint32_t lkey) {
    for (uint64_t k = 0; k < DEPTH; k++) {
        struct ibv_sge sge = {.addr = (uintptr_t)&in[k * WORDS], .length = WORDS * 8, .lkey = lkey};
        struct ibv_recv_wr wr = {.wr_id = k, .sg_list = &sge, .num_sge = 1}, *bad;
        CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
    }
}

/* Waits for DEPTH messages of so many, in order. */
static void takes(struct ibv_comp_channel *channel, struct ibv_cq *cq, int many) {
    for (int got = 0; got < many;) {
        struct ibv_cq *which;
        void *context;
        struct ibv_wc wc;
        int n = ibv_poll_cq(cq, 1, &wc);
        if (n == 0) {
            CHECK(ibv_get_cq_event(channel, &which, &context) == 0 && which == cq && context == channel);
            ibv_ack_cq_events(which, 1);
            CHECK(ibv_req_notify_cq(cq, 0) == 0);
            continue;
        }
        CHECK(n == 1 && wc.status == IBV_WC_SUCCESS && wc.opcode == IBV_WC_RECV);
        got++;
    }
}

static void *churns(void *arg) {
    uint64_t who = (uint64_t)(uintptr_t)arg, state = v.seed * 100 + (uint64_t)v.listens * 10 + who, sum = 0;
    for (long round = 0; round < v.rounds; round++) {
        uint64_t *memory = calloc(4 * DEPTH * WORDS, 8), *in = memory, *out = memory + 2 * DEPTH * WORDS;
        struct ibv_mr *mr = ibv_reg_mr(v.pd, memory, 4 * DEPTH * WORDS * 8, IBV_ACCESS_LOCAL_WRITE);
        struct ibv_comp_channel *channel = ibv_create_comp_channel(v.context);
        CHECK(mr && channel);
        struct ibv_cq *cq = ibv_create_cq(v.context, 2 * DEPTH, channel, channel, 0);
        CHECK(cq && ibv_req_notify_cq(cq, 0) == 0);
        struct ibv_qp *qps[2] = {one(shared, cq), one(shared, cq)};
        struct side sides[2] = {own(&v, qps[0]), own(&v, qps[1])};
        for (int k = 0; k < 2; k++) receives(qps[k], in + k * DEPTH * WORDS, mr->lkey);
        for (int k = 0; k < 2; k++) join(&v, qps[k], sides[k].psn, &sides[!k]);
        for (int k = 0; k < 2 * DEPTH * WORDS; k++) out[k] = mix(&state);
        for (int k = 0; k < 2; k++) sends(qps[k], out + k * DEPTH * WORDS, mr->lkey, who);
        takes(channel, cq, 2 * DEPTH);
        for (int k = 0; k < 2 * DEPTH * WORDS; k++) {
            CHECK(in[(k + DEPTH * WORDS) % (2 * DEPTH * WORDS)] == out[k]);
            sum += out[k];
        }
        /* Nothing of this was asked for: the queue is as full as it gets. */
        if (pthread_barrier_wait(&all_have) == PTHREAD_BARRIER_SERIAL_THREAD)
            for (int k = 0; k < FEW;) {
                struct ibv_wc wc;
                int n = ibv_poll_cq(shared, 1, &wc);
                if (n == 1 && wc.status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
                CHECK(n == 0 || (n == 1 && wc.status == IBV_WC_SUCCESS && wc.wr_id < THREADS));
                if (n == 0) usleep(50);
                k += n;
            }
        pthread_barrier_wait(&all_have);
        for (int k = 0; k < 2; k++) CHECK(ibv_destroy_qp(qps[k]) == 0);
        CHECK(ibv_destroy_cq(cq) == 0 && ibv_destroy_comp_channel(channel) == 0 && ibv_dereg_mr(mr) == 0);
        free(memory);
    }
    sums[who] = sum;
    return NULL;
}

int main(int argc, char **argv) {
    start(&v, argc, argv, 4 * DEPTH * WORDS * 8, 64, 1);
    CHECK((shared = ibv_create_cq(v.context, FEW, NULL, NULL, 0)));
    pthread_t threads[THREADS], other_one;
    CHECK(pthread_barrier_init(&all_have, NULL, THREADS) == 0 && pthread_create(&other_one, NULL, resizes, NULL) == 0);
    for (uintptr_t k = 0; k < THREADS; k++) CHECK(pthread_create(&threads[k], NULL, churns, (void *)k) == 0);
    /* To the other process and back. */
    struct ibv_cq *cq = ibv_create_cq(v.context, DEPTH, v.channel, v.channel, 0);
    CHECK(cq && ibv_req_notify_cq(cq, 0) == 0);
    struct ibv_qp *qp = one(v.cq, cq);
    uint64_t *in = (uint64_t *)v.memory, *out = in + 2 * DEPTH * WORDS, sum = 0;
    uint64_t mine = v.seed * 7 + (uint64_t)v.listens, theirs = v.seed * 7 + (uint64_t)!v.listens;
    connected(&v, qp);
    for (long round = 0; round < v.rounds; round++) {
        char both = 1;
        receives(qp, in, v.mr->lkey);
        swap(&v, &both, &both, 1);
        for (int k = 0; k < DEPTH * WORDS; k++) out[k] = mix(&mine);
        sends(qp, out, v.mr->lkey, THREADS);
        takes(v.channel, cq, DEPTH);
        for (int k = 0; k < DEPTH * WORDS; k++) {
            uint64_t word = mix(&theirs);
            CHECK(in[k] == word);
            sum += word + out[k];
        }
        CHECK(completion(&v).wr_id == THREADS);
    }
    for (int k = 0; k < THREADS; k++) CHECK(pthread_join(threads[k], NULL) == 0);
    over = 1;
    CHECK(pthread_join(other_one, NULL) == 0);
    uint64_t own = sums[0] + sums[1] + sums[2], other;
    swap(&v, &own, &other, sizeof own);
    return finish(sum + own + other);
}
