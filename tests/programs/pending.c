/* What hangs over a long time: queued signals with values, one for a thread, ids of threads, clocks, deadlines, a cancellation.
 * pending [ROUNDS] */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include "check.h"
static volatile sig_atomic_t values[8], count, mine;
static __thread volatile sig_atomic_t is_worker;
static volatile int done;
static volatile pid_t worker_tid;
static void on_queued(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    if (count < 8) values[count++] = info->si_value.sival_int;
}
static void on_user(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    mine += is_worker && info->si_pid == getpid();
}
static void *work(void *unused) {
    sigset_t users;
    sigemptyset(&users);
    sigaddset(&users, SIGUSR1);
    is_worker = 1;
    CHECK(pthread_sigmask(SIG_BLOCK, &users, NULL) == 0 && raise(SIGUSR1) == 0);
    worker_tid = (pid_t)syscall(SYS_gettid);
    while (!done) pace();
    CHECK(mine == 0 && pthread_sigmask(SIG_UNBLOCK, &users, NULL) == 0 && mine == 1);
    return unused;
}
static void *forever(void *unused) {
    for (;;) pace();
    return unused;
}
static void *tell_tid(void *tid) {
    *(pid_t *)tid = (pid_t)syscall(SYS_gettid);
    return NULL;
}
static double now(clockid_t clock) {
    struct timespec time;
    CHECK(clock_gettime(clock, &time) == 0);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    struct sigaction queued = {.sa_sigaction = on_queued, .sa_flags = SA_SIGINFO};
    struct sigaction user = {.sa_sigaction = on_user, .sa_flags = SA_SIGINFO};
    pthread_t worker, cancelled;
    sigset_t blocked;
    void *value;
    CHECK(sigaction(SIGRTMIN + 2, &queued, NULL) == 0 && sigaction(SIGUSR1, &user, NULL) == 0);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 2);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    for (int i = 1; i <= 3; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 11 * i}) == 0);
    CHECK(pthread_create(&worker, NULL, work, NULL) == 0 && pthread_create(&cancelled, NULL, forever, NULL) == 0);
    while (!worker_tid) pace();
    double last = now(CLOCK_MONOTONIC), last_boot = now(CLOCK_BOOTTIME);
    for (long round = 0; round < rounds; round++) {
        double before = now(CLOCK_MONOTONIC), boot = now(CLOCK_BOOTTIME);
        CHECK(before >= last && boot >= last_boot);
        if (round % 16 == 0) { /* absolute deadlines, through a futex and through a sleep */
            struct timespec until;
            sem_t never;
            int waited;
            CHECK(clock_gettime(CLOCK_MONOTONIC, &until) == 0 && sem_init(&never, 0, 0) == 0);
            until.tv_nsec += 5000000;
            if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
            while ((waited = sem_clockwait(&never, CLOCK_MONOTONIC, &until)) == -1 && errno == EINTR) {}
            CHECK(waited == -1 && errno == ETIMEDOUT && now(CLOCK_MONOTONIC) >= before + 0.005);
            CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == 0);
            pid_t tid;
            pthread_t brief;
            CHECK(pthread_create(&brief, NULL, tell_tid, &tid) == 0 && pthread_join(brief, NULL) == 0);
            CHECK(tid != worker_tid && tid != getpid());
        }
        char path[64];
        cpu_set_t cpus;
        snprintf(path, sizeof path, "/proc/self/task/%d/comm", (int)worker_tid);
        CHECK(access(path, R_OK) == 0);
        CHECK(pthread_kill(worker, 0) == 0 && tgkill(getpid(), worker_tid, 0) == 0 && kill(getpid(), 0) == 0);
        CHECK(pthread_getaffinity_np(worker, sizeof cpus, &cpus) == 0 && getpriority(PRIO_PROCESS, (id_t)worker_tid) <= 20);
        last = before, last_boot = boot;
        pace();
    }
    CHECK(count == 0 && sigprocmask(SIG_UNBLOCK, &blocked, NULL) == 0);
    CHECK(count == 3 && values[0] == 11 && values[1] == 22 && values[2] == 33);
    done = 1;
    CHECK(pthread_join(worker, NULL) == 0 && mine == 1);
    CHECK(pthread_cancel(cancelled) == 0 && pthread_join(cancelled, &value) == 0 && value == PTHREAD_CANCELED);
    return finish((uint64_t)rounds);
}
