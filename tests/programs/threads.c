/* Threads: TLS, a recursive mutex held all the time, rounds kept in step by a condition, ids that stay. threads [ROUNDS] */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include "check.h"
enum { THREADS = 4 };
static pthread_mutex_t held, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static long rounds, round_now, arrived;
static __thread uint64_t own = 42;
static __thread long own_tid;
static void meet(void) { /* a barrier by hand: the waiters sit in a condition wait */
    pthread_mutex_lock(&lock);
    long mine = round_now;
    if (++arrived == THREADS + 1) { arrived = 0; round_now++; pthread_cond_broadcast(&turned); }
    while (mine == round_now) pthread_cond_wait(&turned, &lock);
    pthread_mutex_unlock(&lock);
}
static void *work(void *index) {
    pthread_t self = pthread_self();
    own_tid = syscall(SYS_gettid);
    for (long round = 0; round < rounds; round++) {
        own = hash(own, &index, sizeof index);
        CHECK(pthread_mutex_trylock(&held) == EBUSY);
        CHECK(pthread_equal(self, pthread_self()) && own_tid == syscall(SYS_gettid));
        meet();
    }
    return (void *)own;
}
int main(int argc, char **argv) {
    pthread_t thread[THREADS];
    pthread_mutexattr_t recursive;
    uint64_t result = 0;
    rounds = argument(argc, argv, 1, 100);
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    CHECK(pthread_mutex_init(&held, &recursive) == 0 && pthread_mutex_lock(&held) == 0);
    own_tid = syscall(SYS_gettid);
    for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], NULL, work, (void *)i) == 0);
    for (long round = 0; round < rounds; round++) {
        CHECK(pthread_mutex_lock(&held) == 0 && pthread_mutex_unlock(&held) == 0); /* ours, so it may be taken again */
        CHECK(own == 42 && own_tid == syscall(SYS_gettid) && getpid() == own_tid);
        pace();
        meet();
    }
    for (int i = 0; i < THREADS; i++) {
        void *value;
        CHECK(pthread_join(thread[i], &value) == 0);
        result = hash(result, &value, sizeof value);
    }
    CHECK(pthread_mutex_unlock(&held) == 0);
    return finish(result);
}
