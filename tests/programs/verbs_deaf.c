/* The one that connects sends three messages by each of two queue pairs, for which the other end never posts a receive, and tries three more times
 * only: the first fails with that, the others behind it are flushed. One thread polls, another one waits for the event. Both queue pairs are in
 * error then, and a while later, too: FILE.failed says when that begins. See verbs.h. */
#include "verbs.h"
#include <pthread.h>
struct end { struct verbs *v; struct ibv_comp_channel *channel; struct ibv_cq *cq; struct ibv_qp *qp; };
static void *fails(void *arg) {
    struct end *e = arg;
    struct ibv_sge sge = {.addr = (uintptr_t)e->v->memory, .length = 8, .lkey = e->v->mr->lkey};
    for (uint64_t k = 0; k < 3; k++) {
        struct ibv_send_wr wr = {.wr_id = k, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND}, *bad;
        CHECK(ibv_post_send(e->qp, &wr, &bad) == 0);
    }
    for (uint64_t k = 0; k < 3;) {
        struct ibv_wc wc;
        int n = ibv_poll_cq(e->cq, 1, &wc);
        if (n == 0 && e->channel) {
            struct ibv_cq *cq;
            void *context;
            CHECK(ibv_get_cq_event(e->channel, &cq, &context) == 0 && cq == e->cq);
            ibv_ack_cq_events(cq, 1);
            CHECK(ibv_req_notify_cq(cq, 0) == 0);
        } else if (n == 0) usleep(1000);
        else {
            CHECK(n == 1 && wc.wr_id == k && wc.qp_num == e->qp->qp_num);
            if (wc.status != (k ? IBV_WC_WR_FLUSH_ERR : IBV_WC_RNR_RETRY_EXC_ERR)) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
            CHECK(wc.status == (k ? IBV_WC_WR_FLUSH_ERR : IBV_WC_RNR_RETRY_EXC_ERR));
            k++;
        }
    }
    struct ibv_qp_attr asked;
    struct ibv_qp_init_attr init;
    CHECK(ibv_query_qp(e->qp, &asked, IBV_QP_STATE | IBV_QP_RNR_RETRY, &init) == 0);
    CHECK(asked.qp_state == IBV_QPS_ERR && e->qp->state == IBV_QPS_ERR);
    return NULL;
}
/* It stays so. */
static void stays(struct end *e) {
    struct ibv_wc wc;
    struct ibv_qp_attr asked;
    struct ibv_qp_init_attr init;
    CHECK(ibv_poll_cq(e->cq, 1, &wc) == 0);
    CHECK(ibv_query_qp(e->qp, &asked, IBV_QP_STATE, &init) == 0 && asked.qp_state == IBV_QPS_ERR);
    struct ibv_sge sge = {.addr = (uintptr_t)e->v->memory, .length = 8, .lkey = e->v->mr->lkey};
    struct ibv_send_wr wr = {.wr_id = 9, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND}, *bad;
    CHECK(ibv_post_send(e->qp, &wr, &bad) == 0);
    int n;
    while ((n = ibv_poll_cq(e->cq, 1, &wc)) == 0) usleep(1000);
    CHECK(n == 1 && wc.wr_id == 9 && wc.status == IBV_WC_WR_FLUSH_ERR);
}
int main(int argc, char **argv) {
    struct verbs v = {.rnr_timer = 20, .rnr_finite = 3};
    start(&v, argc, argv, 4096, 8, 0);
    struct end ends[2] = {{.v = &v, .cq = v.cq}, {.v = &v, .channel = ibv_create_comp_channel(v.context)}};
    CHECK(ends[1].channel && (ends[1].cq = ibv_create_cq(v.context, 8, &v, ends[1].channel, 0)));
    CHECK(ibv_req_notify_cq(ends[1].cq, 0) == 0);
    pthread_t threads[2];
    for (int k = 0; k < 2; k++) {
        v.cq = ends[k].cq;
        connected(&v, ends[k].qp = pair(&v, NULL, 8, 8, 0));
    }
    for (int k = 0; k < 2 && !v.listens; k++) CHECK(pthread_create(&threads[k], NULL, fails, &ends[k]) == 0);
    for (int k = 0; k < 2 && !v.listens; k++) CHECK(pthread_join(threads[k], NULL) == 0);
    if (!v.listens) {
        char name[4096];
        CHECK(snprintf(name, sizeof name, "%s.failed", argv[4]) < (int)sizeof name);
        FILE *file = fopen(name, "w");
        CHECK(file && fclose(file) == 0);
        for (long k = 0; k < v.rounds * 100; k++) pace();
        for (int k = 0; k < 2; k++) stays(&ends[k]);
    }
    char end = 1;
    swap(&v, &end, &end, 1);
    return finish(v.seed);
}
