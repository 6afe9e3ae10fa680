/* A TCP connection in which more waits to be read than a new one would take. */
#include "refuse_tcp.h"
static int to;
static char bytes[180000];
static void let_go(void) {
    for (size_t n = 0; n < sizeof bytes;) {
        ssize_t got = read(to, bytes, sizeof bytes);
        CHECK(got > 0);
        n += (size_t)got;
    }
}
int main(void) {
    int room = 400000, from = dial(), held;
    CHECK((to = accept(listener, NULL, NULL)) >= 0);
    CHECK(setsockopt(to, SOL_SOCKET, SO_RCVBUF, &room, sizeof room) == 0);
    for (size_t n = 0; n < sizeof bytes;) {
        ssize_t sent = send(from, bytes, sizeof bytes - n < 4096 ? sizeof bytes - n : 4096, 0);
        CHECK(sent > 0);
        n += (size_t)sent;
    }
    do CHECK(ioctl(to, FIONREAD, &held) == 0);
    while ((size_t)held < sizeof bytes);
    return hold(let_go);
}
