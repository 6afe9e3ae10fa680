/* A pair of connected sockets. */
#include <sys/socket.h>
#include "refuse.h"
static int ends[2];
static void let_go(void) { CHECK(close(ends[0]) == 0 && close(ends[1]) == 0); }
int main(void) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    return hold(let_go);
}
