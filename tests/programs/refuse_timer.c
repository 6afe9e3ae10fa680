/* A POSIX timer. (Interval timers, setitimer, are saved.) */
#include <signal.h>
#include <time.h>
#include "refuse.h"
static timer_t timer;
static void let_go(void) { CHECK(timer_delete(timer) == 0); }
int main(void) {
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec when = {.it_value = {.tv_sec = 3600}};
    CHECK(timer_create(CLOCK_MONOTONIC, &none, &timer) == 0 && timer_settime(timer, 0, &when, NULL) == 0);
    return hold(let_go);
}
