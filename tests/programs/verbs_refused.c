/* What is not had under Stillpoint, and says so; then five things with which no checkpoint can be taken, one after the other: FILE.N is
 * written when the Nth is there, and it goes when FILE.N.go is. See verbs.h. Of the arguments, ROUNDS and SEED are not used. */
#include "verbs.h"
#include <sys/mman.h>
static const char *name;
static void stage(int number) {
    char file[4096];
    CHECK(snprintf(file, sizeof file, "%s.%d", name, number) < (int)sizeof file - 3);
    FILE *there = fopen(file, "w");
    CHECK(there && fclose(there) == 0);
    strcat(file, ".go");
    while (access(file, F_OK) != 0) pace();
}
/* The pointer is null, and errno says that there is no such thing. */
static void none(const void *object, const char *what) {
    if (object || errno != EOPNOTSUPP) fprintf(stderr, "%s: %s\n", what, object ? "there is one" : strerror(errno));
    CHECK(!object && errno == EOPNOTSUPP);
    errno = 0;
}
#define NONE(function, ...) none(function(__VA_ARGS__), #function)
int main(int argc, char **argv) {
    CHECK(argc > 4);
    name = argv[4];
    struct verbs v = {.rnr_timer = 0};
    prepare(&v, 4096, 16, 0);
    struct ibv_qp *qp = pair(&v, NULL, 4, 4, 0);

    struct ibv_parent_domain_init_attr parent = {.pd = v.pd};
    struct ibv_flow_attr flow = {.type = IBV_FLOW_ATTR_NORMAL, .size = sizeof flow, .port = 1};
    struct ibv_alloc_dm_attr memory = {.length = 4096};
    struct ibv_counters_init_attr counters = {0};
    struct ibv_qp_open_attr open = {.comp_mask = IBV_QP_OPEN_ATTR_NUM, .qp_num = qp->qp_num};
    NONE(ibv_alloc_parent_domain, v.context, &parent);
    NONE(ibv_create_flow, qp, &flow);
    NONE(ibv_alloc_dm, v.context, &memory);
    NONE(ibv_create_counters, v.context, &counters);
    NONE(ibv_open_qp, v.context, &open);
    NONE(ibv_import_device, -1);
    NONE(ibv_import_pd, v.context, 1);
    NONE(ibv_import_mr, v.pd, 1);
    NONE(ibv_reg_dmabuf_mr, v.pd, 0, 4096, 0, -1, IBV_ACCESS_LOCAL_WRITE);

    /* Connected with one of another machine, where no process of the job is. */
    struct side stranger = own(&v, qp);
    stranger.gid.raw[15] ^= 0x55;
    join(&v, qp, 0, &stranger);
    stage(1);
    CHECK(ibv_destroy_qp(qp) == 0);

    /* A window that is bound, by a queue pair that is in error since. */
    struct ibv_qp *ends[2] = {pair(&v, NULL, 4, 4, 0), pair(&v, NULL, 4, 4, 0)};
    struct side sides[2] = {own(&v, ends[0]), own(&v, ends[1])};
    for (int k = 0; k < 2; k++) join(&v, ends[k], sides[k].psn, &sides[!k]);
    struct ibv_mr *region = ibv_reg_mr(v.pd, v.memory, 4096, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_MW_BIND);
    struct ibv_mw *window = ibv_alloc_mw(v.pd, IBV_MW_TYPE_2);
    CHECK(region && window);
    struct ibv_send_wr wr = {.opcode = IBV_WR_BIND_MW, .send_flags = IBV_SEND_SIGNALED,
        .bind_mw = {.mw = window, .rkey = ibv_inc_rkey(window->rkey), .bind_info = {.mr = region, .addr = (uintptr_t)v.memory,
            .length = 64, .mw_access_flags = IBV_ACCESS_REMOTE_WRITE}}}, *bad;
    CHECK(ibv_post_send(ends[0], &wr, &bad) == 0);
    completion(&v);
    struct ibv_qp_attr error = {.qp_state = IBV_QPS_ERR};
    CHECK(ibv_modify_qp(ends[0], &error, IBV_QP_STATE) == 0);
    stage(2);
    CHECK(ibv_dealloc_mw(window) == 0);

    /* A queue pair of a kind that is not saved. */
    struct ibv_qp_init_attr raw = {.send_cq = v.cq, .recv_cq = v.cq, .qp_type = IBV_QPT_RAW_PACKET,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp *packets = ibv_create_qp(v.pd, &raw);
    CHECK(packets);
    stage(3);
    CHECK(ibv_destroy_qp(packets) == 0);

    /* A region over memory that is gone. */
    void *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    struct ibv_mr *half = ibv_reg_mr(v.pd, page, 8192, IBV_ACCESS_LOCAL_WRITE);
    CHECK(half && munmap((char *)page + 4096, 4096) == 0);
    stage(4);
    CHECK(ibv_dereg_mr(half) == 0);

    /* Another path to the other end; without it once it begins anew. */
    struct ibv_qp_attr path = {.alt_ah_attr = {.is_global = (uint8_t)v.global, .dlid = (uint16_t)sides[0].lid, .port_num = 1,
        .grh = {.dgid = sides[0].gid, .sgid_index = (uint8_t)v.gid_index, .hop_limit = 1}}, .alt_port_num = 1, .alt_timeout = 14};
    CHECK(ibv_modify_qp(ends[1], &path, IBV_QP_ALT_PATH) == 0);
    stage(5);
    struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
    CHECK(ibv_modify_qp(ends[1], &reset, IBV_QP_STATE) == 0);
    CHECK(ibv_destroy_qp(ends[0]) == 0);
    stage(6);
    return finish(0);
}
