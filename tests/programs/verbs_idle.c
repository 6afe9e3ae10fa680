/* Queue pairs that lie idle, in RESET or INIT, some with a receive posted, and are connected crosswise, by numbers that were told in the
 * beginning: three ranks, 72 queue pairs each. In a round a queue pair of each two ranks is connected with whichever of the other's, each
 * sends a message, and both begin anew. FILE.made: all of them are there. See verbs.h. */
#include "verbs.h"
enum { RANKS = 3, MANY = 36, WORDS = 16 };
struct area { uint64_t in[RANKS][MANY][WORDS], out[RANKS][WORDS]; };
static struct verbs v;
static struct ibv_qp *qps[RANKS][MANY];
static int posted[RANKS][MANY];
static struct side told[RANKS][RANKS][MANY];
static void receive(int to, int k) {
    struct ibv_sge sge = {.addr = (uintptr_t)((struct area *)v.memory)->in[to][k], .length = WORDS * 8, .lkey = v.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = (uint64_t)(to * MANY + k), .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(ibv_post_recv(qps[to][k], &wr, &bad) == 0);
    posted[to][k] = 1;
}
int main(int argc, char **argv) {
    int own_rank = (int)argument(argc, argv, 3, 0), tcp[RANKS];
    CHECK(argc > 4);
    v.rounds = argument(argc, argv, 1, 100);
    v.seed = (uint64_t)argument(argc, argv, 2, 1);
    mesh(own_rank, RANKS, argv[4], tcp);
    prepare(&v, sizeof(struct area), 1024, 0);
    struct area *a = (struct area *)v.memory;
    for (int to = 0; to < RANKS; to++) {
        if (to == own_rank) continue;
        for (int k = 0; k < MANY; k++) {
            struct ibv_qp_init_attr attr = {.send_cq = v.cq, .recv_cq = v.cq, .qp_type = IBV_QPT_RC,
                .cap = {.max_send_wr = 2, .max_recv_wr = 2, .max_send_sge = 1, .max_recv_sge = 1}};
            CHECK((qps[to][k] = ibv_create_qp(v.pd, &attr)));
            told[own_rank][to][k] = own(&v, qps[to][k]);
        }
    }
    for (int to = 0; to < RANKS; to++)
        if (to != own_rank) all(tcp[to], told[own_rank], sizeof told[own_rank], 1);
    for (int to = 0; to < RANKS; to++)
        if (to != own_rank) all(tcp[to], told[to], sizeof told[to], 0);
    /* Those that are made where former neighbours are on two hosts have an address that leads nowhere: none of these is. */
    if (own_rank == 0) {
        char name[4096];
        CHECK(snprintf(name, sizeof name, "%s.made", argv[4]) < (int)sizeof name);
        FILE *file = fopen(name, "w");
        CHECK(file && fclose(file) == 0);
    }
    uint64_t common = v.seed, sum = 0;
    for (long round = 0; round < v.rounds; round++) {
        int pick[RANKS][RANKS];
        for (int i = 0; i < RANKS; i++)
            for (int j = 0; j < RANKS; j++) pick[i][j] = (int)(mix(&common) % MANY);
        unsigned after = (unsigned)mix(&common);
        for (int to = 0; to < RANKS; to++) {
            if (to == own_rank) continue;
            int k = pick[own_rank][to];
            struct ibv_qp *qp = qps[to][k];
            struct side *s = &told[own_rank][to][k];
            CHECK(qp->qp_num == s->qpn);
            if (qp->state == IBV_QPS_RESET) ready(qp);
            join(&v, qp, s->psn, &told[to][own_rank][pick[to][own_rank]]);
            if (!posted[to][k]) receive(to, k);
        }
        char byte = 1;
        for (int to = 0; to < RANKS; to++) if (to != own_rank) all(tcp[to], &byte, 1, 1);
        for (int to = 0; to < RANKS; to++) if (to != own_rank) all(tcp[to], &byte, 1, 0);
        for (int to = 0; to < RANKS; to++) {
            if (to == own_rank) continue;
            uint64_t state = v.seed + (uint64_t)(round * 9 + own_rank * 3 + to);
            for (int w = 0; w < WORDS; w++) a->out[to][w] = mix(&state);
            struct ibv_sge sge = {.addr = (uintptr_t)a->out[to], .length = WORDS * 8, .lkey = v.mr->lkey};
            struct ibv_send_wr wr = {.wr_id = 1000000, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED}, *bad;
            CHECK(ibv_post_send(qps[to][pick[own_rank][to]], &wr, &bad) == 0);
        }
        for (int sent = 0, came = 0; sent < RANKS - 1 || came < RANKS - 1;) {
            struct ibv_wc wc = completion(&v);
            if (wc.wr_id == 1000000) { sent++; continue; }
            int from = (int)wc.wr_id / MANY, k = (int)wc.wr_id % MANY;
            CHECK(from < RANKS && k == pick[own_rank][from] && wc.qp_num == qps[from][k]->qp_num);
            uint64_t state = v.seed + (uint64_t)(round * 9 + from * 3 + own_rank);
            for (int w = 0; w < WORDS; w++) {
                uint64_t word = mix(&state);
                CHECK(a->in[from][k][w] == word);
                sum += word;
            }
            posted[from][k] = 0;
            came++;
        }
        for (int to = 0; to < RANKS; to++) if (to != own_rank) all(tcp[to], &byte, 1, 1);
        for (int to = 0; to < RANKS; to++) if (to != own_rank) all(tcp[to], &byte, 1, 0);
        for (int to = 0; to < RANKS; to++) {
            if (to == own_rank) continue;
            int k = pick[own_rank][to];
            struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
            CHECK(ibv_modify_qp(qps[to][k], &reset, IBV_QP_STATE) == 0);
            if (after >> to & 1) ready(qps[to][k]);
            if (after >> to & 1 && after >> (to + 8) & 1) receive(to, k);
        }
    }
    for (int to = 0; to < RANKS; to++) if (to != own_rank) all(tcp[to], &sum, sizeof sum, 1);
    uint64_t total = sum;
    for (int to = 0; to < RANKS; to++) {
        uint64_t other;
        if (to == own_rank) continue;
        all(tcp[to], &other, sizeof other, 0);
        total += other;
    }
    return finish(total);
}
