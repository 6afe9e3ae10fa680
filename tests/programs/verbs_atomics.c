/* Two processes add to one counter, in the memory of the one that listens: each request gets the value before it, and no value comes
 * twice or is left out. Four are under way at once. See verbs.h. */
#include "verbs.h"
enum { AHEAD = 4 };
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 64, 0);
    struct ibv_qp *qp = pair(&v, NULL, 16, 16, 0), *self = v.listens ? pair(&v, NULL, 16, 16, 0) : NULL, *back = v.listens ? pair(&v, NULL, 16, 16, 0) : NULL;
    struct side to = connected(&v, qp);
    if (v.listens) {
        struct side one = own(&v, self), other = own(&v, back);
        join(&v, self, one.psn, &other);
        join(&v, back, other.psn, &one);
        qp = self;
        to = one;
    }
    /* The counter is the first word of the listener; what was there before each of our requests comes behind it. */
    uint64_t *values = (uint64_t *)v.memory + 1, sum = 0, squares = 0, last = 0;
    long posted = 0, done = 0;
    while (done < v.rounds) {
        for (; posted < v.rounds && posted < done + AHEAD; posted++) {
            struct ibv_sge sge = {.addr = (uintptr_t)&values[posted % AHEAD], .length = 8, .lkey = v.mr->lkey};
            struct ibv_send_wr wr = {.wr_id = (uint64_t)posted, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_ATOMIC_FETCH_AND_ADD,
                .send_flags = IBV_SEND_SIGNALED, .wr.atomic = {.remote_addr = to.address, .rkey = to.rkey, .compare_add = 1}}, *bad;
            CHECK(ibv_post_send(qp, &wr, &bad) == 0);
        }
        struct ibv_wc wc = completion(&v);
        CHECK(wc.wr_id == (uint64_t)done && wc.opcode == IBV_WC_FETCH_ADD);
        uint64_t value = values[done++ % AHEAD];
        CHECK(done == 1 || value > last);
        last = value;
        sum += value;
        squares += value * value;
    }
    uint64_t mine[2] = {sum, squares}, theirs[2], n = 2 * (uint64_t)v.rounds;
    swap(&v, mine, theirs, sizeof mine);
    CHECK(sum + theirs[0] == n * (n - 1) / 2 && squares + theirs[1] == (n - 1) * n * (2 * n - 1) / 6);
    if (v.listens) CHECK(*(uint64_t *)v.memory == n);
    return finish(hash(v.seed, &n, sizeof n));
}
