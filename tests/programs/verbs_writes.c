/* Each writes records into the other's memory, without a completion for most of them, and looks into its own for the other's: in order, each
 * once, whole. A record's last word is written with it and says which it is. What was read is told by another write. See verbs.h. */
#include "verbs.h"
enum { WORDS = 64, SLOTS = 16, BATCH = 4 };
struct area { volatile uint64_t in[SLOTS][WORDS]; volatile uint64_t taken; uint64_t out[SLOTS][WORDS]; };
static void put(struct verbs *v, struct ibv_qp *qp, struct side *to, const void *from, size_t at, uint32_t n, unsigned flags, uint64_t id) {
    struct ibv_sge sge = {.addr = (uintptr_t)from, .length = n, .lkey = v->mr->lkey};
    struct ibv_send_wr wr = {.wr_id = id, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = flags,
        .wr.rdma = {.remote_addr = to->address + at, .rkey = to->rkey}}, *bad;
    CHECK(ibv_post_send(qp, &wr, &bad) == 0);
}
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, sizeof(struct area), 64, 0);
    struct area *a = (struct area *)v.memory;
    struct ibv_qp *qp = pair(&v, NULL, 32, 1, 32);
    struct side to = connected(&v, qp);
    uint64_t mine = v.seed + (uint64_t)v.listens, theirs = v.seed + (uint64_t)!v.listens, sum = 0, other = 0;
    long sent = 0, read = 0, reaped = 0, open = 0, told = 0;
    while (read < v.rounds || sent < v.rounds || told < v.rounds) {
        if (sent < v.rounds && sent < (long)a->taken + SLOTS && open < 24) {
            uint64_t *record = a->out[sent % SLOTS];
            for (int k = 0; k < WORDS - 1; k++) sum ^= record[k] = mix(&mine);
            record[WORDS - 1] = (uint64_t)++sent;
            /* One in so many has a completion, which is one of those before it as well. */
            int says = sent % BATCH == 0;
            put(&v, qp, &to, record, offsetof(struct area, in[(sent - 1) % SLOTS]), sizeof a->out[0], says ? IBV_SEND_SIGNALED : 0, (uint64_t)sent);
            open++;
        }
        volatile uint64_t *got = a->in[read % SLOTS];
        /* Room for 32: completions may be long in coming. */
        if (read < v.rounds && open < 32 && got[WORDS - 1] == (uint64_t)read + 1) {
            for (int k = 0; k < WORDS - 1; k++) {
                uint64_t word = mix(&theirs);
                CHECK(got[k] == word);
                other ^= word;
            }
            uint64_t taken = (uint64_t)++read;
            /* The queue has copied it when the call returns. */
            put(&v, qp, &to, &taken, offsetof(struct area, taken), 8, IBV_SEND_INLINE | IBV_SEND_SIGNALED, 0);
            open++;
        }
        struct ibv_wc wc;
        int n;
        while ((n = ibv_poll_cq(v.cq, 1, &wc)) == 1) {
            if (wc.status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
            CHECK(wc.status == IBV_WC_SUCCESS && wc.opcode == IBV_WC_RDMA_WRITE);
            if (wc.wr_id) {
                CHECK(wc.wr_id == (uint64_t)(reaped += BATCH));
                open -= BATCH;
            } else { open--; told++; }
        }
        CHECK(n == 0);
        usleep(20);
    }
    /* The other end reads our memory until it has all. */
    char end = 1;
    swap(&v, &end, &end, 1);
    CHECK(a->taken == (uint64_t)v.rounds);
    sum ^= other;
    return finish(sum);
}
