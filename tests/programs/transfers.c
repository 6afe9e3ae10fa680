/* Waiting for bytes over TCP, which a checkpoint must not cut short: one thread sends in pieces, the other waits for whole records
 * with MSG_WAITALL, into one buffer and into several, and for anything within a time limit. transfers [ROUNDS] [SEED] */
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include "check.h"

enum { RECORD = 24000, PIECES = 4 };
static long rounds;
static uint64_t seed;
static int from, to, listener;
static struct sockaddr_in own = {.sin_family = AF_INET};

static void fill(unsigned char *bytes, long round) {
    uint64_t state = hash(seed, &round, sizeof round);
    for (int i = 0; i < RECORD; i++) bytes[i] = (unsigned char)(mix(&state) >> 56);
}

static void *sender(void *none) {
    static unsigned char bytes[RECORD];
    from = socket(AF_INET, SOCK_STREAM, 0);
    pace();
    CHECK(connect(from, (struct sockaddr *)&own, sizeof own) == 0);
    for (long round = 0; round < rounds; round++) {
        fill(bytes, round);
        int most = RECORD / PIECES;
        for (int at = 0; at < RECORD; at += most) {
            pace();
            CHECK(send(from, bytes + at, (size_t)most, 0) == most);
        }
    }
    CHECK(shutdown(from, SHUT_WR) == 0);
    return none;
}

int main(int argc, char **argv) {
    static unsigned char bytes[RECORD], expected[RECORD];
    rounds = argument(argc, argv, 1, 100) / PIECES;
    seed = (uint64_t)argument(argc, argv, 2, 1);
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof own;
    /* Long enough never to be reached. */
    struct timeval limit = {.tv_sec = 200};
    listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&own, sizeof own) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&own, &length) == 0);
    CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, sender, NULL) == 0);
    CHECK((to = accept(listener, NULL, NULL)) >= 0);
    CHECK(setsockopt(to, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    uint64_t result = seed;
    for (long round = 0; round < rounds; round++) {
        struct iovec parts[3] = {{bytes, 5}, {bytes + 5, RECORD / 2}, {bytes + 5 + RECORD / 2, RECORD - 5 - RECORD / 2}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
        switch (round % 4) {
        case 0: CHECK(recv(to, bytes, RECORD, MSG_WAITALL) == RECORD); break;
        case 1: CHECK(recvmsg(to, &message, MSG_WAITALL) == RECORD); break;
        default:
            for (int at = 0; at < RECORD;) {
                ssize_t n = round % 4 == 2 ? read(to, bytes + at, (size_t)(RECORD - at)) : recv(to, bytes + at, (size_t)(RECORD - at), 0);
                CHECK(n > 0);
                at += (int)n;
            }
        }
        fill(expected, round);
        CHECK(memcmp(bytes, expected, RECORD) == 0);
        result = hash(result, bytes, RECORD);
    }
    CHECK(read(to, bytes, 1) == 0 && pthread_join(thread, NULL) == 0);
    return finish(result);
}
