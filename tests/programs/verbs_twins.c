/* Two devices, each with a queue pair to the other end's and many regions, whose keys are unique on one device only: each end writes from one
 * region into one of the other end's, reads that back into a third place, and sees what was written to it. All in a partition that has another
 * place at each port. See verbs.h. */
#include "verbs.h"
#define REGIONS 24
struct place { uint64_t address; uint32_t rkey; };

static uint64_t *word(struct verbs *v, uint64_t region, int k) { return (uint64_t *)(v->memory + region * 4096) + k; }

static void request(struct verbs *v, struct ibv_qp *qp, enum ibv_wr_opcode opcode, uint64_t *own, struct ibv_mr *mr, const struct place *to) {
    struct ibv_sge sge = {.addr = (uintptr_t)own, .length = 8, .lkey = mr->lkey};
    struct ibv_send_wr wr = {.sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED,
        .wr.rdma = {.remote_addr = to->address, .rkey = to->rkey}}, *bad;
    CHECK(ibv_post_send(qp, &wr, &bad) == 0);
    completion(v);
}

/* Where the port has the key of the partition. */
static uint16_t partition(struct verbs *v) {
    for (int k = 0; k < v->port.pkey_tbl_len; k++) {
        uint16_t key;
        CHECK(ibv_query_pkey(v->context, 1, k, &key) == 0);
        if (ntohs(key) == 0x8001) return (uint16_t)k;
    }
    CHECK(!"in the partition");
    return 0;
}

int main(int argc, char **argv) {
    struct verbs v[2] = {{0}, {0}};
    struct ibv_qp *qp[2];
    struct ibv_mr *mr[2][REGIONS];
    struct place mine[2][REGIONS], theirs[2][REGIONS];
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
    CHECK(setenv("DEVICE", "model0", 1) == 0);
    start(&v[0], argc, argv, REGIONS * 4096, 16, 0);
    CHECK(setenv("DEVICE", "model1", 1) == 0);
    v[1].tcp = v[0].tcp;
    prepare(&v[1], REGIONS * 4096, 16, 0);
    for (int d = 0; d < 2; d++)
        for (int k = 0; k < REGIONS; k++) {
            CHECK((mr[d][k] = ibv_reg_mr(v[d].pd, word(&v[d], (uint64_t)k, 0), 4096, access)));
            mine[d][k] = (struct place){.address = (uintptr_t)word(&v[d], (uint64_t)k, 0), .rkey = mr[d][k]->rkey};
        }
    swap(&v[0], mine, theirs, sizeof mine);
    uint16_t places[2] = {partition(&v[0]), partition(&v[1])};
    for (int d = 0; d < 2; d++) {
        struct ibv_qp_attr a = {.pkey_index = places[d]};
        CHECK((qp[d] = pair(&v[d], NULL, 4, 4, 0)) && ibv_modify_qp(qp[d], &a, IBV_QP_PKEY_INDEX) == 0);
        connected(&v[d], qp[d]);
    }
    uint64_t state = v[0].seed, sum = 0;
    for (long round = 0; round < v[0].rounds; round++) {
        uint64_t what = mix(&state), d = what & 1, from = (what >> 1) % REGIONS, to = (what >> 9) % REGIONS;
        *word(&v[d], from, 1) = what + (uint64_t)v[0].listens;
        request(&v[d], qp[d], IBV_WR_RDMA_WRITE, word(&v[d], from, 1), mr[d][from], &theirs[d][to]);
        request(&v[d], qp[d], IBV_WR_RDMA_READ, word(&v[d], from, 2), mr[d][from], &theirs[d][to]);
        CHECK(*word(&v[d], from, 2) == what + (uint64_t)v[0].listens);
        char both = 1;
        swap(&v[0], &both, &both, 1);
        CHECK(*word(&v[d], to, 0) == what + (uint64_t)!v[0].listens);
        sum += what;
        swap(&v[0], &both, &both, 1);
    }
    for (int d = 0; d < 2; d++) {
        struct ibv_qp_attr a;
        struct ibv_qp_init_attr init;
        CHECK(ibv_query_qp(qp[d], &a, IBV_QP_PKEY_INDEX, &init) == 0 && a.pkey_index == places[d]);
        CHECK(partition(&v[d]) == places[d] && ibv_get_pkey_index(v[d].context, 1, htons(0x8001)) == places[d]);
    }
    return finish(sum);
}
