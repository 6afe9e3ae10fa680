/* What a port and a queue pair are called holds for ever: three ranks, which ask each other by datagrams and answer. Devices are opened more
 * than once, closed, opened again, and by the last rank late; handles of addresses are kept from the beginning, made anew, made
 * from completions, and from completions and headers that were kept; queue pairs are made anew. SPLIT: what was one port may be two: then a
 * queue pair that was made since may not be found by what it was told as (EADDRNOTAVAIL), but by where its datagrams come from. See verbs.h. */
#include "verbs.h"
#include <time.h>
enum { RANKS = 3, DEPTH = 32, SLOT = 128, KEPT = DEPTH + 1, ENDS = 2 };
struct message { uint32_t from, end, to, answers; uint64_t round, value; };
/* A queue pair, with a context of its own. */
struct end { struct verbs v; struct ibv_qp *qp; int open; };
static struct end ends[ENDS];
static struct side told[RANKS][ENDS];
static struct ibv_ah *handles[RANKS];
static struct { int is; struct ibv_wc wc; struct ibv_grh grh; } kept[RANKS];
static int me, tcp[RANKS], present[RANKS];
static long now, undecided;
static uint64_t seed;

static long ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
static uint64_t value(uint64_t round, int from, int to) {
    uint64_t state = seed + round * 9 + (uint64_t)(from * 3 + to);
    return mix(&state);
}
static void receive(struct end *e, uint64_t slot) {
    struct ibv_sge sge = {.addr = (uintptr_t)e->v.memory + slot * SLOT, .length = SLOT, .lkey = e->v.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = slot, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(ibv_post_recv(e->qp, &wr, &bad) == 0);
}
static void begin(int n) {
    struct end *e = &ends[n];
    memset(e, 0, sizeof *e);
    prepare(&e->v, DEPTH * SLOT, 4 * DEPTH, 0);
    struct ibv_qp_init_attr attr = {.send_cq = e->v.cq, .recv_cq = e->v.cq, .qp_type = IBV_QPT_UD,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 64}};
    CHECK((e->qp = ibv_create_qp(e->v.pd, &attr)));
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = 0x1234}, b = {.qp_state = IBV_QPS_RTR}, c = {.qp_state = IBV_QPS_RTS};
    CHECK(ibv_modify_qp(e->qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY) == 0);
    CHECK(ibv_modify_qp(e->qp, &b, IBV_QP_STATE) == 0 && ibv_modify_qp(e->qp, &c, IBV_QP_STATE | IBV_QP_SQ_PSN) == 0);
    for (uint64_t slot = 0; slot < DEPTH; slot++) receive(e, slot);
    struct side s = own(&e->v, e->qp);
    /* Whoever opens it, and when. */
    struct side *first = &told[me][0];
    if (first->qpn) CHECK(!memcmp(&first->gid, &s.gid, sizeof s.gid) && first->lid == s.lid);
    told[me][n] = s;
}
static void end(int n) {
    struct end *e = &ends[n];
    if (!e->qp) return;
    CHECK(ibv_destroy_qp(e->qp) == 0 && ibv_destroy_cq(e->v.cq) == 0 && ibv_dereg_mr(e->v.mr) == 0);
    free(e->v.memory);
    CHECK(ibv_dealloc_pd(e->v.pd) == 0 && ibv_close_device(e->v.context) == 0);
    e->qp = NULL;
}
static struct ibv_ah *handle(struct end *e, const struct side *to) {
    struct ibv_ah_attr attr = {.is_global = (uint8_t)e->v.global, .dlid = (uint16_t)to->lid, .port_num = 1,
        .grh = {.dgid = to->gid, .sgid_index = (uint8_t)e->v.gid_index, .hop_limit = 1}};
    struct ibv_ah *ah = ibv_create_ah(e->v.pd, &attr);
    CHECK(ah);
    return ah;
}
static int post(struct end *e, struct ibv_ah *ah, uint32_t number, struct message *m, uint64_t id) {
    struct ibv_sge sge = {.addr = (uintptr_t)m, .length = sizeof *m};
    struct ibv_send_wr wr = {.wr_id = id, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE,
        .wr.ud = {.ah = ah, .remote_qpn = number, .remote_qkey = 0x1234}}, *bad;
    int r = ibv_post_send(e->qp, &wr, &bad);
    e->open += r == 0;
    return r;
}
/* What has come by one end; answers are marked. */
static void serve(int n, int *answered) {
    struct end *e = &ends[n];
    struct ibv_wc wc;
    while (e->qp && ibv_poll_cq(e->v.cq, 1, &wc) == 1) {
        CHECK(wc.status == IBV_WC_SUCCESS && wc.qp_num == e->qp->qp_num);
        if (wc.opcode == IBV_WC_SEND) {
            e->open--;
            if (wc.wr_id != KEPT) CHECK(ibv_destroy_ah((struct ibv_ah *)(uintptr_t)wc.wr_id) == 0);
            continue;
        }
        char *slot = e->v.memory + wc.wr_id * SLOT;
        struct ibv_grh *grh = (struct ibv_grh *)slot;
        struct message m;
        CHECK(wc.byte_len == sizeof *grh + sizeof m && !(wc.wc_flags & IBV_WC_GRH) == !e->v.global);
        memcpy(&m, slot + sizeof *grh, sizeof m);
        /* Of an earlier round, asked twice: its queue pair may be gone. */
        if (m.round >= (uint64_t)now) {
            CHECK((int)m.to == me && m.from < RANKS && m.end < ENDS);
            CHECK(m.value == value(m.round, (int)m.from, me));
            if (m.round == (uint64_t)now) CHECK(wc.src_qp == told[m.from][m.end].qpn);
            if (m.answers) {
                answered[m.from] = 1;
            } else {
                struct message answer = {.from = (uint32_t)me, .end = (uint32_t)n, .to = m.from, .answers = 1, .round = m.round, .value = value(m.round, me, (int)m.from)};
                struct ibv_ah *ah = ibv_create_ah_from_wc(e->v.pd, &wc, grh, 1);
                CHECK(ah);
                int r = post(e, ah, wc.src_qp, &answer, (uintptr_t)ah);
                errno = r;
                CHECK(r == 0);
                if (m.round == (uint64_t)now && !n && !m.end) {
                    kept[m.from].is = 1;
                    kept[m.from].wc = wc;
                    kept[m.from].grh = *grh;
                }
            }
        }
        receive(e, wc.wr_id);
    }
}
/* Asks those of `whom` from one end, until all have answered; answers until nobody asks any more. */
static void ask(int n, const int *whom, struct ibv_ah **by, const uint32_t *numbers) {
    int answered[RANKS] = {0}, over[RANKS] = {0}, said = 0, all_over = 0;
    for (long next = 0; !all_over;) {
        int missing = 0, again = ms() >= next;
        if (again) next = ms() + 150;
        for (int k = 0; k < RANKS; k++) {
            if (k == me || !whom[k] || answered[k]) continue;
            missing++;
            struct message m = {.from = (uint32_t)me, .end = (uint32_t)n, .to = (uint32_t)k, .round = (uint64_t)now, .value = value((uint64_t)now, me, k)};
            int r = again ? post(&ends[n], by[k], numbers[k], &m, KEPT) : 0;
            if (r == EADDRNOTAVAIL && getenv("SPLIT")) { undecided++; answered[k] = 1; continue; }
            errno = r;
            CHECK(r == 0);
        }
        for (int e = 0; e < ENDS; e++) serve(e, answered);
        char byte = 1;
        for (int k = 0; k < RANKS && !missing && !said; k++) if (k != me) all(tcp[k], &byte, 1, 1);
        if (!missing) said = 1;
        all_over = said;
        for (int k = 0; k < RANKS; k++) {
            if (k != me && !over[k] && recv(tcp[k], &byte, 1, MSG_DONTWAIT) == 1) over[k] = 1;
            if (k != me && !over[k]) all_over = 0;
        }
        if (ends[0].open || ends[1].open) all_over = 0;
        if (!all_over) usleep(50);
    }
}
/* All hear what one calls its ends now. */
static void tell(int who) {
    for (int k = 0; k < RANKS; k++) if (who == me && k != me) all(tcp[k], told[me], sizeof told[me], 1);
    if (who != me) all(tcp[who], told[who], sizeof told[who], 0);
}
int main(int argc, char **argv) {
    CHECK(argc > 4);
    long rounds = argument(argc, argv, 1, 100);
    seed = (uint64_t)argument(argc, argv, 2, 1);
    me = (int)argument(argc, argv, 3, 0);
    mesh(me, RANKS, argv[4], tcp);
    uint64_t common = seed, sum = 0;
    for (now = 0; now < rounds; now++) {
        unsigned action = (unsigned)(mix(&common) % 5), who = (unsigned)(mix(&common) % RANKS);
        for (int k = 0; k < RANKS; k++) {
            /* The last one looks late. */
            if (present[k] || (k == RANKS - 1 && now < rounds / 3)) continue;
            if (k == me) begin(0);
            tell(k);
            present[k] = 1;
        }
        if (!present[who]) action = 0;
        if (present[me]) {
            struct ibv_port_attr port;
            union ibv_gid gid;
            CHECK(ibv_query_port(ends[0].v.context, 1, &port) == 0 && port.lid == told[me][0].lid);
            CHECK(ibv_query_gid(ends[0].v.context, 1, ends[0].v.gid_index, &gid) == 0 && !memcmp(&gid, &told[me][0].gid, sizeof gid));
        }
        if (action == 1 || action == 2) {
            /* Another context; or all are closed, and there is another first one. */
            if ((int)who == me) {
                end(1);
                for (int k = 0; k < RANKS && action == 2; k++) {
                    if (handles[k]) CHECK(ibv_destroy_ah(handles[k]) == 0);
                    handles[k] = NULL;
                    kept[k].is = 0;
                }
                if (action == 2) end(0);
                begin(action == 2 ? 0 : 1);
            }
            tell((int)who);
            if (action == 2) kept[who].is = 0;
        }
        int whom[RANKS] = {0};
        uint32_t numbers[RANKS] = {0};
        struct ibv_ah *by[RANKS] = {0}, *new[RANKS] = {0};
        int from = action == 1 && (int)who == me;
        for (int k = 0; k < RANKS; k++) {
            if (k == me || !present[me] || !present[k]) continue;
            if (!handles[k]) handles[k] = handle(&ends[0], &told[k][0]);
            whom[k] = 1;
            by[k] = handles[k];
            numbers[k] = told[k][0].qpn;
            if (action == 1 && (int)who == k) numbers[k] = told[k][1].qpn;
            if (action == 3 || from) by[k] = new[k] = handle(&ends[from], &told[k][0]);
            if (action == 4 && kept[k].is) {
                struct ibv_ah_attr attr;
                CHECK(ibv_init_ah_from_wc(ends[0].v.context, 1, &kept[k].wc, &kept[k].grh, &attr) == 0 && attr.is_global == ends[0].v.global);
                CHECK((by[k] = new[k] = ibv_create_ah_from_wc(ends[0].v.pd, &kept[k].wc, &kept[k].grh, 1)));
                numbers[k] = kept[k].wc.src_qp;
                CHECK(numbers[k] == told[k][0].qpn);
            }
            sum += value((uint64_t)now, me, k) ^ value((uint64_t)now, k, me);
        }
        ask(from, whom, by, numbers);
        for (int k = 0; k < RANKS; k++) if (new[k]) CHECK(ibv_destroy_ah(new[k]) == 0);
    }
    for (int k = 0; k < RANKS; k++) if (k != me) all(tcp[k], &sum, sizeof sum, 1);
    uint64_t total = sum;
    for (int k = 0; k < RANKS; k++) {
        uint64_t other = 0;
        if (k != me) all(tcp[k], &other, sizeof other, 0);
        total += other;
    }
    fprintf(stderr, "%ld could not be decided\n", undecided);
    return finish(total);
}
