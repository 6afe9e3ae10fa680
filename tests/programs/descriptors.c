/* Descriptors that the program has not opened are not there for it: it closes all, fills all, and goes on. descriptors [ROUNDS] */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include "check.h"
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100), kept = 0, held = 0;
    char place[PATH_MAX], exe[PATH_MAX] = "", own[64];
    struct stat by_name, by_proc;
    closefrom(3);
    int log = open("descriptors.log", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(log == 3); /* the lowest number, whoever else has descriptors */
    for (int fd = 4; fd < 900; fd++) {
        int got = dup2(log, fd);
        CHECK(got == fd || (got == -1 && errno == EBUSY));
        kept += got == fd;
        held += got == -1;
    }
    CHECK(held < 32);
    for (int fd = 4; fd < 900; fd++) CHECK(close(fd) == 0 || errno == EBADF);
    CHECK(close_range(4, ~0u, 0) == 0 && fcntl(4, F_GETFD) == -1);
    CHECK(fcntl(log, F_DUPFD, 800) >= 800 && kept + held == 896);
    CHECK(readlink("/proc/self/exe", exe, sizeof exe - 1) > 0 && strstr(exe, "/descriptors"));
    CHECK(realpath("/proc/self/exe", place) && strcmp(exe, place) == 0);
    for (long round = 0; round < rounds; round++) {
        CHECK(dprintf(log, "%ld\n", round) > 0 && lseek(log, 0, SEEK_END) > round);
        int again = open("/dev/null", O_RDONLY);
        CHECK(again == 4 && close(again) == 0);
        snprintf(own, sizeof own, "/proc/%d/exe", getpid());
        CHECK(stat("/proc/self/exe", &by_proc) == 0 && stat(exe, &by_name) == 0 && by_proc.st_ino == by_name.st_ino);
        CHECK(stat(own, &by_proc) == 0 && by_proc.st_ino == by_name.st_ino && access(own, X_OK) == 0);
        CHECK(lstat("/proc/self/exe", &by_proc) == 0 && S_ISLNK(by_proc.st_mode));
        pace();
    }
    return finish((uint64_t)rounds);
}
