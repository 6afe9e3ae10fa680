/* Messages of 0 bytes to 8 KiB both ways, small ones inline, most without a completion; checked for content, order, and the number that comes with
 * them. The one that connects posts its receives late, so that sends wait for them (RNR). See verbs.h. */
#include "verbs.h"
enum { MOST = 8192, WINDOW = 8 };
struct area { char in[WINDOW][MOST], out[WINDOW][MOST]; };
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, sizeof(struct area), 64, 0);
    struct area *a = (struct area *)v.memory;
    struct ibv_qp *qp = pair(&v, NULL, WINDOW, WINDOW, 64);
    connected(&v, qp);
    uint64_t mine = v.seed + (uint64_t)v.listens, theirs = v.seed + (uint64_t)!v.listens, sum = 0, other = 0;
    long sent = 0, done = 0, posted = 0, got = 0, turns = 0;
    while (got < v.rounds || done < v.rounds) {
        /* Late: now and then only, all that there is room for. */
        if (v.listens || ++turns % 64 == 0)
            for (; posted < v.rounds && posted < got + WINDOW; posted++) {
                struct ibv_sge sge = {.addr = (uintptr_t)a->in[posted % WINDOW], .length = MOST, .lkey = v.mr->lkey};
                struct ibv_recv_wr wr = {.wr_id = (uint64_t)posted, .sg_list = &sge, .num_sge = 1}, *bad;
                CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
            }
        /* As a list, of three at most. */
        struct ibv_sge sges[3];
        struct ibv_send_wr wrs[3], *bad;
        int listed = 0;
        for (; listed < 3 && sent < v.rounds && sent < done + WINDOW; listed++) {
            char *out = a->out[sent % WINDOW];
            uint32_t n = (uint32_t)(mix(&mine) % (sent % 3 ? 60 : MOST));
            for (uint32_t k = 0; k < n; k++) out[k] = (char)(mix(&mine) >> 13);
            sum = hash(sum, out, n);
            sges[listed] = (struct ibv_sge){.addr = (uintptr_t)out, .length = n, .lkey = v.mr->lkey};
            wrs[listed] = (struct ibv_send_wr){.wr_id = (uint64_t)sent, .sg_list = &sges[listed], .num_sge = 1, .opcode = IBV_WR_SEND_WITH_IMM,
                .imm_data = htonl((uint32_t)sent), .send_flags = n <= 60 ? IBV_SEND_INLINE : 0};
            if (++sent % 4 == 0 || sent == v.rounds) wrs[listed].send_flags |= IBV_SEND_SIGNALED;
            if (listed) wrs[listed - 1].next = &wrs[listed];
        }
        if (listed) CHECK(ibv_post_send(qp, wrs, &bad) == 0);
        /* The queue has copied what is inline. */
        for (int k = 0; k < listed; k++)
            if (wrs[k].send_flags & IBV_SEND_INLINE) memset((void *)(uintptr_t)sges[k].addr, 0x55, sges[k].length);
        struct ibv_wc wc;
        int n = ibv_poll_cq(v.cq, 1, &wc);
        if (n == 0) usleep(20);
        if (n == 0) continue;
        if (n == 1 && wc.status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
        CHECK(n == 1 && wc.status == IBV_WC_SUCCESS && wc.qp_num == qp->qp_num);
        if (wc.opcode == IBV_WC_SEND) {
            CHECK(wc.wr_id % 4 == 3 || wc.wr_id == (uint64_t)v.rounds - 1);
            done = (long)wc.wr_id + 1;
            continue;
        }
        CHECK(wc.opcode == IBV_WC_RECV && wc.wr_id == (uint64_t)got && (wc.wc_flags & IBV_WC_WITH_IMM) && ntohl(wc.imm_data) == (uint32_t)got);
        uint32_t length = (uint32_t)(mix(&theirs) % (got % 3 ? 60 : MOST));
        char *in = a->in[got++ % WINDOW];
        CHECK(wc.byte_len == length);
        for (uint32_t k = 0; k < length; k++) CHECK(in[k] == (char)(mix(&theirs) >> 13));
        other = hash(other, in, length);
        if (!v.listens) usleep(200);
    }
    char end = 1;
    swap(&v, &end, &end, 1);
    sum += other;
    return finish(sum);
}
