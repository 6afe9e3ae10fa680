/* Extended reliable connections: each end has three shared receive queues in a domain, of which the other names one with every message; some
 * are empty now and then, so that what waits for one holds up the rest. Writes without a completion go before some. Now and then a queue
 * is made anew. The domain of the one that listens is of a file; it opens its device and this domain twice, and has one of the queues, with its
 * completions, there. See verbs.h. */
#include <fcntl.h>
#include "verbs.h"
enum { QUEUES = 3, DEPTH = 8, MOST = 512, WINDOW = 16, PHASE = 200 };
struct area { char in[QUEUES][DEPTH][MOST], out[WINDOW][MOST]; uint64_t board[WINDOW], words[WINDOW]; };
struct told { struct side receiver, sender; };
static struct verbs v;
static struct ibv_xrcd *xrcd;
static struct ibv_srq *queues[QUEUES];
static uint32_t theirs[QUEUES];
static struct ibv_qp *to, *from;
static struct area *a;
static int extended;
static struct { struct ibv_context *context; struct ibv_pd *pd; struct ibv_cq *cq; struct ibv_mr *mr; struct ibv_xrcd *xrcd; } second;
static int is_there(int q) { return second.context && q == QUEUES - 1; }
static void open_again(struct ibv_xrcd_init_attr *domain) {
    CHECK((second.context = ibv_open_device(v.context->device)) && (second.pd = ibv_alloc_pd(second.context)));
    CHECK((second.cq = ibv_create_cq(second.context, 256, NULL, NULL, 0)) && (second.xrcd = ibv_open_xrcd(second.context, domain)));
    CHECK((second.mr = ibv_reg_mr(second.pd, v.memory, sizeof(struct area), IBV_ACCESS_LOCAL_WRITE)));
}
static void queue(int q) {
    struct ibv_srq_init_attr_ex attr = {.attr = {.max_wr = DEPTH, .max_sge = 1}, .srq_type = IBV_SRQT_XRC, .pd = v.pd, .xrcd = xrcd, .cq = v.cq,
        .comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ};
    if (is_there(q)) {
        attr.pd = second.pd;
        attr.xrcd = second.xrcd;
        attr.cq = second.cq;
    }
    CHECK((queues[q] = ibv_create_srq_ex(is_there(q) ? second.context : v.context, &attr)));
}
static void numbers(void) {
    uint32_t mine[QUEUES];
    for (int q = 0; q < QUEUES; q++) CHECK(ibv_get_srq_num(queues[q], &mine[q]) == 0);
    swap(&v, mine, theirs, sizeof mine);
}
static void change(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask) { CHECK(ibv_modify_qp(qp, attr, mask) == 0); }
static void pairs(const char *file) {
    struct ibv_xrcd_init_attr domain = {.comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = -1, .oflags = O_CREAT};
    char name[4096];
    CHECK(snprintf(name, sizeof name, "%s.xrc", file) < (int)sizeof name);
    if (v.listens) CHECK((domain.fd = open(name, O_RDONLY | O_CREAT, 0600)) >= 0);
    CHECK((xrcd = ibv_open_xrcd(v.context, &domain)));
    if (v.listens) open_again(&domain);
    if (v.listens) CHECK(close(domain.fd) == 0);
    for (int q = 0; q < QUEUES; q++) queue(q);
    struct ibv_qp_init_attr_ex receives = {.qp_type = IBV_QPT_XRC_RECV, .comp_mask = IBV_QP_INIT_ATTR_XRCD, .xrcd = xrcd};
    struct ibv_qp_init_attr_ex sends = {.qp_type = IBV_QPT_XRC_SEND, .pd = v.pd, .send_cq = v.cq,
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .send_ops_flags = IBV_QP_EX_WITH_SEND_WITH_IMM | IBV_QP_EX_WITH_RDMA_WRITE,
        .cap = {.max_send_wr = 4 * WINDOW, .max_send_sge = 1, .max_inline_data = 64}};
    CHECK((from = ibv_create_qp_ex(v.context, &receives)));
    /* Requests that are built piece by piece are not for every device. */
    extended = (to = ibv_create_qp_ex(v.context, &sends)) != NULL;
    if (!extended) {
        sends.comp_mask = IBV_QP_INIT_ATTR_PD;
        CHECK((to = ibv_create_qp_ex(v.context, &sends)));
    }
    ready(from);
    ready(to);
    struct told mine = {.receiver = own(&v, from), .sender = own(&v, to)}, other;
    swap(&v, &mine, &other, sizeof mine);
    struct ibv_qp_attr b = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = other.sender.qpn, .rq_psn = other.sender.psn,
        .max_dest_rd_atomic = 4, .min_rnr_timer = 1,
        .ah_attr = {.is_global = v.port.lid == 0, .dlid = (uint16_t)other.sender.lid, .port_num = 1,
            .grh = {.dgid = other.sender.gid, .sgid_index = (uint8_t)v.gid_index, .hop_limit = 1}}};
    int common = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    change(from, &b, common | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    b.dest_qp_num = other.receiver.qpn;
    b.rq_psn = other.receiver.psn;
    change(to, &b, common);
    struct ibv_qp_attr c = {.qp_state = IBV_QPS_RTS, .timeout = 17, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 4, .sq_psn = mine.sender.psn};
    change(to, &c, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
    c.sq_psn = mine.receiver.psn;
    if (v.listens) change(from, &c, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_SQ_PSN);
    numbers();
}
static void say(long number, uint32_t n, uint32_t srq, int signals, const struct side *there, int writes) {
    char *out = a->out[number % WINDOW];
    struct ibv_sge sge = {.addr = (uintptr_t)out, .length = n, .lkey = v.mr->lkey}, word = sge;
    uint64_t at = there->address + offsetof(struct area, board[number % WINDOW]);
    word.addr = (uintptr_t)&a->words[number % WINDOW];
    word.length = 8;
    a->words[number % WINDOW] = (uint64_t)number * 7 + 1;
    struct ibv_qp_ex *x = number % 2 && extended ? ibv_qp_to_qp_ex(to) : NULL;
    unsigned flags = (signals ? IBV_SEND_SIGNALED : 0) | (n <= 64 ? IBV_SEND_INLINE : 0);
    if (x) {
        ibv_wr_start(x);
        if (writes) {
            x->wr_id = 0;
            x->wr_flags = 0;
            ibv_wr_rdma_write(x, there->rkey, at);
            ibv_wr_set_xrc_srqn(x, srq);
            ibv_wr_set_sge(x, word.lkey, word.addr, word.length);
        }
        x->wr_id = (uint64_t)number;
        x->wr_flags = signals ? IBV_SEND_SIGNALED : 0;
        ibv_wr_send_imm(x, htonl((uint32_t)number));
        ibv_wr_set_xrc_srqn(x, srq);
        if (n <= 64) ibv_wr_set_inline_data(x, out, n);
        else ibv_wr_set_sge(x, sge.lkey, sge.addr, sge.length);
        CHECK(ibv_wr_complete(x) == 0);
        return;
    }
    struct ibv_send_wr message = {.wr_id = (uint64_t)number, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND_WITH_IMM,
        .imm_data = htonl((uint32_t)number), .send_flags = flags, .qp_type.xrc.remote_srqn = srq}, *bad;
    struct ibv_send_wr write = {.next = &message, .sg_list = &word, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
        .wr.rdma = {.remote_addr = at, .rkey = there->rkey}, .qp_type.xrc.remote_srqn = srq};
    CHECK(ibv_post_send(to, writes ? &write : &message, &bad) == 0);
}
int main(int argc, char **argv) {
    start(&v, argc, argv, sizeof(struct area), 256, 0);
    a = (struct area *)v.memory;
    pairs(argv[4]);
    struct side here = own(&v, to), there;
    swap(&v, &here, &there, sizeof here);
    uint64_t mine = v.seed + (uint64_t)v.listens, other = v.seed + (uint64_t)!v.listens, sum = 0, others = 0;
    long sent = 0, done = 0, got = 0, turns = 0, posted[QUEUES] = {0}, came[QUEUES] = {0};
    for (long end = 0; end < v.rounds;) {
        /* All that was sent has come. Another queue in the place of one, with receives in it. */
        if (end) {
            int q = (int)(end / PHASE % QUEUES);
            CHECK(ibv_destroy_srq(queues[q]) == 0);
            queue(q);
            posted[q] = came[q] = 0;
            numbers();
        }
        end = end + PHASE < v.rounds ? end + PHASE : v.rounds;
        while (got < end || done < end) {
            turns++;
            for (int q = 0; q < QUEUES; q++)
                /* Late: now and then only, and one queue after the other. */
                if (v.listens || turns % 64 == 16 * q)
                    for (; posted[q] < came[q] + DEPTH; posted[q]++) {
                        struct ibv_sge sge = {.addr = (uintptr_t)a->in[q][posted[q] % DEPTH], .length = MOST,
                            .lkey = is_there(q) ? second.mr->lkey : v.mr->lkey};
                        struct ibv_recv_wr wr = {.wr_id = (uint64_t)(q + 1) << 32 | (uint64_t)posted[q], .sg_list = &sge, .num_sge = 1}, *bad;
                        CHECK(ibv_post_srq_recv(queues[q], &wr, &bad) == 0);
                    }
            if (sent < end && sent < done + WINDOW) {
                uint64_t word = mix(&mine);
                uint32_t n = (uint32_t)(word % (sent % 2 ? 64 : MOST)), q = (uint32_t)(word >> 32) % QUEUES;
                char *out = a->out[sent % WINDOW];
                for (uint32_t k = 0; k < n; k++) out[k] = (char)(mix(&mine) >> 13);
                sum = hash(sum + q, out, n);
                say(sent, n, theirs[q], sent % 4 == 3 || sent + 1 == end, &there, sent % 5 == 0 && q != QUEUES - 1);
                sent++;
            }
            struct ibv_wc wc;
            /* Of two completion queues nobody knows which one's was first: the next message says where it comes. */
            uint64_t next = other;
            int n = ibv_poll_cq(got < end && is_there((int)((mix(&next) >> 32) % QUEUES)) ? second.cq : v.cq, 1, &wc);
            CHECK(n >= 0);
            if (n == 0) { usleep(20); continue; }
            if (wc.status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
            CHECK(wc.status == IBV_WC_SUCCESS);
            if (wc.opcode == IBV_WC_SEND) {
                CHECK(wc.qp_num == to->qp_num && (wc.wr_id % 4 == 3 || wc.wr_id + 1 == (uint64_t)end));
                done = (long)wc.wr_id + 1;
                continue;
            }
            uint64_t word = mix(&other);
            uint32_t length = (uint32_t)(word % (got % 2 ? 64 : MOST)), q = (uint32_t)(word >> 32) % QUEUES;
            CHECK(wc.qp_num == from->qp_num && (wc.wc_flags & IBV_WC_WITH_IMM) && ntohl(wc.imm_data) == (uint32_t)got);
            CHECK(wc.byte_len == length && wc.wr_id == ((uint64_t)(q + 1) << 32 | (uint64_t)came[q]));
            char *in = a->in[q][came[q]++ % DEPTH];
            for (uint32_t k = 0; k < length; k++) CHECK(in[k] == (char)(mix(&other) >> 13));
            /* What is written by way of a queue is checked against that one's domain: the region is of the other. */
            if (got % 5 == 0 && q != QUEUES - 1) CHECK(a->board[got % WINDOW] == (uint64_t)got * 7 + 1);
            others = hash(others + q, in, length);
            got++;
            if (!v.listens) usleep(100);
        }
    }
    char last = 1;
    swap(&v, &last, &last, 1);
    return finish(sum + others);
}
