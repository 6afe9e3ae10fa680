/* Connections by librdmacm: one that lasts, by ids that wait themselves, and others that come and go, by events, each with private data both
 * ways, a message or two, and an end that either side begins; always to the address that was told first. At the end the lasting one is
 * taken down, and the other end hears of it. See verbs.h. */
#include <rdma/rdma_cma.h>
#include "verbs.h"
enum { WORDS = 64 };
struct line { struct rdma_cm_id *id; struct ibv_mr *mr; uint64_t in[WORDS], out[WORDS]; };

static void queues(struct rdma_cm_id *id) {
    struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC, .sq_sig_all = 1,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
    CHECK(rdma_create_qp(id, NULL, &attr) == 0);
}

static struct line *line(struct rdma_cm_id *id) {
    struct line *l = calloc(1, sizeof *l);
    CHECK(l && (l->mr = ibv_reg_mr(id->pd, l, sizeof *l, IBV_ACCESS_LOCAL_WRITE)));
    l->id = id;
    return l;
}

static struct ibv_wc done(struct ibv_cq *cq) {
    struct ibv_wc wc;
    int n;
    while ((n = ibv_poll_cq(cq, 1, &wc)) == 0) usleep(50);
    CHECK(n == 1 && wc.status == IBV_WC_SUCCESS);
    return wc;
}

/* A message both ways, of random words that the other end knows as well. */
static uint64_t talk(struct verbs *v, struct line *l, uint64_t *common) {
    uint64_t seeds[2] = {mix(common), mix(common)}, mine = seeds[v->listens], theirs = seeds[!v->listens];
    uint32_t n = (uint32_t)(mix(common) % WORDS + 1);
    for (uint32_t k = 0; k < n; k++) l->out[k] = mix(&mine);
    struct ibv_sge in = {.addr = (uintptr_t)l->in, .length = sizeof l->in, .lkey = l->mr->lkey};
    struct ibv_sge out = {.addr = (uintptr_t)l->out, .length = n * 8, .lkey = l->mr->lkey};
    struct ibv_recv_wr rr = {.wr_id = 1, .sg_list = &in, .num_sge = 1}, *worse;
    struct ibv_send_wr sr = {.wr_id = 2, .sg_list = &out, .num_sge = 1, .opcode = IBV_WR_SEND}, *bad;
    CHECK(ibv_post_recv(l->id->qp, &rr, &worse) == 0);
    char both = 1;
    swap(v, &both, &both, 1);
    CHECK(ibv_post_send(l->id->qp, &sr, &bad) == 0);
    CHECK(done(l->id->send_cq).wr_id == 2);
    struct ibv_wc wc = done(l->id->recv_cq);
    CHECK(wc.wr_id == 1 && wc.byte_len == n * 8);
    for (uint32_t k = 0; k < n; k++) CHECK(l->in[k] == mix(&theirs));
    return hash(0, l->in, n * 8) ^ hash(0, l->out, n * 8);
}

static void over(struct line *l) {
    struct rdma_cm_id *id = l->id;
    rdma_destroy_qp(id);
    CHECK(ibv_dereg_mr(l->mr) == 0 && rdma_destroy_id(id) == 0);
    free(l);
}

/* The next event, which is this one; with the words that came with it. */
static struct rdma_cm_id *event(struct rdma_event_channel *channel, enum rdma_cm_event_type what, uint64_t *words) {
    struct rdma_cm_event *e;
    CHECK(rdma_get_cm_event(channel, &e) == 0);
    if (e->event != what) fprintf(stderr, "%s, status %d, instead of %s\n", rdma_event_str(e->event), e->status, rdma_event_str(what));
    CHECK(e->event == what && e->status == 0);
    if (words) {
        CHECK(e->param.conn.private_data_len >= 8);
        memcpy(words, e->param.conn.private_data, 8);
    }
    struct rdma_cm_id *id = e->id;
    CHECK(rdma_ack_cm_event(e) == 0);
    return id;
}

/* Events up to this one of this id; that a wait is over may come before. */
static void until(struct rdma_event_channel *channel, struct rdma_cm_id *id, enum rdma_cm_event_type what) {
    for (int there = 0; !there;) {
        struct rdma_cm_event *e;
        CHECK(rdma_get_cm_event(channel, &e) == 0);
        there = e->id == id && e->event == what;
        if (!there && e->event != RDMA_CM_EVENT_TIMEWAIT_EXIT) fprintf(stderr, "%s\n", rdma_event_str(e->event));
        CHECK(there || e->event == RDMA_CM_EVENT_TIMEWAIT_EXIT);
        CHECK(rdma_ack_cm_event(e) == 0);
    }
}

static struct rdma_cm_id *listener(struct rdma_event_channel *channel, const struct sockaddr_in *own) {
    struct rdma_cm_id *id;
    struct sockaddr_in at = *own;
    at.sin_port = 0;
    CHECK(rdma_create_id(channel, &id, NULL, RDMA_PS_TCP) == 0);
    CHECK(rdma_bind_addr(id, (struct sockaddr *)&at) == 0 && rdma_listen(id, 4) == 0);
    return id;
}

int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 4, 0);
    struct sockaddr_in own, peer;
    socklen_t length = sizeof own;
    CHECK(getsockname(v.tcp, (struct sockaddr *)&own, &length) == 0 && getpeername(v.tcp, (struct sockaddr *)&peer, &length) == 0);
    struct rdma_event_channel *channel = rdma_create_event_channel();
    CHECK(channel);
    struct rdma_cm_id *waits = NULL, *listens = NULL, *id;
    struct rdma_conn_param param = {.responder_resources = 1, .initiator_depth = 1, .retry_count = 7, .rnr_retry_count = 7};
    uint16_t ports[2] = {0}, theirs[2];
    if (v.listens) {
        listens = listener(channel, &own);
        waits = listener(NULL, &own);
        ports[0] = rdma_get_src_port(listens);
        ports[1] = rdma_get_src_port(waits);
    }
    swap(&v, ports, theirs, sizeof ports);
    /* The one that lasts. */
    if (v.listens) {
        CHECK(rdma_get_request(waits, &id) == 0);
        queues(id);
        CHECK(rdma_accept(id, &param) == 0);
    } else {
        CHECK(rdma_create_id(NULL, &id, NULL, RDMA_PS_TCP) == 0);
        peer.sin_port = theirs[1];
        CHECK(rdma_resolve_addr(id, NULL, (struct sockaddr *)&peer, 5000) == 0 && rdma_resolve_route(id, 5000) == 0);
        queues(id);
        CHECK(rdma_connect(id, &param) == 0);
    }
    struct line *lasting = line(id), *other = NULL;
    uint64_t common = v.seed, sum = 0;
    for (long round = 0; round < v.rounds; round++) {
        unsigned action = mix(&common) % 16;
        if (!other && action == 0) {
            uint64_t words[2] = {mix(&common), mix(&common)}, came;
            param.private_data = &words[v.listens];
            param.private_data_len = 8;
            if (v.listens) {
                id = event(channel, RDMA_CM_EVENT_CONNECT_REQUEST, &came);
                queues(id);
                CHECK(rdma_accept(id, &param) == 0);
                CHECK(event(channel, RDMA_CM_EVENT_ESTABLISHED, NULL) == id);
            } else {
                CHECK(rdma_create_id(channel, &id, &v, RDMA_PS_TCP) == 0);
                peer.sin_port = theirs[0];
                CHECK(rdma_resolve_addr(id, NULL, (struct sockaddr *)&peer, 5000) == 0);
                CHECK(event(channel, RDMA_CM_EVENT_ADDR_RESOLVED, NULL) == id && id->verbs && rdma_resolve_route(id, 5000) == 0);
                CHECK(event(channel, RDMA_CM_EVENT_ROUTE_RESOLVED, NULL) == id && id->context == &v);
                queues(id);
                CHECK(rdma_connect(id, &param) == 0);
                CHECK(event(channel, RDMA_CM_EVENT_ESTABLISHED, &came) == id);
            }
            CHECK(came == words[!v.listens]);
            sum = hash(sum, words, sizeof words);
            other = line(id);
        } else if (other && action == 1) {
            int begins = mix(&common) % 2 == (uint64_t)v.listens;
            if (begins) CHECK(rdma_disconnect(other->id) == 0);
            until(channel, other->id, RDMA_CM_EVENT_DISCONNECTED);
            if (!begins) CHECK(rdma_disconnect(other->id) == 0);
            over(other);
            other = NULL;
        } else {
            sum = hash(sum ^ talk(&v, other && action % 2 ? other : lasting, &common), &round, sizeof round);
        }
        pace();
    }
    if (!v.listens) CHECK(rdma_disconnect(lasting->id) == 0);
    if (v.listens) until(lasting->id->channel, lasting->id, RDMA_CM_EVENT_DISCONNECTED);
    over(lasting);
    char end = 1;
    swap(&v, &end, &end, 1);
    return finish(sum);
}
