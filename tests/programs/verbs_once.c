/* One of each kind of request around a message that waits for its receive. The two take turns: one posts a write, a compare-and-swap, a
 * message, and behind that a write with a number, another compare-and-swap and a read. The other sees the write, puts a mark
 * of its own in its place, lets the message wait, sees that nothing behind it has happened, receives, and finds its mark: what went ahead of the
 * message is not done again, what waits behind it is done once. See verbs.h. */
#include "verbs.h"
enum { AHEAD, SWAPS, BEHIND, LATER, DATA, WORDS };
struct area { volatile uint64_t in[WORDS]; uint64_t came, out, old[2], back; };
static struct verbs v;
static struct ibv_qp *qp;
static struct area *a;
static struct side to;

static void post(struct ibv_send_wr *wr, void *at, int place) {
    struct ibv_sge sge = {.addr = (uintptr_t)at, .length = 8, .lkey = v.mr->lkey};
    struct ibv_send_wr *bad;
    uint64_t there = to.address + offsetof(struct area, in) + 8 * (size_t)place;
    wr->sg_list = &sge;
    wr->num_sge = 1;
    if (wr->opcode == IBV_WR_ATOMIC_CMP_AND_SWP) wr->wr.atomic.remote_addr = there, wr->wr.atomic.rkey = to.rkey;
    else wr->wr.rdma.remote_addr = there, wr->wr.rdma.rkey = to.rkey;
    CHECK(ibv_post_send(qp, wr, &bad) == 0);
}
static void receive(uint64_t id) {
    struct ibv_sge sge = {.addr = (uintptr_t)&a->came, .length = 8, .lkey = v.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = id, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
}
static void both(void) {
    char there = 1;
    swap(&v, &there, &there, 1);
}

int main(int argc, char **argv) {
    start(&v, argc, argv, sizeof *a, 32, 0);
    a = (struct area *)v.memory;
    qp = pair(&v, NULL, 8, 4, 16);
    to = connected(&v, qp);
    uint64_t state = v.seed, pauses = v.seed + (uint64_t)v.listens, sum = 0;
    /* How often the words of this end, and of the other one, have been swapped. */
    uint64_t swapped[2] = {0};
    for (long round = 0; round < v.rounds; round++) {
        uint64_t ahead = mix(&state), message = mix(&state), behind = mix(&state), data = mix(&state), mark = mix(&state);
        int receives = (int)(round % 2) == v.listens;
        uint64_t count = swapped[!receives]++;
        if (receives) a->in[DATA] = data;
        both();
        if (!receives) {
            a->out = behind;
            struct ibv_send_wr all[] = {
                {.wr_id = 0, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_INLINE},
                {.wr_id = 1, .opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .send_flags = IBV_SEND_SIGNALED, .wr.atomic = {.compare_add = count, .swap = count + 1}},
                {.wr_id = 2, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE},
                {.wr_id = 3, .opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .send_flags = IBV_SEND_SIGNALED, .imm_data = htonl((uint32_t)round)},
                {.wr_id = 4, .opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .send_flags = IBV_SEND_SIGNALED, .wr.atomic = {.compare_add = count, .swap = count + 1}},
                {.wr_id = 5, .opcode = IBV_WR_RDMA_READ, .send_flags = IBV_SEND_SIGNALED}};
            post(&all[0], &ahead, AHEAD);
            post(&all[1], &a->old[0], SWAPS);
            post(&all[2], &message, 0);
            post(&all[3], &a->out, BEHIND);
            post(&all[4], &a->old[1], LATER);
            post(&all[5], &a->back, DATA);
            for (uint64_t k = 1; k <= 5; k++) {
                struct ibv_wc wc = completion(&v);
                CHECK(wc.wr_id == k && wc.qp_num == qp->qp_num);
            }
            CHECK(a->old[0] == count && a->old[1] == count && a->back == data);
        } else {
            while (a->in[AHEAD] != ahead || a->in[SWAPS] != count + 1) usleep(20);
            a->in[AHEAD] = mark;
            if (mix(&pauses) % 2) usleep((unsigned)(mix(&pauses) % 20000));
            CHECK(a->in[LATER] == count && a->in[AHEAD] == mark);
            receive(7);
            struct ibv_wc wc = completion(&v);
            CHECK(wc.wr_id == 7 && wc.opcode == IBV_WC_RECV && wc.byte_len == 8 && a->came == message);
            if (mix(&pauses) % 2) usleep((unsigned)(mix(&pauses) % 20000));
            CHECK(a->in[LATER] == count);
            receive(8);
            wc = completion(&v);
            CHECK(wc.wr_id == 8 && wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM && (wc.wc_flags & IBV_WC_WITH_IMM));
            CHECK(ntohl(wc.imm_data) == (uint32_t)round && a->in[BEHIND] == behind && a->came == message);
        }
        both();
        if (receives) CHECK(a->in[AHEAD] == mark && a->in[SWAPS] == count + 1 && a->in[LATER] == count + 1);
        sum += ahead ^ message ^ behind ^ data;
        both();
    }
    return finish(sum);
}
