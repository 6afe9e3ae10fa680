/* What a post and an empty poll cost over a library that does nothing (tests/verbs-model, MODEL_NULL): one thread, and four, each with a
 * queue pair of its own, by the CPU time of each. Prints `name value`; times are the least over blocks, in ns. */
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
enum { BLOCKS = 200, CALLS = 16000, DEPTH = 16 };

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_mr *mr;
static char memory[4096];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

/* What asking for the time takes of it: a system call, of which sixteen posts would each bear a part. */
static double asking(void) {
    double least = 1e18;
    for (int k = 0; k < 1000; k++) {
        double begun = now(), spent = now() - begun;
        if (spent < least) least = spent;
    }
    return least;
}

static void check(int well, const char *what) {
    if (well) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

struct costs { double post, poll; };

static void *one(void *out) {
    struct costs *costs = out;
    struct ibv_cq *cq = ibv_create_cq(context, 64, NULL, NULL, 0);
    struct ibv_qp_init_attr attr = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = 64, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    check(cq != NULL, "no queue");
    struct ibv_qp *qp = ibv_create_qp(pd, &attr);
    check(qp != NULL, "no queue pair");
    enum ibv_qp_state states[] = {IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS};
    for (int k = 0; k < 3; k++) {
        struct ibv_qp_attr a = {.qp_state = states[k], .port_num = 1};
        check(ibv_modify_qp(qp, &a, IBV_QP_STATE | (k ? 0 : IBV_QP_PORT)) == 0, "no connection");
    }
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = 8, .lkey = mr->lkey};
    struct ibv_send_wr wr = {.wr_id = 1, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED}, *bad;
    struct ibv_wc wc[DEPTH];
    double unused = asking();
    costs->post = costs->poll = 1e18;
    for (int block = 0; block < BLOCKS; block++) {
        double spent = 0;
        for (int i = 0; i < CALLS / DEPTH; i++) {
            double begun = now();
            for (int k = 0; k < DEPTH; k++) check(ibv_post_send(qp, &wr, &bad) == 0, "no post");
            spent += now() - begun - unused;
            for (int left = DEPTH; left > 0;) {
                int n = ibv_poll_cq(cq, left, wc);
                check(n > 0, "no completion");
                left -= n;
            }
        }
        if (spent / CALLS < costs->post) costs->post = spent / CALLS;
        double begun = now();
        for (int i = 0; i < CALLS; i++) check(ibv_poll_cq(cq, DEPTH, wc) == 0, "a completion");
        spent = (now() - begun) / CALLS;
        if (spent < costs->poll) costs->poll = spent;
    }
    return NULL;
}

int main(void) {
    struct ibv_device **list = ibv_get_device_list(NULL);
    check(list && list[0] && (context = ibv_open_device(list[0])), "no device");
    check((pd = ibv_alloc_pd(context)) && (mr = ibv_reg_mr(pd, memory, sizeof memory, IBV_ACCESS_LOCAL_WRITE)), "no region");
    struct costs costs[4], worst = {0, 0};
    one(&costs[0]);
    printf("post %.3f\npoll %.3f\n", costs[0].post, costs[0].poll);
    pthread_t threads[4];
    for (int k = 0; k < 4; k++) check(pthread_create(&threads[k], NULL, one, &costs[k]) == 0, "no thread");
    for (int k = 0; k < 4; k++) {
        pthread_join(threads[k], NULL);
        if (costs[k].post > worst.post) worst.post = costs[k].post;
        if (costs[k].poll > worst.poll) worst.poll = costs[k].poll;
    }
    printf("post4 %.3f\npoll4 %.3f\n", worst.post, worst.poll);
    return 0;
}
