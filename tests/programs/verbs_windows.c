/* Memory windows, of both types, over parts of one region: bound, written and read through by the other end, bound elsewhere, invalidated by
 * their owner or by the other end's message; half of those of type 2 count their addresses from zero. Some stay bound for long, some binds and
 * invalidations wait behind a message (not on soft-RoCE, which then does nothing more: Linux 6.1). An access by a key that is invalid fails;
 * both ends begin anew then. See verbs.h. */
#include "verbs.h"
enum { FIRST = 2, SECOND = 4, ALL = FIRST + SECOND, WORDS = 16, PARTS = 32 };
struct area { uint64_t in[PARTS][WORDS], out[WORDS], back[WORDS]; };
struct told { uint64_t address; uint32_t key; };
static struct verbs v;
static struct ibv_qp *qp;
static struct ibv_mr *region;
static struct ibv_mw *windows[ALL];
static struct area *a;
/* Where each of ours, and of the other end's, is bound; a key of 0: nowhere. And keys that are not valid any more. */
static struct told mine[ALL], theirs[ALL], stale[ALL];
static int parts[ALL], soft;
/* Completions of requests that succeed, but for the last one. */
static enum ibv_wc_status outcome(uint64_t id) {
    struct ibv_wc wc;
    int n;
    while ((n = ibv_poll_cq(v.cq, 1, &wc)) == 0) usleep(20);
    CHECK(n == 1 && wc.wr_id == id);
    return wc.status;
}
static void well(uint64_t id) {
    enum ibv_wc_status status = outcome(id);
    if (status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(status));
    CHECK(status == IBV_WC_SUCCESS);
}
static void post(struct ibv_send_wr wr, uint64_t id) {
    struct ibv_send_wr *bad;
    wr.wr_id = id;
    wr.send_flags |= IBV_SEND_SIGNALED;
    CHECK(ibv_post_send(qp, &wr, &bad) == 0);
}
/* Both have come here. */
static void both(void) {
    char there = 1;
    swap(&v, &there, &there, 1);
}
static void receive(void) {
    struct ibv_recv_wr wr = {.wr_id = 5}, *bad;
    CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
}
/* A message that waits for a receive, which holds up what is posted behind it; and all that comes when both ends have posted one. */
static void hold(int waits) {
    if (waits && !soft) post((struct ibv_send_wr){.opcode = IBV_WR_SEND}, 6);
}
static void release(int waits, uint64_t id) {
    if (!waits || soft) { well(id); return; }
    usleep(10000);
    both();
    receive();
    for (int sent = 0, came = 0, done = 0; !sent || !came || !done;) {
        struct ibv_wc wc = completion(&v);
        CHECK(wc.wr_id == 6 || wc.wr_id == 5 || (sent && wc.wr_id == id));
        sent |= wc.wr_id == 6;
        came |= wc.wr_id == 5;
        done |= wc.wr_id == id;
    }
}
static void bound(int k, int part, int zero) {
    int flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | (zero ? IBV_ACCESS_ZERO_BASED : 0);
    struct ibv_mw_bind_info info = {.mr = region, .addr = (uintptr_t)a->in[part], .length = sizeof a->in[0], .mw_access_flags = flags};
    stale[k] = mine[k];
    if (k < FIRST) {
        struct ibv_mw_bind wanted = {.wr_id = 1, .send_flags = IBV_SEND_SIGNALED, .bind_info = info};
        uint32_t before = windows[k]->rkey;
        CHECK(ibv_bind_mw(qp, windows[k], &wanted) == 0);
        CHECK(windows[k]->rkey == ibv_inc_rkey(before));
    } else {
        uint32_t key = ibv_inc_rkey(windows[k]->rkey);
        post((struct ibv_send_wr){.opcode = IBV_WR_BIND_MW, .bind_mw = {.mw = windows[k], .rkey = key, .bind_info = info}}, 1);
        windows[k]->rkey = key;
    }
    mine[k] = (struct told){.address = zero ? 0 : info.addr, .key = windows[k]->rkey};
    parts[k] = part;
}
static void invalidate(int k, int waits) {
    hold(waits);
    post((struct ibv_send_wr){.opcode = IBV_WR_LOCAL_INV, .invalidate_rkey = mine[k].key}, 2);
    release(waits, 2);
    stale[k] = mine[k];
    mine[k].key = 0;
}
static void reach(const struct told *to, int reads) {
    struct ibv_sge sge = {.addr = (uintptr_t)(reads ? a->back : a->out), .length = sizeof a->out, .lkey = region->lkey};
    post((struct ibv_send_wr){.opcode = reads ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE, .sg_list = &sge, .num_sge = 1,
        .wr.rdma = {.remote_addr = to->address, .rkey = to->key}}, 3);
}
int main(int argc, char **argv) {
    start(&v, argc, argv, 64, 64, 0);
    soft = strncmp(ibv_get_device_name(v.context->device), "rxe", 3) == 0;
    qp = pair(&v, NULL, 16, 4, 0);
    CHECK((a = aligned_alloc(4096, 8192)));
    memset(a, 0, sizeof *a);
    int flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_MW_BIND;
    CHECK((region = ibv_reg_mr(v.pd, a, sizeof *a, flags)));
    for (int k = 0; k < ALL; k++) CHECK((windows[k] = ibv_alloc_mw(v.pd, k < FIRST ? IBV_MW_TYPE_1 : IBV_MW_TYPE_2)));
    struct side here = own(&v, qp), there = connected(&v, qp);
    uint64_t common = v.seed, sum = 0, failed = 0;
    for (long round = 0; round < v.rounds; round++) {
        unsigned k = (unsigned)(mix(&common) % ALL), what = (unsigned)(mix(&common) % 32), zero = k >= FIRST && k % 2;
        /* Both have the same windows bound, not to the same parts. */
        int is = mine[k].key != 0;
        if (!is || (k < FIRST && what < 16)) {
            hold(what % 2);
            bound((int)k, (int)((mix(&common) + (unsigned)v.listens) % PARTS), (int)zero);
            release(what % 2, 1);
        }
        swap(&v, &mine[k], &theirs[k], sizeof mine[k]);
        uint64_t state = v.seed * 1000 + (uint64_t)round * 2 + (uint64_t)v.listens, other = state ^ 1;
        for (int n = 0; n < WORDS; n++) sum += a->out[n] = mix(&state);
        reach(&theirs[k], 0);
        reach(&theirs[k], 1);
        well(3);
        well(3);
        CHECK(memcmp(a->out, a->back, sizeof a->out) == 0);
        both();
        for (int n = 0; n < WORDS; n++) CHECK(a->in[parts[k]][n] == mix(&other));
        both();
        if (k >= FIRST && what < 4) {
            invalidate((int)k, what % 2);
        } else if (k >= FIRST && what < 8) {
            /* By the other end, whose message waits for a receive now and then. */
            if (what % 2) receive();
            both();
            post((struct ibv_send_wr){.opcode = IBV_WR_SEND_WITH_INV, .invalidate_rkey = theirs[k].key}, 4);
            if (what % 2 == 0) { usleep(10000); receive(); }
            for (int n = 0; n < 2; n++) {
                struct ibv_wc wc = completion(&v);
                CHECK(wc.wr_id == 4 || wc.wr_id == 5);
                /* Soft-RoCE says it by the kernel's IB_WC_WITH_INVALIDATE, which is IBV_WC_IP_CSUM_OK here. */
                if (wc.wr_id == 5 && !soft) CHECK((wc.wc_flags & IBV_WC_WITH_INV) && wc.invalidated_rkey == mine[k].key);
            }
            stale[k] = mine[k];
            mine[k].key = 0;
        } else if (what == 31 && round % 4 == 0) {
            /* A key that is not valid any more, of one of us: each time of another one. Both queue pairs do no more after that. */
            int tries = (int)(mix(&common) % 2) == v.listens;
            for (int n = FIRST; n < ALL; n++) if (mine[n].key) invalidate(n, 0);
            swap(&v, stale, theirs, sizeof stale);
            both();
            if (tries && theirs[k].key) {
                reach(&theirs[k], (int)(mix(&state) % 2));
                enum ibv_wc_status status = outcome(3);
                CHECK(status == IBV_WC_REM_ACCESS_ERR);
                failed++;
            }
            both();
            struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
            CHECK(ibv_modify_qp(qp, &reset, IBV_QP_STATE) == 0);
            both();
            ready(qp);
            join(&v, qp, here.psn, &there);
            both();
        } else if (k >= FIRST && what == 30) {
            /* Another window in its place. */
            invalidate((int)k, 0);
            CHECK(ibv_dealloc_mw(windows[k]) == 0 && (windows[k] = ibv_alloc_mw(v.pd, IBV_MW_TYPE_2)));
            stale[k].key = 0;
        }
    }
    uint64_t counts[2] = {sum, failed}, others[2];
    swap(&v, counts, others, sizeof counts);
    CHECK(v.rounds < 500 || failed + others[1] > 0);
    return finish(sum + others[0]);
}
