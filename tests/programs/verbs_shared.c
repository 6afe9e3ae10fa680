/* Many queue pairs, 200 or QPS, of which all receives are from one shared queue: which one a message has come by stands in its completion.
 * Now and then the queue is empty, and they wait (RNR). Requests are built piece by piece, completions looked at one by one (the extended
 * interfaces). See verbs.h. */
#include "verbs.h"
enum { USUAL = 200, MANY = 2048, DEPTH = 64, MOST = 256 };
struct area { char in[DEPTH][MOST], out[MANY][MOST]; };
static uint32_t numbers[MANY];
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, sizeof(struct area), 1, 0);
    struct area *a = (struct area *)v.memory;
    const char *wanted = getenv("QPS");
    int many = wanted ? atoi(wanted) : USUAL;
    CHECK(many > 0 && many <= MANY);
    struct ibv_cq_init_attr_ex cattr = {.cqe = 2 * DEPTH + (uint32_t)many, .wc_flags = IBV_WC_EX_WITH_QP_NUM | IBV_WC_EX_WITH_IMM | IBV_WC_EX_WITH_BYTE_LEN};
    struct ibv_cq_ex *cq = ibv_create_cq_ex(v.context, &cattr);
    struct ibv_srq_init_attr sattr = {.attr = {.max_wr = DEPTH, .max_sge = 1}};
    struct ibv_srq *srq = ibv_create_srq(v.pd, &sattr);
    CHECK(cq && srq);
    ibv_destroy_cq(v.cq);
    v.cq = ibv_cq_ex_to_cq(cq);
    struct ibv_qp *qps[MANY];
    for (int k = 0; k < many; k++) {
        struct ibv_qp_init_attr_ex attr = {.send_cq = v.cq, .recv_cq = v.cq, .srq = srq, .qp_type = IBV_QPT_RC, .pd = v.pd,
            .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .send_ops_flags = IBV_QP_EX_WITH_SEND_WITH_IMM,
            .cap = {.max_send_wr = 2, .max_send_sge = 1, .max_inline_data = 32}};
        CHECK((qps[k] = ibv_create_qp_ex(v.context, &attr)));
        struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = 1};
        CHECK(ibv_modify_qp(qps[k], &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0);
    }
    for (int k = 0; k < DEPTH; k++) {
        struct ibv_sge sge = {.addr = (uintptr_t)a->in[k], .length = MOST, .lkey = v.mr->lkey};
        struct ibv_recv_wr wr = {.wr_id = MANY + (uint64_t)k, .sg_list = &sge, .num_sge = 1}, *bad;
        CHECK(ibv_post_srq_recv(srq, &wr, &bad) == 0);
    }
    for (int k = 0; k < many; k++) { connected(&v, qps[k]); numbers[k] = qps[k]->qp_num; }
    uint64_t mine = v.seed + (uint64_t)v.listens, sum = 0;
    static uint64_t theirs[MANY], at[MANY];
    long sent = 0, done = 0, got = 0;
    int k = -1;
    for (int k = 0; k < many; k++) theirs[k] = (v.seed + (uint64_t)!v.listens) * 1000 + (uint64_t)k;
    static uint64_t states[MANY];
    for (int k = 0; k < many; k++) states[k] = (v.seed + (uint64_t)v.listens) * 1000 + (uint64_t)k;
    while (got < v.rounds || done < v.rounds) {
        while (sent < v.rounds) {
            if (k < 0) k = (int)(mix(&mine) % (uint64_t)many);
            if (at[k]) break;
            uint32_t n = (uint32_t)(16 + mix(&states[k]) % (MOST - 16));
            for (uint32_t b = 0; b < n; b++) a->out[k][b] = (char)(mix(&states[k]) >> 9);
            struct ibv_qp_ex *x = ibv_qp_to_qp_ex(qps[k]);
            CHECK(x);
            ibv_wr_start(x);
            x->wr_id = (uint64_t)k;
            x->wr_flags = IBV_SEND_SIGNALED;
            ibv_wr_send_imm(x, htonl((uint32_t)k));
            if (n <= 32) ibv_wr_set_inline_data(x, a->out[k], n);
            else ibv_wr_set_sge(x, v.mr->lkey, (uintptr_t)a->out[k], n);
            CHECK(ibv_wr_complete(x) == 0);
            at[k] = 1;
            k = -1;
            sent++;
        }
        struct ibv_poll_cq_attr none = {0};
        int r = ibv_start_poll(cq, &none);
        if (r == ENOENT) { usleep(20); continue; }
        CHECK(r == 0);
        do {
            if (cq->status != IBV_WC_SUCCESS) fprintf(stderr, "%s\n", ibv_wc_status_str(cq->status));
            CHECK(cq->status == IBV_WC_SUCCESS);
            if (cq->wr_id < MANY) { at[cq->wr_id] = 0; done++; continue; }
            uint32_t by = ntohl(ibv_wc_read_imm_data(cq));
            CHECK(by < (uint32_t)many && ibv_wc_read_qp_num(cq) == numbers[by] && numbers[by] == qps[by]->qp_num);
            int slot = (int)(cq->wr_id - MANY);
            uint32_t n = (uint32_t)(16 + mix(&theirs[by]) % (MOST - 16));
            CHECK(ibv_wc_read_byte_len(cq) == n);
            for (uint32_t b = 0; b < n; b++) CHECK(a->in[slot][b] == (char)(mix(&theirs[by]) >> 9));
            sum += hash(by, a->in[slot], n);
            got++;
            struct ibv_sge sge = {.addr = (uintptr_t)a->in[slot], .length = MOST, .lkey = v.mr->lkey};
            struct ibv_recv_wr wr = {.wr_id = cq->wr_id, .sg_list = &sge, .num_sge = 1}, *bad;
            CHECK(ibv_post_srq_recv(srq, &wr, &bad) == 0);
        } while ((r = ibv_next_poll(cq)) == 0);
        ibv_end_poll(cq);
        CHECK(r == ENOENT);
    }
    uint64_t other;
    swap(&v, &sum, &other, sizeof sum);
    sum += other;
    return finish(sum);
}
