/* Two threads of each end post messages to one queue pair, each of them built piece by piece (ibv_wr_start to ibv_wr_complete), one to three at once:
 * those of a thread come in its order, whole, and each once. Now and then a thread gives up, or wants more than the queue takes: then none is posted.
 * See verbs.h. */
#include "verbs.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
enum { THREADS = 2, SENDS = 12, RECEIVES = 32, INLINE = 32 };
struct message { uint64_t from, number, word; };
struct one { uint64_t from; long rounds, sent; atomic_long done; };
static struct verbs v;
static struct ibv_qp_ex *x;
static struct one ends[THREADS];

static struct message made(uint64_t end, uint64_t from, uint64_t number) {
    uint64_t state = v.seed + end * 7919 + from * 104729 + number;
    return (struct message){from, number, mix(&state)};
}

static void *sends(void *arg) {
    struct one *me = arg;
    uint64_t pauses = v.seed + me->from;
    while (me->sent < me->rounds) {
        long batch = 1 + (long)(mix(&pauses) % 3), kind = (long)(mix(&pauses) % 16);
        if (batch > me->rounds - me->sent) batch = me->rounds - me->sent;
        /* Half of the places are this thread's. */
        if (me->sent + batch - me->done > SENDS / THREADS) { usleep(20); continue; }
        ibv_wr_start(x);
        for (long k = 0; k < batch; k++) {
            struct message m = made((uint64_t)v.listens, me->from, (uint64_t)(me->sent + k));
            x->wr_id = me->from;
            x->wr_flags = IBV_SEND_SIGNALED;
            ibv_wr_send(x);
            if (kind < 4) sched_yield();
            ibv_wr_set_inline_data(x, &m, sizeof m);
        }
        if (kind == 0) {
            ibv_wr_abort(x);
        } else if (kind == 1) {
            /* Longer than what may be inline: the others with it are not posted either. */
            static char much[INLINE * 64];
            x->wr_id = 99;
            ibv_wr_send(x);
            ibv_wr_set_inline_data(x, much, sizeof much);
            CHECK(ibv_wr_complete(x) != 0);
        } else if (kind == 2) {
            for (int k = 0; k < 2 * SENDS; k++) { x->wr_id = 99; ibv_wr_send(x); }
            CHECK(ibv_wr_complete(x) != 0);
        } else {
            CHECK(ibv_wr_complete(x) == 0);
            me->sent += batch;
        }
    }
    return NULL;
}

static void receive(uint64_t slot) {
    struct ibv_sge sge = {.addr = (uintptr_t)v.memory + slot * sizeof(struct message), .length = sizeof(struct message), .lkey = v.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = 100 + slot, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(ibv_post_recv(&x->qp_base, &wr, &bad) == 0);
}

int main(int argc, char **argv) {
    start(&v, argc, argv, RECEIVES * sizeof(struct message), SENDS + RECEIVES, 0);
    struct ibv_qp_init_attr_ex attr = {.send_cq = v.cq, .recv_cq = v.cq, .qp_type = IBV_QPT_RC, .pd = v.pd,
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .send_ops_flags = IBV_QP_EX_WITH_SEND,
        .cap = {.max_send_wr = SENDS, .max_recv_wr = RECEIVES, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = INLINE}};
    struct ibv_qp *qp = ibv_create_qp_ex(v.context, &attr);
    CHECK(qp && (x = ibv_qp_to_qp_ex(qp)));
    ready(qp);
    for (uint64_t k = 0; k < RECEIVES; k++) receive(k);
    connected(&v, qp);
    pthread_t threads[THREADS];
    for (int k = 0; k < THREADS; k++) {
        ends[k].from = (uint64_t)k;
        ends[k].rounds = v.rounds;
        CHECK(pthread_create(&threads[k], NULL, sends, &ends[k]) == 0);
    }
    uint64_t sum = 0, next[THREADS] = {0};
    for (long done = 0, came = 0; done < THREADS * v.rounds || came < THREADS * v.rounds;) {
        struct ibv_wc wc = completion(&v);
        if (wc.wr_id < THREADS) {
            ends[wc.wr_id].done++;
            done++;
            continue;
        }
        CHECK(wc.wr_id >= 100 && wc.byte_len == sizeof(struct message));
        struct message *m = (struct message *)v.memory + (wc.wr_id - 100);
        CHECK(m->from < THREADS && m->number == next[m->from]);
        struct message is = made((uint64_t)!v.listens, m->from, next[m->from]++);
        CHECK(memcmp(m, &is, sizeof is) == 0);
        sum += m->word;
        came++;
        receive(wc.wr_id - 100);
    }
    for (int k = 0; k < THREADS; k++) CHECK(pthread_join(threads[k], NULL) == 0);
    uint64_t other;
    swap(&v, &sum, &other, sizeof sum);
    return finish(sum + other);
}
