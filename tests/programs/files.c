/* Regular files: an offset shared by a dup, an append, a file read bit by bit, a working directory, a umask.
 * files [ROUNDS] [SEED] [DIRECTORY] */
#include <fcntl.h>
#include <sys/stat.h>
#include "check.h"
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100), seed = argument(argc, argv, 2, 1);
    CHECK(chdir(argc > 3 ? argv[3] : ".") == 0);
    umask(027);
    int write_fd = open("files.out", O_RDWR | O_CREAT | O_TRUNC, 0666), twin = dup(write_fd);
    int append_fd = open("files.log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0666);
    int read_fd = open("/proc/self/exe", O_RDONLY);
    CHECK(write_fd >= 0 && twin >= 0 && append_fd >= 0 && read_fd >= 0);
    uint64_t read_hash = 0;
    for (long round = 0; round < rounds; round++) {
        uint64_t state = (uint64_t)(seed + round), pair[2] = {mix(&state), mix(&state)};
        CHECK(write(round % 2 ? twin : write_fd, pair, sizeof pair) == sizeof pair);
        CHECK(lseek(write_fd, 0, SEEK_CUR) == (round + 1) * (off_t)sizeof pair);
        CHECK(write(append_fd, pair, sizeof *pair) == sizeof *pair);
        char piece[64];
        ssize_t got = read(read_fd, piece, sizeof piece);
        CHECK(got >= 0 && lseek(read_fd, 0, SEEK_CUR) <= (round + 1) * 64);
        read_hash = hash(read_hash, piece, (size_t)got);
        pace();
    }
    CHECK(fcntl(append_fd, F_GETFL) & O_APPEND);
    int check_fd = open("files.log", O_RDONLY);
    CHECK(check_fd >= 0);
    for (long round = 0; round < rounds; round++) {
        uint64_t state = (uint64_t)(seed + round), pair[2] = {mix(&state), mix(&state)}, found[2], line;
        CHECK(pread(twin, found, sizeof found, round * (off_t)sizeof found) == sizeof found);
        CHECK(memcmp(found, pair, sizeof found) == 0);
        CHECK(read(check_fd, &line, sizeof line) == sizeof line && line == pair[0]);
    }
    struct stat status;
    CHECK(read(check_fd, &status, 1) == 0); /* not one record too many */
    CHECK(stat("files.out", &status) == 0 && (status.st_mode & 0777) == 0640 && umask(0) == 027);
    CHECK(status.st_size == rounds * 16);
    return finish(read_hash);
}
