/* A listener of the program's own, and a connection to it. */
#include <arpa/inet.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include "refuse.h"
static int listener;
static int dial(void) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof own;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&own, sizeof own) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&own, &length) == 0);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(s, (struct sockaddr *)&own, sizeof own) == 0);
    return s;
}
