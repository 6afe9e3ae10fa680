/* TCP connections that are full: what was sent last has no room at the other end, which does not read. The calls that wait to
 * send it are not cut short by the checkpoint that is refused. And a timer's signal ends a call that waits to receive each time,
 * also one that comes while the program stands still. */
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/uio.h>
#include "refuse_tcp.h"
enum { KINDS = 4, SIZE = 8 << 20 };
static int from[KINDS], to[KINDS];
static pthread_t threads[KINDS], waiter_thread;
static char bytes[SIZE];
static int idle, idle_too;
static volatile sig_atomic_t over, rung;
static long ended;
static void ring(int signal) { (void)signal; rung++; }
static void *waiter(void *none) {
    sigset_t set;
    struct sigaction action = {.sa_handler = ring};
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
    while (!over) {
        char byte;
        CHECK(recv(idle, &byte, 1, 0) == -1 && errno == EINTR);
        ended++;
    }
    return none;
}
static void *sender(void *which) {
    long kind = (long)which;
    struct iovec parts[3] = {{bytes, 7}, {bytes + 7, SIZE / 2}, {bytes + 7 + SIZE / 2, SIZE - 7 - SIZE / 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    ssize_t n = kind == 0 ? write(from[0], bytes, SIZE)
              : kind == 1 ? send(from[1], bytes, SIZE, 0)
              : kind == 2 ? writev(from[2], parts, 3)
                          : sendmsg(from[3], &message, 0);
    CHECK(n == SIZE);
    return NULL;
}
static void let_go(void) {
    static char got[1 << 16];
    for (int kind = 0; kind < KINDS; kind++) {
        for (size_t all = 0; all < SIZE;) {
            ssize_t n = read(to[kind], got, sizeof got);
            CHECK(n > 0 && memcmp(got, bytes + all, (size_t)n) == 0);
            all += (size_t)n;
        }
        CHECK(pthread_join(threads[kind], NULL) == 0);
        CHECK(close(from[kind]) == 0 && read(to[kind], got, 1) == 0);
    }
    over = 1;
    CHECK(pthread_join(waiter_thread, NULL) == 0);
    struct itimerval none = {0};
    CHECK(setitimer(ITIMER_REAL, &none, NULL) == 0);
    /* One may have come between two calls; there were two checkpoints to stand still for. */
    CHECK(rung - ended <= 1);
}
int main(void) {
    sigset_t set;
    struct itimerval often = {{0, 30000}, {0, 30000}};
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    for (int i = 0; i < SIZE; i++) bytes[i] = (char)(i % 251);
    for (long kind = 0; kind < KINDS; kind++) {
        int held = 0, before;
        from[kind] = dial();
        CHECK((to[kind] = accept(listener, NULL, NULL)) >= 0);
        CHECK(pthread_create(&threads[kind], NULL, sender, (void *)kind) == 0);
        do {
            before = held;
            usleep(20000);
            CHECK(ioctl(to[kind], FIONREAD, &held) == 0);
        } while (held == 0 || held != before);
    }
    idle = dial();
    CHECK((idle_too = accept(listener, NULL, NULL)) >= 0);
    CHECK(pthread_create(&waiter_thread, NULL, waiter, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    return hold(let_go);
}
