/* Child processes by every road, and what they must not do to their parent. children [ROUNDS] */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "check.h"
extern char **environ;
static volatile sig_atomic_t users;
static void on_user(int number) { users += number == SIGUSR1; }
static void *nothing(void *value) { return value; }
static int ended(pid_t child) {
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}
static int in_child(void) { /* a child of its own: its ids, its handler, a thread, memory, then another program */
    pthread_t thread;
    sig_atomic_t before = users;
    if (getpid() != syscall(SYS_gettid) || getpid() == getppid() || raise(SIGUSR1) || users != before + 1) return 1;
    if (pthread_create(&thread, NULL, nothing, NULL) || pthread_join(thread, NULL)) return 2;
    char *memory = malloc(1 << 20);
    if (!memory || !memset(memory, 1, 1 << 20)) return 3;
    execl("/bin/sh", "sh", "-c", "exit 11", (char *)NULL);
    return 4;
}
static __attribute__((noinline)) pid_t by_vfork(void) {
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "exit 9", (char *)NULL);
        _exit(1);
    }
    return child;
}
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    struct sigaction action = {.sa_handler = on_user}, found;
    posix_spawnattr_t attributes;
    sigset_t defaults;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGINT, &action, NULL) == 0);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGUSR1);
    CHECK(posix_spawnattr_init(&attributes) == 0 && posix_spawnattr_setsigdefault(&attributes, &defaults) == 0);
    CHECK(posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF) == 0);
    for (long round = 0; round < rounds; round++) {
        if (round % 100 == 0) {
            pid_t child = 0;
            char *words[] = {"sh", "-c", "exit 7", NULL}, line[64];
            CHECK(system("exit 3") == 3 << 8);
            FILE *pipe = popen("echo hello", "r");
            CHECK(pipe && fgets(line, sizeof line, pipe) && strcmp(line, "hello\n") == 0 && pclose(pipe) == 0);
            CHECK(posix_spawn(&child, "/bin/sh", NULL, &attributes, words, environ) == 0 && ended(child) == 7);
            CHECK(ended(by_vfork()) == 9);
            if ((child = fork()) == 0) _exit(in_child());
            CHECK(ended(child) == 11);
            /* the spawned child resets these two in memory that is its parent's */
            CHECK(sigaction(SIGUSR1, NULL, &found) == 0 && found.sa_handler == on_user);
            CHECK(sigaction(SIGINT, NULL, &found) == 0 && found.sa_handler == on_user);
            CHECK(wait(NULL) == -1 && errno == ECHILD);
        }
        CHECK(raise(SIGUSR1) == 0 && users == round + 1);
        pace();
    }
    return finish((uint64_t)users);
}
