/* Signals: a handler on an alternate stack, an interval timer, a mask, a signal that stays pending. signals [ROUNDS] */
#include <signal.h>
#include <sys/time.h>
#include "check.h"
static volatile sig_atomic_t alarms, users, on_stack;
static char stack[1 << 16];
static void on_alarm(int number) { alarms += number == SIGALRM; }
static void on_user(int number, siginfo_t *info, void *context) {
    char here;
    (void)context;
    on_stack += &here >= stack && &here < stack + sizeof stack;
    users += number == SIGUSR1 && info->si_value.sival_int == 7;
}
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, found_stack;
    struct sigaction alarm_action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART}, found;
    struct sigaction user_action = {.sa_sigaction = on_user, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct itimerval every = {{0, 5000}, {0, 5000}}, left;
    sigset_t blocked, mask, pending;
    CHECK(sigaltstack(&alternate, NULL) == 0);
    CHECK(sigaction(SIGALRM, &alarm_action, NULL) == 0 && sigaction(SIGUSR1, &user_action, NULL) == 0);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0 && raise(SIGUSR2) == 0);
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    for (long round = 0; round < rounds; round++) {
        CHECK(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 7}) == 0);
        CHECK(users == round + 1 && on_stack == round + 1); /* delivered before sigqueue returns */
        CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && sigismember(&mask, SIGUSR2) && !sigismember(&mask, SIGALRM));
        CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR2));
        pace();
    }
    CHECK(alarms > 0 && getitimer(ITIMER_REAL, &left) == 0 && left.it_interval.tv_usec == 5000);
    CHECK(sigaction(SIGPIPE, NULL, &found) == 0 && found.sa_handler == SIG_IGN);
    CHECK(sigaction(SIGUSR1, NULL, &found) == 0 && found.sa_sigaction == on_user && (found.sa_flags & SA_ONSTACK));
    CHECK(sigaltstack(NULL, &found_stack) == 0 && found_stack.ss_sp == stack);
    int number;
    CHECK(sigwait(&blocked, &number) == 0 && number == SIGUSR2);
    return finish((uint64_t)users);
}
