/* Messages in lists of three (ibv_post_send) and batches of three (ibv_wr_start), both ways, that wait for their receives: each end posts
 * those late, all that there is room for, and a sender tries six more times only, 61 ms together. So most of the time a list stands behind
 * a send that waits. Checked for content, order and number. See verbs.h. */
#include "verbs.h"
enum { MOST = 2048, WINDOW = 9, SMALL = 60, LATE = 6000 };
struct area { char in[WINDOW][MOST], out[WINDOW][MOST]; };
static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}
int main(int argc, char **argv) {
    struct verbs v = {0};
    const char *timer = getenv("RNR_TIMER");
    /* 10.24 ms. */
    v.rnr_timer = timer ? (uint8_t)atoi(timer) : 20;
    v.rnr_finite = 6;
    start(&v, argc, argv, sizeof(struct area), 64, 0);
    struct area *a = (struct area *)v.memory;
    struct ibv_qp_init_attr_ex attr = {.send_cq = v.cq, .recv_cq = v.cq, .qp_type = IBV_QPT_RC, .pd = v.pd,
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .send_ops_flags = IBV_QP_EX_WITH_SEND_WITH_IMM,
        .cap = {.max_send_wr = WINDOW, .max_recv_wr = WINDOW, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = SMALL}};
    struct ibv_qp *qp = ibv_create_qp_ex(v.context, &attr);
    struct ibv_qp_ex *x = qp ? ibv_qp_to_qp_ex(qp) : NULL;
    CHECK(qp ? x != NULL : errno == EOPNOTSUPP);
    /* Lists alone, where the library has no batches. */
    if (qp) ready(qp);
    else qp = pair(&v, NULL, WINDOW, WINDOW, SMALL);
    connected(&v, qp);
    uint64_t mine = v.seed + (uint64_t)v.listens, theirs = v.seed + (uint64_t)!v.listens, sum = 0, other = 0, since = now();
    long sent = 0, done = 0, posted = 0, got = 0;
    while (got < v.rounds || done < v.rounds) {
        if (got == posted && now() > since + LATE) {
            for (; posted < v.rounds && posted < got + WINDOW; posted++) {
                struct ibv_sge sge = {.addr = (uintptr_t)a->in[posted % WINDOW], .length = MOST, .lkey = v.mr->lkey};
                struct ibv_recv_wr wr = {.wr_id = (uint64_t)posted, .sg_list = &sge, .num_sge = 1}, *bad;
                CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
            }
        }
        while (sent < v.rounds && sent + 3 <= done + WINDOW) {
            struct ibv_sge sges[3];
            struct ibv_send_wr wrs[3], *bad;
            int n = 0;
            for (; n < 3 && sent < v.rounds; n++, sent++) {
                char *out = a->out[sent % WINDOW];
                uint32_t length = (uint32_t)(1 + mix(&mine) % (sent % 2 ? SMALL : MOST));
                for (uint32_t k = 0; k < length; k++) out[k] = (char)(mix(&mine) >> 13);
                sum = hash(sum, out, length);
                sges[n] = (struct ibv_sge){.addr = (uintptr_t)out, .length = length, .lkey = v.mr->lkey};
                /* One in three has a completion. */
                wrs[n] = (struct ibv_send_wr){.wr_id = (uint64_t)sent, .next = n == 2 ? NULL : &wrs[n + 1], .sg_list = &sges[n], .num_sge = 1,
                    .opcode = IBV_WR_SEND_WITH_IMM, .imm_data = htonl((uint32_t)sent),
                    .send_flags = (length <= SMALL ? IBV_SEND_INLINE : 0) | (n == 2 || sent + 1 == v.rounds ? IBV_SEND_SIGNALED : 0)};
            }
            wrs[n - 1].next = NULL;
            if (!x || sent / 3 % 2) {
                CHECK(ibv_post_send(qp, wrs, &bad) == 0);
            } else {
                ibv_wr_start(x);
                for (int k = 0; k < n; k++) {
                    x->wr_id = wrs[k].wr_id;
                    x->wr_flags = wrs[k].send_flags & ~(unsigned)IBV_SEND_INLINE;
                    ibv_wr_send_imm(x, wrs[k].imm_data);
                    if (wrs[k].send_flags & IBV_SEND_INLINE) ibv_wr_set_inline_data(x, (void *)(uintptr_t)sges[k].addr, sges[k].length);
                    else ibv_wr_set_sge(x, sges[k].lkey, sges[k].addr, sges[k].length);
                }
                CHECK(ibv_wr_complete(x) == 0);
            }
            /* The queue has copied what is inline, and the list is ours again. */
            for (int k = 0; k < n; k++)
                if (wrs[k].send_flags & IBV_SEND_INLINE) memset((void *)(uintptr_t)sges[k].addr, 0x55, sges[k].length);
            memset(wrs, 0x55, sizeof wrs);
            memset(sges, 0x55, sizeof sges);
        }
        struct ibv_wc wc;
        int n = ibv_poll_cq(v.cq, 1, &wc);
        if (n == 0) { usleep(100); continue; }
        if (n == 1 && wc.status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
        CHECK(n == 1 && wc.status == IBV_WC_SUCCESS && wc.qp_num == qp->qp_num);
        if (wc.opcode == IBV_WC_SEND) {
            CHECK(wc.wr_id == (uint64_t)v.rounds - 1 || wc.wr_id == (uint64_t)done + 2);
            done = (long)wc.wr_id + 1;
            continue;
        }
        CHECK(wc.opcode == IBV_WC_RECV && wc.wr_id == (uint64_t)got && (wc.wc_flags & IBV_WC_WITH_IMM) && ntohl(wc.imm_data) == (uint32_t)got);
        uint32_t length = (uint32_t)(1 + mix(&theirs) % (got % 2 ? SMALL : MOST));
        char *in = a->in[got++ % WINDOW];
        CHECK(wc.byte_len == length);
        for (uint32_t k = 0; k < length; k++) CHECK(in[k] == (char)(mix(&theirs) >> 13));
        other = hash(other, in, length);
        since = now();
    }
    char end = 1;
    swap(&v, &end, &end, 1);
    struct ibv_qp_attr asked;
    struct ibv_qp_init_attr init;
    CHECK(ibv_query_qp(qp, &asked, IBV_QP_RNR_RETRY, &init) == 0 && asked.rnr_retry == v.rnr_finite);
    sum += other;
    return finish(sum);
}
