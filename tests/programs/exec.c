/* Execs itself three times; each life sees its own argv[0], environment, directory and program, and no children; the last one
 * counts. The others live long enough for a checkpoint to begin, and hold so much memory that it is not written by their end.
 * exec [ROUNDS] [SEED, unused] [LIFE, its own] */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <sys/wait.h>
#include "check.h"
extern char **environ;
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100), life = argument(argc, argv, 3, 0);
    char program[PATH_MAX] = "", place[PATH_MAX];
    CHECK(readlink("/proc/self/exe", program, sizeof program - 1) > 0 && getcwd(place, sizeof place));
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    const char *slash = strrchr(program, '/');
    CHECK(slash && strcmp(slash, "/exec") == 0);
    if (life > 0) {
        char name[32];
        snprintf(name, sizeof name, "life-%ld", life);
        CHECK(strcmp(argv[0], name) == 0 && getenv("LIFE") && atol(getenv("LIFE")) == life);
        CHECK(strcmp(place, "/") == 0);
        CHECK(fcntl(100, F_GETFD) == 0 && fcntl(101, F_GETFD) == -1); /* 101 was close-on-exec */
        CHECK(!getenv("LD_PRELOAD"));
    }
    if (life < 3) {
        char *much = malloc(64 << 20);
        CHECK(much);
        memset(much, 1, 64 << 20);
        for (int k = 0; k < 50; k++) pace();
        char rounds_text[32], life_text[32], name[32];
        snprintf(rounds_text, sizeof rounds_text, "%ld", rounds);
        snprintf(life_text, sizeof life_text, "%ld", life + 1);
        snprintf(name, sizeof name, "life-%ld", life + 1);
        int null = open("/dev/null", O_RDONLY);
        CHECK(null >= 0 && dup2(null, 100) == 100 && dup3(null, 101, O_CLOEXEC) == 101 && chdir("/") == 0);
        close(null);
        setenv("LIFE", life_text, 1);
        execve(program, (char *[]){name, rounds_text, "1", life_text, NULL}, environ);
        CHECK(!"execve came back");
    }
    uint64_t state = 9;
    for (long round = 0; round < rounds; round++) { mix(&state); pace(); }
    return finish(state);
}
