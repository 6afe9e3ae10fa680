/* Queue pairs and regions come and go: a queue pair is made anew, with completions of the former one that nobody has asked for; or it
 * begins anew and is connected with the same other end, by the numbers that were told long ago; a region is another one, or registered
 * again elsewhere, and its key is told to the other end. Then each writes into the other's region and sends a message after that. While
 * nobody writes, the region's memory can be read only, or not even that. See verbs.h. */
#include "verbs.h"
#include <sys/mman.h>
enum { WORDS = 32, PAGE = 4096 };
struct told { uint64_t address; uint32_t rkey; };
static uint64_t *in, kept[WORDS];
static void allow(void) {
    CHECK(mprotect(in, PAGE, PROT_READ | PROT_WRITE) == 0 && memcmp(in, kept, sizeof kept) == 0);
}
int main(int argc, char **argv) {
    struct verbs v = {0};
    start(&v, argc, argv, 4096, 64, 0);
    struct ibv_qp *qp = pair(&v, NULL, 16, 4, 0);
    struct side mine = own(&v, qp), theirs = connected(&v, qp);
    uint64_t *out = (uint64_t *)v.memory, common = v.seed, sum = 0;
    struct ibv_mr *region = NULL, *local = NULL;
    struct told there = {0};
    for (long round = 0; round < v.rounds; round++) {
        unsigned action = round ? mix(&common) % 4 : 2;
        if (action == 0) {
            CHECK(ibv_destroy_qp(qp) == 0);
            qp = pair(&v, NULL, 16, 4, 0);
            mine = own(&v, qp);
            theirs = connected(&v, qp);
        } else if (action == 1) {
            struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
            char both = 1;
            CHECK(ibv_modify_qp(qp, &reset, IBV_QP_STATE) == 0);
            swap(&v, &both, &both, 1);
            ready(qp);
            join(&v, qp, mine.psn, &theirs);
            swap(&v, &both, &both, 1);
        } else if (action == 2) {
            uint64_t *new = aligned_alloc(PAGE, PAGE);
            CHECK(new);
            /* One that others have no access to: its remote key may be 0, as that of others of the kind. */
            if (local) CHECK(ibv_dereg_mr(local) == 0);
            CHECK((local = ibv_reg_mr(v.pd, out, WORDS * 8, IBV_ACCESS_LOCAL_WRITE)));
            /* The same region elsewhere, if the device can do that. */
            if (!region || mix(&common) % 2 || ibv_rereg_mr(region, IBV_REREG_MR_CHANGE_TRANSLATION, NULL, new, WORDS * 8, 0)) {
                if (region) CHECK(ibv_dereg_mr(region) == 0);
                CHECK((region = ibv_reg_mr(v.pd, new, WORDS * 8, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)));
            }
            if (in) allow();
            free(in);
            in = memcpy(new, kept, sizeof kept);
            struct told own = {.address = (uintptr_t)in, .rkey = region->rkey};
            swap(&v, &own, &there, sizeof own);
        }
        struct ibv_sge to = {.addr = (uintptr_t)out, .length = 0, .lkey = v.mr->lkey};
        struct ibv_recv_wr rr = {.wr_id = 7, .sg_list = &to, .num_sge = 0}, *worse;
        CHECK(ibv_post_recv(qp, &rr, &worse) == 0);
        char both = 1;
        allow();
        swap(&v, &both, &both, 1);
        uint64_t here = v.seed * 1000 + (uint64_t)round * 2 + (uint64_t)v.listens, other = here ^ 1;
        for (int k = 0; k < WORDS; k++) out[k] = mix(&here);
        struct ibv_sge sge = {.addr = (uintptr_t)out, .length = WORDS * 8, .lkey = v.mr->lkey};
        struct ibv_send_wr message = {.wr_id = 8, .opcode = IBV_WR_SEND_WITH_IMM, .imm_data = htonl((uint32_t)round), .send_flags = IBV_SEND_SIGNALED},
            wr = {.wr_id = 9, .next = &message, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                .wr.rdma = {.remote_addr = there.address, .rkey = there.rkey}}, *bad;
        CHECK(ibv_post_send(qp, &wr, &bad) == 0);
        for (int sent = 0, came = 0; !sent || !came;) {
            struct ibv_wc wc = completion(&v);
            CHECK(wc.qp_num == qp->qp_num && (wc.wr_id == 7 || wc.wr_id == 8));
            if (wc.wr_id == 8) { sent++; continue; }
            CHECK((wc.wc_flags & IBV_WC_WITH_IMM) && ntohl(wc.imm_data) == (uint32_t)round);
            came++;
        }
        for (int k = 0; k < WORDS; k++) {
            uint64_t word = mix(&other);
            CHECK((kept[k] = in[k]) == word);
            sum += word ^ out[k];
        }
        CHECK(mprotect(in, PAGE, round % 2 ? PROT_READ : PROT_NONE) == 0);
        /* Both have looked. */
        swap(&v, &both, &both, 1);
    }
    return finish(sum);
}
