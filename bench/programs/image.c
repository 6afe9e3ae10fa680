/* A rank with a block of memory: `image MIB FOLDER watch`, `… fork TIMES`, `… write TIMES BYTES`.
 *
 * watch: makes FOLDER/ready, then reads the clock again and again and tells, whenever the next of the files FOLDER/mark-0, FOLDER/mark-1, … is
 *        there, the longest time between two readings since the one before, until FOLDER/end is there.
 * fork:  a bare fork() of the same memory; the child waits to be killed.
 * write: the same bytes by plain write() into a new file of FOLDER; the last two are kept.
 * Every figure is the greatest over the ranks, in ms. No page is like another or zero, and pages are small ones unless
 * the system makes all of them huge. */
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int rank;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void tell(const char *what, double ms) {
    double most = 0;
    MPI_Reduce(&ms, &most, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        printf("%s %.3f\n", what, most);
        fflush(stdout);
    }
}

static int there(const char *folder, const char *name, int number) {
    char path[4096];
    snprintf(path, sizeof path, number < 0 ? "%s/%s" : "%s/%s-%d", folder, name, number);
    return access(path, F_OK) == 0;
}

static void watch(const char *folder) {
    char path[4096];
    snprintf(path, sizeof path, "%s/ready", folder);
    if (rank == 0) close(open(path, O_CREAT | O_WRONLY, 0600));
    double longest = 0, last = now(), looked = last;
    for (int mark = 0;;) {
        double time = now();
        if (time - last > longest) longest = time - last;
        last = time;
        if (time - looked < 2) continue;
        looked = time;
        if (there(folder, "mark", mark)) {
            tell("gap", longest);
            mark++;
            longest = 0;
            last = now();
        } else if (there(folder, "end", -1)) {
            return;
        }
    }
}

static void fork_bare(int times) {
    for (int i = 0; i < times; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = now();
        pid_t child = fork();
        if (child == 0) {
            for (;;) pause();
        }
        double spent = now() - begun;
        if (child < 0) MPI_Abort(MPI_COMM_WORLD, 1);
        usleep(20000);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        tell("fork", spent);
    }
}

static void write_plain(const char *folder, const char *block, size_t room, int times, size_t bytes) {
    char path[4096];
    for (int i = 0; i < times; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = now();
        snprintf(path, sizeof path, "%s/plain-%d-%d", folder, rank, i);
        int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
        for (size_t done = 0; done < bytes;) {
            size_t at = done % room, most = room - at;
            ssize_t n = write(fd, block + at, bytes - done < most ? bytes - done : most);
            if (n <= 0) MPI_Abort(MPI_COMM_WORLD, 1);
            done += (size_t)n;
        }
        close(fd);
        double spent = now() - begun;
        if (i > 1) {
            snprintf(path, sizeof path, "%s/plain-%d-%d", folder, rank, i - 2);
            unlink(path);
        }
        tell("write", spent);
    }
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc < 4) MPI_Abort(MPI_COMM_WORLD, 2);
    size_t room = (size_t)atol(argv[1]) << 20;
    uint64_t *block = malloc(room), z = 1 + (uint64_t)rank;
    if (!block) MPI_Abort(MPI_COMM_WORLD, 3);
    for (size_t i = 0; i < room / 8; i++) {
        z ^= z << 13, z ^= z >> 7, z ^= z << 17;
        block[i] = z;
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (strcmp(argv[3], "watch") == 0) watch(argv[2]);
    if (argc > 4 && strcmp(argv[3], "fork") == 0) fork_bare(atoi(argv[4]));
    if (argc > 5 && strcmp(argv[3], "write") == 0)
        write_plain(argv[2], (const char *)block, room, atoi(argv[4]), (size_t)atol(argv[5]));
    MPI_Finalize();
    return 0;
}
