/* What the verbs programs share: two processes, `PROGRAM ROUNDS SEED listen|connect FILE`, on one machine or two, each with a queue
 * pair that is connected with the other's; and a TCP connection, by which they have found each other. The one that listens writes its
 * address (ADDRESS, or 127.0.0.1) and port into FILE. DEVICE (rxe0) and GID (1) name the port; GLOBAL: by that also where there are LIDs.
 * Or more than two, `PROGRAM ROUNDS SEED RANK FILE`, each with a TCP connection to each other. */
#ifndef VERBS_H
#define VERBS_H
#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <sys/socket.h>
#include "check.h"

struct side { union ibv_gid gid; uint64_t address; uint32_t qpn, psn, rkey, lid; };
struct verbs {
    int listens, tcp, global;
    long rounds;
    uint64_t seed;
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_mr *mr;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_port_attr port;
    int gid_index;
    /* 0: tries for ever; and 0.01 ms. */
    uint8_t rnr_finite, rnr_timer, retries;
    char *memory;
    size_t size;
};

static inline void all(int s, void *bytes, size_t n, int sends) {
    for (char *at = bytes; n > 0;) {
        ssize_t done = sends ? send(s, at, n, MSG_NOSIGNAL) : recv(s, at, n, 0);
        CHECK(done > 0);
        at += done;
        n -= (size_t)done;
    }
}

/* Each gives the other n bytes. */
static inline void swap(struct verbs *v, void *mine, void *theirs, size_t n) {
    all(v->tcp, mine, n, 1);
    all(v->tcp, theirs, n, 0);
}

static inline int meet(int listens, const char *name) {
    int s = socket(AF_INET, SOCK_STREAM, 0), port;
    const char *own = getenv("ADDRESS");
    char address[64] = "127.0.0.1", new[4096];
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t length = sizeof at;
    if (own) CHECK(snprintf(address, sizeof address, "%s", own) < (int)sizeof address);
    if (!listens) {
        FILE *file;
        while (!(file = fopen(name, "r"))) pace();
        CHECK(fscanf(file, "%63s %d", address, &port) == 2 && fclose(file) == 0);
        at.sin_addr.s_addr = inet_addr(address);
        at.sin_port = htons((uint16_t)port);
        CHECK(connect(s, (struct sockaddr *)&at, sizeof at) == 0);
        return s;
    }
    at.sin_addr.s_addr = inet_addr(address);
    CHECK(bind(s, (struct sockaddr *)&at, sizeof at) == 0 && listen(s, 1) == 0);
    CHECK(getsockname(s, (struct sockaddr *)&at, &length) == 0);
    CHECK(snprintf(new, sizeof new, "%s.new", name) < (int)sizeof new);
    FILE *file = fopen(new, "w");
    CHECK(file && fprintf(file, "%s %d\n", address, ntohs(at.sin_port)) > 0 && fclose(file) == 0 && rename(new, name) == 0);
    int listener = s;
    CHECK((s = accept(listener, NULL, NULL)) >= 0 && close(listener) == 0);
    return s;
}

/* A connection of one of n with each of the others, of which the lower one listens. */
static inline void mesh(int own, int n, const char *name, int *tcp) {
    char file[4096];
    for (int k = 0; k < n; k++) {
        CHECK(snprintf(file, sizeof file, "%s.%d.%d", name, k < own ? k : own, k < own ? own : k) < (int)sizeof file);
        if (k != own) tcp[k] = meet(own < k, file);
    }
}

/* The device and its port; memory of so many bytes, a queue of so many completions, with a channel if events are wanted. */
static inline void prepare(struct verbs *v, size_t size, int completions, int events) {
    const char *name = getenv("DEVICE"), *gid = getenv("GID");
    v->context = NULL;
    v->gid_index = gid ? atoi(gid) : 1;
    int n;
    struct ibv_device **list = ibv_get_device_list(&n);
    CHECK(list && n > 0);
    for (int k = 0; k < n; k++)
        if (!strcmp(ibv_get_device_name(list[k]), name ? name : "rxe0")) v->context = ibv_open_device(list[k]);
    CHECK(v->context);
    ibv_free_device_list(list);
    CHECK(ibv_query_port(v->context, 1, &v->port) == 0);
    v->global = v->port.lid == 0 || getenv("GLOBAL");
    v->size = size;
    CHECK((v->pd = ibv_alloc_pd(v->context)) && (v->memory = aligned_alloc(4096, (size + 4095) / 4096 * 4096)));
    memset(v->memory, 0, size);
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
    CHECK((v->mr = ibv_reg_mr(v->pd, v->memory, size, access)));
    if (events) CHECK((v->channel = ibv_create_comp_channel(v->context)));
    CHECK((v->cq = ibv_create_cq(v->context, completions, v, v->channel, 0)));
}

/* The same, with the arguments read, and the other end found. */
static inline void start(struct verbs *v, int argc, char **argv, size_t size, int completions, int events) {
    CHECK(argc > 4);
    v->rounds = argument(argc, argv, 1, 100);
    v->seed = (uint64_t)argument(argc, argv, 2, 1);
    v->listens = strcmp(argv[3], "listen") == 0;
    v->tcp = meet(v->listens, argv[4]);
    prepare(v, size, completions, events);
}

/* To INIT. */
static inline void ready(struct ibv_qp *qp) {
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1,
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC};
    CHECK(ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0);
}

static inline struct ibv_qp *pair(struct verbs *v, struct ibv_srq *srq, uint32_t sends, uint32_t receives, uint32_t inline_data) {
    struct ibv_qp_init_attr attr = {.send_cq = v->cq, .recv_cq = v->cq, .srq = srq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = sends, .max_recv_wr = receives, .max_send_sge = 2, .max_recv_sge = 2, .max_inline_data = inline_data}};
    struct ibv_qp *qp = ibv_create_qp(v->pd, &attr);
    CHECK(qp);
    ready(qp);
    return qp;
}

static inline struct side own(struct verbs *v, struct ibv_qp *qp) {
    struct side s = {.address = (uintptr_t)v->memory, .qpn = qp->qp_num, .psn = qp->qp_num & 0xfff, .rkey = v->mr->rkey, .lid = v->port.lid};
    CHECK(ibv_query_gid(v->context, 1, v->gid_index, &s.gid) == 0);
    return s;
}

static inline void join(struct verbs *v, struct ibv_qp *qp, uint32_t psn, const struct side *to) {
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = to->qpn, .rq_psn = to->psn,
        .max_dest_rd_atomic = 4, .min_rnr_timer = v->rnr_timer ? v->rnr_timer : 1,
        .ah_attr = {.is_global = (uint8_t)v->global, .dlid = (uint16_t)to->lid, .port_num = 1,
            .grh = {.dgid = to->gid, .sgid_index = (uint8_t)v->gid_index, .hop_limit = 1}}};
    CHECK(ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
        IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0);
    struct ibv_qp_attr b = {.qp_state = IBV_QPS_RTS, .timeout = 17, .retry_cnt = v->retries ? v->retries : 7,
        .rnr_retry = v->rnr_finite ? v->rnr_finite : 7, .sq_psn = psn, .max_rd_atomic = 4};
    CHECK(ibv_modify_qp(qp, &b, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
        IBV_QP_MAX_QP_RD_ATOMIC) == 0);
}

/* Connects a queue pair with the other end's. */
static inline struct side connected(struct verbs *v, struct ibv_qp *qp) {
    struct side mine = own(v, qp), theirs;
    swap(v, &mine, &theirs, sizeof mine);
    join(v, qp, mine.psn, &theirs);
    char there = 1;
    swap(v, &there, &there, 1);
    return theirs;
}

/* The next completion, which is a success. */
static inline struct ibv_wc completion(struct verbs *v) {
    struct ibv_wc wc;
    int n;
    while ((n = ibv_poll_cq(v->cq, 1, &wc)) == 0) usleep(50);
    if (n == 1 && wc.status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
    CHECK(n == 1 && wc.status == IBV_WC_SUCCESS);
    return wc;
}
#endif
