/* The end that listens has looked at no device when the other one, which knows its address by a TCP connection, asks for a connection by
 * librdmacm: late, and several times one after another, each with private data both ways. See verbs.h. */
#include <rdma/rdma_cma.h>
#include "verbs.h"
enum { TIMES = 5 };

int main(int argc, char **argv) {
    CHECK(argc > 4);
    struct verbs v = {.rounds = argument(argc, argv, 1, 100), .seed = (uint64_t)argument(argc, argv, 2, 1), .listens = strcmp(argv[3], "listen") == 0};
    v.tcp = meet(v.listens, argv[4]);
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t length = sizeof at;
    uint16_t port = 0, there;
    struct rdma_cm_id *listens = NULL, *id;
    if (v.listens) {
        CHECK(rdma_create_id(NULL, &listens, NULL, RDMA_PS_TCP) == 0);
        CHECK(rdma_bind_addr(listens, (struct sockaddr *)&at) == 0 && rdma_listen(listens, 4) == 0 && !listens->verbs);
        port = rdma_get_src_port(listens);
    }
    swap(&v, &port, &there, sizeof port);
    CHECK(getpeername(v.tcp, (struct sockaddr *)&at, &length) == 0);
    at.sin_port = there;
    uint64_t state = v.seed, sum = 0;
    for (int time = 0; time < TIMES; time++) {
        for (long round = 0; round < v.rounds; round++) pace();
        uint64_t words[2] = {mix(&state), mix(&state)};
        struct rdma_conn_param param = {.responder_resources = 1, .initiator_depth = 1, .retry_count = 7, .rnr_retry_count = 7,
            .private_data = &words[v.listens], .private_data_len = 8};
        struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
        if (v.listens) {
            CHECK(rdma_get_request(listens, &id) == 0);
        } else {
            CHECK(rdma_create_id(NULL, &id, NULL, RDMA_PS_TCP) == 0);
            CHECK(rdma_resolve_addr(id, NULL, (struct sockaddr *)&at, 5000) == 0 && rdma_resolve_route(id, 5000) == 0);
        }
        CHECK(rdma_create_qp(id, NULL, &attr) == 0);
        if (!v.listens) CHECK(rdma_connect(id, &param) == 0);
        CHECK(id->event && id->event->param.conn.private_data_len >= 8);
        CHECK(memcmp(id->event->param.conn.private_data, &words[!v.listens], 8) == 0);
        if (v.listens) CHECK(rdma_accept(id, &param) == 0);
        sum = hash(sum, words, sizeof words);
        char both = 1;
        swap(&v, &both, &both, 1);
        rdma_destroy_qp(id);
        CHECK(rdma_destroy_id(id) == 0);
        swap(&v, &both, &both, 1);
    }
    return finish(sum);
}
