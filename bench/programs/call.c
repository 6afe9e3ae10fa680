/* What calls cost: `call calls` in one process, `call pingpong` between ranks 0 and 1, `call memory` what a rank weighs.
 * Prints `name value` from rank 0; times are the least over blocks, in ns. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>
enum { BLOCKS = 60, CALLS = 20000 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

#define LEAST(name, statement)                             \
    do {                                                   \
        double best = 1e18;                                \
        for (int block = 0; block < BLOCKS; block++) {     \
            double begun = now();                          \
            for (int i = 0; i < CALLS; i++) { statement; } \
            double spent = (now() - begun) / CALLS;        \
            if (spent < best) best = spent;                \
        }                                                  \
        printf("%s %.3f\n", name, best);                   \
    } while (0)

/* The hardware's share of a crossing: the thread pointer is written twice. */
static void thread_pointer(void) {
#ifdef __x86_64__
    if ((getauxval(AT_HWCAP2) & 2) == 0) return;
    unsigned long fs;
    __asm__ volatile("rdfsbase %0" : "=r"(fs));
    LEAST("fsbase", __asm__ volatile("wrfsbase %0" : : "r"(fs) : "memory");
          __asm__ volatile("wrfsbase %0" : : "r"(fs) : "memory"));
#endif
}

static void calls(void) {
    int rank, flag, count;
    struct timespec t;
    MPI_Status status;
    MPI_Sendrecv(&rank, 1, MPI_INT, 0, 1, &count, 1, MPI_INT, 0, 1, MPI_COMM_SELF, &status);
    LEAST("comm_rank", MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    LEAST("get_count", MPI_Get_count(&status, MPI_INT, &count));
    LEAST("iprobe", MPI_Iprobe(MPI_ANY_SOURCE, 9, MPI_COMM_SELF, &flag, MPI_STATUS_IGNORE));
    thread_pointer();
    LEAST("clock_gettime", clock_gettime(CLOCK_MONOTONIC, &t));
    /* The compiler must not see that nobody uses the memory. */
    LEAST("malloc", void *m = malloc(100); __asm__ volatile("" : "+r"(m) : : "memory"); free(m));
    LEAST("malloc_large", void *m = malloc(100000); __asm__ volatile("" : "+r"(m) : : "memory"); free(m));
}

static void pingpong(void) {
    int rank;
    double word = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    double best = 1e18;
    for (int block = 0; block < BLOCKS && rank < 2; block++) {
        double begun = now();
        for (int i = 0; i < CALLS; i++) {
            if (rank == 0) MPI_Send(&word, 8, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(&word, 8, MPI_BYTE, 1 - rank, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            if (rank == 1) MPI_Send(&word, 8, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
        double spent = (now() - begun) / CALLS / 2;
        if (spent < best) best = spent;
    }
    if (rank == 0) printf("pingpong %.3f\n", best);
}

static void memory(void) {
    char line[256];
    int rank, size, sum;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    /* All that a program usually wakes: shared memory to the neighbours, collectives. */
    for (int i = 0; i < 100; i++) {
        MPI_Sendrecv(&rank, 1, MPI_INT, (rank + 1) % size, 1, &sum, 1, MPI_INT, (rank + size - 1) % size, 1,
                     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    }
    FILE *f = rank == 0 ? fopen("/proc/self/smaps_rollup", "r") : NULL;
    while (f && fgets(line, sizeof line, f)) {
        long kib;
        if (sscanf(line, "Rss: %ld", &kib) == 1) printf("rss %.3f\n", (double)kib / 1024);
        if (sscanf(line, "Pss: %ld", &kib) == 1) printf("pss %.3f\n", (double)kib / 1024);
    }
    if (f) fclose(f);
    MPI_Barrier(MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    if (argc > 1 && strcmp(argv[1], "calls") == 0) calls();
    if (argc > 1 && strcmp(argv[1], "pingpong") == 0) pingpong();
    if (argc > 1 && strcmp(argv[1], "memory") == 0) memory();
    MPI_Finalize();
    return 0;
}
