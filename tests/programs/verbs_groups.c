/* Datagrams to a multicast group that both ends are attached to: each in its turn sends one, which the other answers; what is lost is sent again.
 * Now and then one of them leaves the group, and gets nothing that is sent there, but what is sent to itself. GROUP names the group
 * (224.0.0.1, which every host is in; of InfiniBand ff12:a01b::1). See verbs.h. */
#include "verbs.h"
enum { DEPTH = 16, WORDS = 32, QKEY = 0x11111111 };
struct datagram { uint64_t number, from, words[WORDS]; };
struct area { struct { char header[40]; struct datagram is; } in[DEPTH]; struct datagram out; };
static struct verbs v;
static struct ibv_qp *qp;
static struct area *a;
static struct side theirs;
static struct ibv_ah *to_group, *to_other;
/* The last of the other end's that has come, of those sent to the group and to us alone. */
static long last, alone;
static void receive(uint64_t slot) {
    struct ibv_sge sge = {.addr = (uintptr_t)&a->in[slot], .length = sizeof a->in[0], .lkey = v.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = slot, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
}
static uint64_t pattern(long number, int from) { return v.seed * 1000003 + (uint64_t)number * 2 + (uint64_t)from; }
/* One completion, if there is one. */
static int look(void) {
    struct ibv_wc wc;
    int n = ibv_poll_cq(v.cq, 1, &wc);
    CHECK(n >= 0);
    if (n == 0) return 0;
    if (wc.status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(wc.status));
    CHECK(wc.status == IBV_WC_SUCCESS);
    if (wc.wr_id == DEPTH) return DEPTH;
    struct datagram *d = &a->in[wc.wr_id].is;
    CHECK(wc.byte_len == sizeof a->in[0]);
    /* Our own come back as well, from some devices. */
    if (d->from != (uint64_t)v.listens) {
        CHECK(wc.src_qp == theirs.qpn);
        long number = (long)(d->number / 2);
        uint64_t state = pattern((long)d->number, !v.listens);
        for (int k = 0; k < WORDS; k++) CHECK(d->words[k] == mix(&state));
        /* The last bit: to us alone. */
        long *of = d->number % 2 ? &alone : &last;
        /* One may be lost that we have not waited for. */
        CHECK(number <= *of + 2);
        if (number > *of) *of = number;
    } else CHECK(wc.src_qp == qp->qp_num);
    receive(wc.wr_id);
    return 1;
}
static void say(struct ibv_ah *ah, uint32_t number_there, long number, int direct) {
    a->out.number = (uint64_t)number * 2 + (uint64_t)direct;
    a->out.from = (uint64_t)v.listens;
    uint64_t state = pattern((long)a->out.number, v.listens);
    for (int k = 0; k < WORDS; k++) a->out.words[k] = mix(&state);
    struct ibv_sge sge = {.addr = (uintptr_t)&a->out, .length = sizeof a->out, .lkey = v.mr->lkey};
    struct ibv_send_wr wr = {.wr_id = DEPTH, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED,
        .wr.ud = {.ah = ah, .remote_qpn = number_there, .remote_qkey = QKEY}}, *bad;
    CHECK(ibv_post_send(qp, &wr, &bad) == 0);
    while (look() != DEPTH) usleep(20);
}
/* Says it until the other end has answered: until a datagram has come with at least this number. */
static void until(struct ibv_ah *ah, uint32_t number_there, long number, int direct, const long *comes, long least) {
    say(ah, number_there, number, direct);
    for (long turns = 0; *comes < least;) {
        if (look()) continue;
        usleep(50);
        if (++turns % 4000 == 0) say(ah, number_there, number, direct);
    }
}
/* Both have come here. The other end may wait for our last one, which was lost. */
static void both(struct ibv_ah *ah, uint32_t number_there, long number, int direct) {
    char here = 1, there;
    CHECK(send(v.tcp, &here, 1, MSG_NOSIGNAL) == 1);
    for (long turns = 0; recv(v.tcp, &there, 1, MSG_DONTWAIT) != 1;) {
        if (look()) continue;
        usleep(50);
        if (++turns % 4000 == 0) say(ah, number_there, number, direct);
    }
}
int main(int argc, char **argv) {
    start(&v, argc, argv, sizeof(struct area), 4 * DEPTH, 0);
    a = (struct area *)v.memory;
    struct ibv_qp_init_attr attr = {.send_cq = v.cq, .recv_cq = v.cq, .qp_type = IBV_QPT_UD,
        .cap = {.max_send_wr = 4, .max_recv_wr = DEPTH, .max_send_sge = 1, .max_recv_sge = 1}};
    CHECK((qp = ibv_create_qp(v.pd, &attr)));
    struct ibv_qp_attr change = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY};
    CHECK(ibv_modify_qp(qp, &change, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY) == 0);
    for (uint64_t k = 0; k < DEPTH; k++) receive(k);
    change.qp_state = IBV_QPS_RTR;
    CHECK(ibv_modify_qp(qp, &change, IBV_QP_STATE) == 0);
    change.qp_state = IBV_QPS_RTS;
    CHECK(ibv_modify_qp(qp, &change, IBV_QP_STATE | IBV_QP_SQ_PSN) == 0);
    const char *name = getenv("GROUP");
    union ibv_gid group = {0};
    if (!name) name = v.port.lid ? "ff12:a01b::1" : "::ffff:224.0.0.1";
    CHECK(inet_pton(AF_INET6, name, group.raw) == 1);
    uint16_t lid = v.port.lid ? 0xc001 : 0;
    CHECK(ibv_attach_mcast(qp, &group, lid) == 0);
    struct side mine = own(&v, qp);
    swap(&v, &mine, &theirs, sizeof mine);
    struct ibv_ah_attr way = {.is_global = 1, .dlid = lid, .port_num = 1, .grh = {.dgid = group, .sgid_index = (uint8_t)v.gid_index, .hop_limit = 1}};
    CHECK((to_group = ibv_create_ah(v.pd, &way)));
    way.grh.dgid = theirs.gid;
    way.dlid = (uint16_t)theirs.lid;
    CHECK((to_other = ibv_create_ah(v.pd, &way)));
    char there = 1;
    swap(&v, &there, &there, 1);
    uint64_t common = v.seed, sum = 0;
    long number = 0, direct = 0;
    for (long round = 0; round < v.rounds; round++) {
        unsigned what = (unsigned)(mix(&common) % 32);
        int leaves = (int)(mix(&common) % 2) == v.listens;
        if (what == 0) {
            /* One is out of the group: what comes to it alone overtakes nothing, and nothing has come to the group before it. */
            both(to_group, 0xffffff, number, 0);
            if (leaves) CHECK(ibv_detach_mcast(qp, &group, lid) == 0);
            both(to_other, theirs.qpn, direct, 1);
            number++;
            long before = last;
            if (!leaves) say(to_group, 0xffffff, number, 0);
            direct++;
            until(to_other, theirs.qpn, direct, 1, &alone, direct);
            both(to_other, theirs.qpn, direct, 1);
            CHECK(last == before);
            if (leaves) CHECK(ibv_attach_mcast(qp, &group, lid) == 0);
            /* Both go on with the same number. */
            last = number;
            both(to_other, theirs.qpn, direct, 1);
            continue;
        }
        number++;
        /* Both say the same number, each when it has heard of the one before. */
        until(to_group, 0xffffff, number, 0, &last, number);
        uint64_t state = pattern(number * 2, !v.listens) ^ pattern(number * 2, v.listens);
        sum += mix(&state);
    }
    both(to_group, 0xffffff, number, 0);
    return finish(sum);
}
