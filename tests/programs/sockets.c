/* TCP beside MPI: each rank streams checked records to the next one, which reads late, so that bytes wait in the sockets; others are
 * half closed, left by their peer, deaf, ended, of IPv6, non-blocking, duplicated, or lead to the rank itself. sockets [ROUNDS] [SEED] */
#include <arpa/inet.h>
#include <fcntl.h>
#include <mpi.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include "check.h"

enum { MOST = 8000, BEHIND = 4, LEFT = 1000 };
static int rank, size, listener;

static int dial(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int s = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(s >= 0 && connect(s, (struct sockaddr *)&to, sizeof to) == 0);
    return s;
}

static int answer(void) {
    int s = accept(listener, NULL, NULL);
    CHECK(s >= 0);
    return s;
}

static void send_all(int s, const void *bytes, size_t n) {
    for (const char *at = bytes; n > 0;) {
        ssize_t sent = send(s, at, n, MSG_NOSIGNAL);
        CHECK(sent > 0);
        at += sent;
        n -= (size_t)sent;
    }
}

static void read_all(int s, void *bytes, size_t n) {
    for (char *at = bytes; n > 0;) {
        ssize_t got = read(s, at, n);
        if (got < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = s, .events = POLLIN};
            CHECK(poll(&p, 1, -1) == 1);
            continue;
        }
        CHECK(got > 0);
        at += got;
        n -= (size_t)got;
    }
}

/* What record number `round` of a rank holds: its length and its bytes. */
static uint32_t record(int whose, uint64_t seed, long round, unsigned char *bytes) {
    uint64_t state = hash(seed + (uint64_t)whose, &round, sizeof round);
    uint32_t n = (uint32_t)(mix(&state) % MOST);
    for (uint32_t i = 0; i < n; i++) bytes[i] = (unsigned char)(mix(&state) >> 56);
    return n;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), result = seed;
    int next = (rank + 1) % size, before = (rank + size - 1) % size, ports[64], one = 1;
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof own;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&own, sizeof own) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&own, &length) == 0);
    int port = ntohs(own.sin_port);
    MPI_Allgather(&port, 1, MPI_INT, ports, 1, MPI_INT, MPI_COMM_WORLD);

    /* All connect before anybody accepts: a connection exists once it waits to be accepted. */
    int out = dial(ports[next]);
    MPI_Barrier(MPI_COMM_WORLD);
    int in = answer(), in_too = dup(in);
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(setsockopt(out, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0 && in_too >= 0);
    CHECK(fcntl(in, F_SETFL, fcntl(in, F_GETFL) | O_NONBLOCK) == 0);
    int half = dial(ports[next]);
    MPI_Barrier(MPI_COMM_WORLD);
    int other_half = answer();
    MPI_Barrier(MPI_COMM_WORLD);
    int gone = dial(ports[next]);
    MPI_Barrier(MPI_COMM_WORLD);
    int left = answer();
    MPI_Barrier(MPI_COMM_WORLD);
    int self = dial(port), self_too = answer();
    unsigned char bytes[MOST + 1], expected[MOST + 1], small[LEFT];
    for (int i = 0; i < LEFT; i++) small[i] = (unsigned char)(i + rank);
    send_all(half, small, LEFT);
    send_all(gone, small, LEFT);
    CHECK(shutdown(half, SHUT_WR) == 0 && close(gone) == 0);
    send_all(self, small, LEFT);
    /* This one's last reader wants no more, and has not read what came before. */
    int deaf = dial(port), deaf_too = answer();
    send_all(deaf, small, LEFT);
    for (int held = 0; held < LEFT;) CHECK(ioctl(deaf_too, FIONREAD, &held) == 0);
    CHECK(shutdown(deaf_too, SHUT_RDWR) == 0);
    /* Both ends of this one have sent all, and only one has read it. */
    int ended = dial(port), ended_too = answer();
    send_all(ended, small, LEFT);
    CHECK(shutdown(ended, SHUT_WR) == 0 && shutdown(ended_too, SHUT_WR) == 0 && read(ended, bytes, 1) == 0);
    struct sockaddr_in6 own6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int listener6 = socket(AF_INET6, SOCK_STREAM, 0), six = -1, six_too = -1;
    length = sizeof own6;
    if (listener6 >= 0 && bind(listener6, (struct sockaddr *)&own6, sizeof own6) == 0) {
        CHECK(listen(listener6, 1) == 0 && getsockname(listener6, (struct sockaddr *)&own6, &length) == 0);
        six = socket(AF_INET6, SOCK_STREAM, 0);
        CHECK(connect(six, (struct sockaddr *)&own6, sizeof own6) == 0 && (six_too = accept(listener6, NULL, NULL)) >= 0);
        send_all(six, small, LEFT);
    }

    long read_so_far = 0;
    for (long round = 0; round < rounds; round++) {
        uint32_t n = record(rank, seed, round, bytes), got;
        send_all(out, &n, sizeof n);
        send_all(out, bytes, n);
        /* What has not been read yet is at most BEHIND records. */
        while (round - read_so_far >= BEHIND || (round == rounds - 1 && read_so_far < rounds)) {
            uint32_t want = record(before, seed, read_so_far, expected);
            read_all(read_so_far % 2 ? in : in_too, &got, sizeof got);
            CHECK(got == want);
            read_all(in, bytes, got);
            CHECK(memcmp(bytes, expected, got) == 0);
            result = hash(result, bytes, got);
            read_so_far++;
        }
        if (round % 16 == 0) MPI_Barrier(MPI_COMM_WORLD);
        pace();
    }

    int value;
    length = sizeof value;
    CHECK(getsockopt(out, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && value != 0);
    CHECK((fcntl(in_too, F_GETFL) & O_NONBLOCK) != 0 && (fcntl(out, F_GETFL) & O_NONBLOCK) == 0);
    for (int i = 0; i < LEFT; i++) small[i] = (unsigned char)(i + before);
    int ends[] = {other_half, left};
    for (int i = 0; i < 2; i++) {
        read_all(ends[i], bytes, LEFT);
        CHECK(memcmp(bytes, small, LEFT) == 0 && read(ends[i], bytes, 1) == 0);
    }
    send_all(other_half, small, LEFT);
    read_all(half, bytes, LEFT);
    CHECK(bytes[0] == (unsigned char)rank && send(half, bytes, 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    read_all(self_too, bytes, LEFT);
    CHECK(bytes[1] == (unsigned char)(rank + 1));
    read_all(ended_too, bytes, LEFT);
    CHECK(bytes[1] == (unsigned char)(rank + 1) && read(ended_too, bytes, 1) == 0 && read(ended, bytes, 1) == 0);
    CHECK(send(ended_too, bytes, 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    read_all(deaf_too, bytes, LEFT);
    CHECK(bytes[1] == (unsigned char)(rank + 1) && read(deaf_too, bytes, 1) == 0 && read(deaf, bytes, 1) == 0);
    CHECK(send(deaf_too, bytes, 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    if (six >= 0) {
        read_all(six_too, bytes, LEFT);
        length = sizeof own6;
        CHECK(bytes[1] == (unsigned char)(rank + 1) && getpeername(six, (struct sockaddr *)&own6, &length) == 0);
        CHECK(own6.sin6_family == AF_INET6);
    }
    /* The listener still listens, where it did. */
    int late = dial(ports[next]);
    int accepted = answer();
    send_all(late, &rank, sizeof rank);
    read_all(accepted, &value, sizeof value);
    CHECK(value == before);
    uint64_t all;
    MPI_Reduce(&result, &all, 1, MPI_UINT64_T, MPI_BXOR, 0, MPI_COMM_WORLD);
    MPI_Finalize();
    return rank == 0 ? finish(all) : 0;
}
