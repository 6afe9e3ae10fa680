/* A TCP connection to a process that is no rank: a child's child, which nobody here is the parent of. */
#include <sys/wait.h>
#include "refuse_tcp.h"
static int to;
static void let_go(void) {
    char byte;
    /* It has ended; this end stays open, and is saved as one that nobody is at the other end of. */
    CHECK(read(to, &byte, 1) == 0);
}
int main(void) {
    struct sockaddr_in own;
    socklen_t length = sizeof own;
    CHECK(close(dial()) == 0 && (to = accept(listener, NULL, NULL)) >= 0 && close(to) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&own, &length) == 0);
    pid_t child = fork();
    if (child == 0) {
        if (fork() != 0) _exit(0);
        alarm(300);
        int s = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(s, (struct sockaddr *)&own, sizeof own) == 0);
        await("let-go");
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, NULL, 0) == child);
    CHECK((to = accept(listener, NULL, NULL)) >= 0);
    return hold(let_go);
}
