/* MPI_THREAD_MULTIPLE: three threads a rank exchange messages on communicators of their own, a fourth does collectives.
 * multiple [ROUNDS] [SEED] */
#include <mpi.h>
#include <pthread.h>
#include "check.h"
enum { T = 4 };
static int rank, size;
static long rounds;
static MPI_Comm c[T];
static uint64_t result[T];
static void *work(void *arg) {
    int t = (int)(intptr_t)arg;
    uint64_t state = (uint64_t)t * 77, r = 0;
    static long buf[T][2][4000];
    for (long round = 0; round < rounds; round++) {
        int n = 1 + (int)(mix(&state) % 3999);
        long *out = buf[t][0], *in = buf[t][1];
        out[0] = round * 10 + rank; out[n - 1] = round * 10 + rank;
        int right = (rank + 1) % size, left = (rank + size - 1) % size;
        if (t == 0) {
            long sum;
            MPI_Allreduce(&out[0], &sum, 1, MPI_LONG, MPI_SUM, c[t]);
            r = hash(r, &sum, sizeof sum);
            if (round % 3 == 0) MPI_Barrier(c[t]);
            if (round % 10 == 0) { MPI_Comm d; MPI_Comm_dup(c[t], &d); MPI_Bcast(&sum, 1, MPI_LONG, 0, d); MPI_Comm_free(&d); }
            pace();
        } else {
            MPI_Request q[2];
            MPI_Irecv(in, 4000, MPI_LONG, round % 2 ? MPI_ANY_SOURCE : left, (int)(round % 9), c[t], &q[0]);
            if (round % 3 == 0) MPI_Issend(out, n, MPI_LONG, right, (int)(round % 9), c[t], &q[1]);
            else MPI_Isend(out, n, MPI_LONG, right, (int)(round % 9), c[t], &q[1]);
            if (round % 4 == t) pace();
            MPI_Waitall(2, q, MPI_STATUSES_IGNORE);
            CHECK(in[0] == round * 10 + left && in[n - 1] == in[0]);
            MPI_Send(out, 1, MPI_LONG, left, 20, c[t]);
            MPI_Status st;
            MPI_Probe(right, 20, c[t], &st);
            MPI_Recv(in, 1, MPI_LONG, MPI_ANY_SOURCE, 20, c[t], &st);
            CHECK(in[0] == round * 10 + right);
            r = hash(r, in, sizeof *in);
        }
    }
    result[t] = r;
    return NULL;
}
int main(int argc, char **argv) {
    int got;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &got);
    CHECK(got == MPI_THREAD_MULTIPLE);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    rounds = argument(argc, argv, 1, 100);
    for (int t = 0; t < T; t++) MPI_Comm_dup(MPI_COMM_WORLD, &c[t]);
    pthread_t p[T];
    for (int t = 0; t < T; t++) pthread_create(&p[t], NULL, work, (void *)(intptr_t)t);
    for (int t = 0; t < T; t++) pthread_join(p[t], NULL);
    uint64_t sum;
    MPI_Reduce(&(uint64_t){hash(0, result, sizeof result)}, &sum, 1, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    for (int t = 0; t < T; t++) MPI_Comm_free(&c[t]);
    MPI_Finalize();
    return rank == 0 ? finish(sum) : 0;
}
