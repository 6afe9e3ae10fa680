/* Asynchronous events that are read late: a shared queue with few receives left, and a queue pair that takes no more of them. Each comes
 * once, is about the right object, and holds back the end of its object until it is acknowledged. See verbs.h. */
#include "verbs.h"
#include <fcntl.h>
#include <pthread.h>
enum { DEPTH = 8, LIMIT = 4, SOON = 5 };
static struct ibv_async_event late;
static volatile int acknowledged;
static void *later(void *arg) {
    (void)arg;
    usleep(3000);
    acknowledged = 1;
    ibv_ack_async_event(&late);
    return NULL;
}
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 64, 0);
    struct ibv_srq_init_attr sattr = {.attr = {.max_wr = DEPTH, .max_sge = 1}};
    struct ibv_srq *srq = ibv_create_srq(v.pd, &sattr);
    CHECK(srq);
    struct ibv_qp *qp = pair(&v, srq, 8, 0, 16);
    uint64_t mine = v.seed + (uint64_t)v.listens, theirs = v.seed + (uint64_t)!v.listens, pauses = mine, sum = 0;
    uint64_t *in = (uint64_t *)v.memory;
    long posted = 0, got = 0;
    connected(&v, qp);
    for (long round = 0; round < v.rounds; round++) {
        for (; posted < got + DEPTH; posted++) {
            struct ibv_sge sge = {.addr = (uintptr_t)&in[posted % DEPTH], .length = 8, .lkey = v.mr->lkey};
            struct ibv_recv_wr wr = {.wr_id = (uint64_t)posted, .sg_list = &sge, .num_sge = 1}, *bad;
            CHECK(ibv_post_srq_recv(srq, &wr, &bad) == 0);
        }
        struct ibv_srq_attr limit = {.srq_limit = LIMIT};
        CHECK(ibv_modify_srq(srq, &limit, IBV_SRQ_LIMIT) == 0);
        char both = 1;
        swap(&v, &both, &both, 1);
        for (int k = 0; k < SOON; k++) {
            uint64_t word = mix(&mine);
            struct ibv_sge sge = {.addr = (uintptr_t)&word, .length = 8};
            struct ibv_send_wr wr = {.wr_id = 1000000000, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_INLINE | IBV_SEND_SIGNALED}, *bad;
            CHECK(ibv_post_send(qp, &wr, &bad) == 0);
        }
        for (int k = 0; k < 2 * SOON; k++) {
            struct ibv_wc wc = completion(&v);
            if (wc.wr_id == 1000000000) continue;
            CHECK(wc.wr_id == (uint64_t)got);
            uint64_t word = in[got++ % DEPTH];
            CHECK(word == mix(&theirs));
            sum += word;
        }
        /* The first event is there. And the second. */
        struct ibv_qp *other = pair(&v, srq, 8, 0, 0);
        struct ibv_qp_attr error = {.qp_state = IBV_QPS_ERR};
        CHECK(ibv_modify_qp(other, &error, IBV_QP_STATE) == 0);
        usleep((unsigned)(mix(&pauses) % 20000));
        struct ibv_async_event first, second;
        CHECK(ibv_get_async_event(v.context, &first) == 0);
        if (mix(&pauses) % 2) usleep((unsigned)(mix(&pauses) % 20000));
        CHECK(ibv_get_async_event(v.context, &second) == 0);
        CHECK(first.event_type == IBV_EVENT_SRQ_LIMIT_REACHED && first.element.srq == srq);
        CHECK(second.event_type == IBV_EVENT_QP_LAST_WQE_REACHED && second.element.qp == other);
        /* There is no other one. */
        int flags = fcntl(v.context->async_fd, F_GETFL);
        struct ibv_async_event none;
        CHECK(fcntl(v.context->async_fd, F_SETFL, flags | O_NONBLOCK) == 0);
        CHECK(ibv_get_async_event(v.context, &none) == -1 && errno == EAGAIN);
        CHECK(fcntl(v.context->async_fd, F_SETFL, flags) == 0);
        ibv_ack_async_event(&first);
        pthread_t thread;
        late = second;
        acknowledged = 0;
        CHECK(pthread_create(&thread, NULL, later, NULL) == 0);
        CHECK(ibv_destroy_qp(other) == 0 && acknowledged);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    /* The acknowledgement of the last message may have been lost: who destroys the queue pair must know that the other end has it. */
    uint64_t other;
    swap(&v, &sum, &other, sizeof sum);
    CHECK(ibv_destroy_qp(qp) == 0 && ibv_destroy_srq(srq) == 0);
    return finish(sum + other);
}
