/* Names itself and a thread of its own by their ids, again and again and without a pause: to the kernel, and below /proc. After a restart
 * the kernel has other ids; no call may go out with those of before. ids [ROUNDS] */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include "check.h"
static volatile int done;
static volatile pid_t worker_tid;
static void *work(void *unused) {
    worker_tid = (pid_t)syscall(SYS_gettid);
    while (!done) pace();
    return unused;
}
static double now(void) {
    struct timespec time;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    pthread_t worker;
    CHECK(pthread_create(&worker, NULL, work, NULL) == 0);
    while (!worker_tid) pace();
    char comm[64], link[64], text[64], self[64];
    snprintf(comm, sizeof comm, "/proc/self/task/%d/comm", (int)worker_tid);
    snprintf(link, sizeof link, "/proc/%d/task/%d/exe", (int)getpid(), (int)worker_tid);
    snprintf(self, sizeof self, "/proc/%d/stat", (int)getpid());
    /* A round is a millisecond, full of calls. */
    for (long round = 0; round < rounds; round++) {
        double until = now() + 0.001;
        do {
            cpu_set_t cpus;
            CHECK(access(comm, R_OK) == 0 && readlink(link, text, sizeof text) > 0);
            int file = open(self, O_RDONLY);
            CHECK(file >= 0 && close(file) == 0);
            CHECK(tgkill(getpid(), worker_tid, 0) == 0 && kill(getpid(), 0) == 0);
            CHECK(sched_getaffinity(worker_tid, sizeof cpus, &cpus) == 0);
        } while (now() < until);
    }
    done = 1;
    CHECK(pthread_join(worker, NULL) == 0);
    return finish((uint64_t)rounds);
}
