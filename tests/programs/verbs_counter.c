/* Three processes: two add to a counter in the memory of the one that listens, which adds to it as well, by a queue pair of its own. Each request
 * gets the value before it, and no value comes twice or is left out. Four of each are under way at once. The third finds its port in FILE.2.
 * See verbs.h. */
#include "verbs.h"
enum { AHEAD = 4 };
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 64, 0);
    struct verbs other = v;
    if (v.listens) {
        char name[4096];
        CHECK(snprintf(name, sizeof name, "%s.2", argv[4]) < (int)sizeof name);
        other.tcp = meet(1, name);
    }
    struct ibv_qp *qp = pair(&v, NULL, 16, 16, 0);
    struct side to = connected(&v, qp);
    if (v.listens) {
        struct ibv_qp *self = pair(&v, NULL, 16, 16, 0), *back = pair(&v, NULL, 16, 16, 0);
        connected(&other, pair(&v, NULL, 16, 16, 0));
        struct side one = own(&v, self), two = own(&v, back);
        join(&v, self, one.psn, &two);
        join(&v, back, two.psn, &one);
        qp = self;
        to = one;
    }
    /* The counter is the first word of the listener; what was there before each of our requests comes behind it. */
    uint64_t *values = (uint64_t *)v.memory + 1, mine[2] = {0, 0}, last = 0;
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
        mine[0] += value;
        mine[1] += value * value;
    }
    uint64_t n = 3 * (uint64_t)v.rounds, sums[2] = {mine[0], mine[1]};
    if (v.listens) {
        for (int k = 0; k < 2; k++) {
            uint64_t theirs[2];
            all(k ? other.tcp : v.tcp, theirs, sizeof theirs, 0);
            sums[0] += theirs[0];
            sums[1] += theirs[1];
        }
        CHECK(sums[0] == n * (n - 1) / 2 && sums[1] == (n - 1) * n * (2 * n - 1) / 6);
        CHECK(*(uint64_t *)v.memory == n);
        all(v.tcp, sums, sizeof sums, 1);
        all(other.tcp, sums, sizeof sums, 1);
    } else {
        all(v.tcp, mine, sizeof mine, 1);
        all(v.tcp, sums, sizeof sums, 0);
    }
    return finish(hash(v.seed, sums, sizeof sums));
}
