/* A child process that lives. */
#include <signal.h>
#include <sys/wait.h>
#include "refuse.h"
static pid_t child;
static void let_go(void) {
    int status;
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status));
}
int main(void) {
    child = fork();
    CHECK(child >= 0);
    if (child == 0) for (;;) pause();
    return hold(let_go);
}
