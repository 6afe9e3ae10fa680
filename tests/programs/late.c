/* What is between send and receive when a checkpoint comes: order under wildcards, messages to oneself, truncation,
 * cancelled and restarted persistent receives, matched probes, buffered sends, synchronous sends. late [ROUNDS] [SEED] */
#include <mpi.h>
#include "check.h"
enum { N = 12, BIG = 40000 };
static int rank, size;
static char out[N][BIG * 4], in[BIG * 4], in2[BIG * 4];
static void fill(char *b, int n, uint64_t s) { for (int i = 0; i < n; i++) b[i] = (char)(s * 31 + (uint64_t)i * 7); }
static uint64_t look(const char *b, int n, uint64_t s) {
    for (int i = 0; i < n; i++) CHECK(b[i] == (char)(s * 31 + (uint64_t)i * 7));
    return s;
}
int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), state = seed * 1000, result = 0;
    MPI_Comm c;
    MPI_Comm_dup(MPI_COMM_WORLD, &c);
    MPI_Comm_set_errhandler(c, MPI_ERRORS_RETURN);
    int right = (rank + 1) % size, left = (rank + size - 1) % size;
    MPI_Request never, precv, psend, pssend, pbsend;
    static char never_in[8], pin[64], pout[64];
    int bsize = 1 << 20;
    char *attached = malloc((size_t)bsize);
    MPI_Buffer_attach(attached, bsize);
    MPI_Recv_init(never_in, 8, MPI_CHAR, left, 999, c, &never);
    MPI_Recv_init(pin, 64, MPI_CHAR, left, 50, c, &precv);
    MPI_Send_init(pout, 64, MPI_CHAR, right, 50, c, &psend);
    MPI_Ssend_init(pout, 64, MPI_CHAR, right, 50, c, &pssend);
    MPI_Bsend_init(pout, 64, MPI_CHAR, right, 50, c, &pbsend);
    for (long round = 0; round < rounds; round++) {
        MPI_Barrier(c);
        int to_self = (int)(mix(&state) % 3 == 0), dest = to_self ? rank : right, from = to_self ? rank : left;
        int n[N], tag[N];
        MPI_Request r[N];
        uint64_t s0 = (uint64_t)round * 100;
        for (int i = 0; i < N; i++) {
            uint64_t w = mix(&state);
            n[i] = w % 4 == 0 ? 0 : w % 4 == 1 ? (int)((w >> 8) % (BIG * 4)) : (int)((w >> 8) % 100);
            tag[i] = (int)((w >> 40) % 3);
            fill(out[i], n[i], s0 + (uint64_t)i);
            if (i % 4 == 0) MPI_Issend(out[i], n[i], MPI_CHAR, dest, tag[i], c, &r[i]);
            else if (i % 4 == 1) MPI_Ibsend(out[i], n[i] = n[i] % 5000, MPI_CHAR, dest, tag[i], c, &r[i]);
            else MPI_Isend(out[i], n[i], MPI_CHAR, dest, tag[i], c, &r[i]);
        }
        /* a matched probe now, received after the pause; it takes the first message of all */
        MPI_Message m;
        MPI_Status st;
        MPI_Mprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, c, &m, &st);
        int count;
        MPI_Get_count(&st, MPI_CHAR, &count);
        CHECK(st.MPI_SOURCE == from && st.MPI_TAG == tag[0] && count == n[0]);
        if (round % 3 == 0) usleep(2000);
        else if (round % 3 == 1) pace();
        memset(in, 77, sizeof in);
        int flag, gone[N] = {1};
        /* by tag 1 first, then whatever comes */
        for (int i = 1; i < N; i++) if (tag[i] == 1) {
            if (i == 5 && n[i] > 0) {
                int code = MPI_Recv(in, n[i] / 2, MPI_CHAR, MPI_ANY_SOURCE, 1, c, &st), class;
                MPI_Error_class(code, &class);
                CHECK(class == MPI_ERR_TRUNCATE);
            } else {
                memset(in, 77, 16);
                CHECK(MPI_Recv(in, BIG * 4, MPI_CHAR, i % 2 ? MPI_ANY_SOURCE : from, 1, c, &st) == MPI_SUCCESS);
                MPI_Get_count(&st, MPI_CHAR, &count);
                CHECK(st.MPI_SOURCE == from && st.MPI_TAG == 1 && count == n[i]);
                result = hash(result, &(uint64_t){look(in, n[i], s0 + (uint64_t)i)}, 8);
            }
            gone[i] = 1;
        }
        if (round % 2) pace();
        for (int i = 1; i < N; i++) if (!gone[i]) {
            MPI_Status pst;
            MPI_Probe(from, MPI_ANY_TAG, c, &pst);
            MPI_Get_count(&pst, MPI_CHAR, &count);
            CHECK(pst.MPI_TAG == tag[i] && count == n[i]);
            CHECK(MPI_Recv(in, BIG * 4, MPI_CHAR, MPI_ANY_SOURCE, MPI_ANY_TAG, c, &st) == MPI_SUCCESS);
            MPI_Get_count(&st, MPI_CHAR, &count);
            CHECK(st.MPI_SOURCE == from && st.MPI_TAG == tag[i] && count == n[i]);
            result = hash(result, &(uint64_t){look(in, n[i], s0 + (uint64_t)i)}, 8);
        }
        if (round % 4 == 0 && n[0] > 1) {
            int class, code = MPI_Mrecv(in2, n[0] - 1, MPI_CHAR, &m, &st);
            MPI_Error_class(code, &class);
            CHECK(class == MPI_ERR_TRUNCATE);
        } else {
            CHECK(MPI_Mrecv(in2, BIG * 4, MPI_CHAR, &m, &st) == MPI_SUCCESS);
            look(in2, n[0], s0);
        }
        CHECK(m == MPI_MESSAGE_NULL);
        CHECK(MPI_Waitall(N, r, MPI_STATUSES_IGNORE) == MPI_SUCCESS);
        MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, c, &flag, &st);
        /* a persistent receive that is cancelled, and one that was once and is not now */
        MPI_Start(&never);
        MPI_Start(&precv);
        if (round % 2 == 0) {
            MPI_Cancel(&precv);
            if (round % 3) pace();
            MPI_Wait(&precv, &st);
            MPI_Test_cancelled(&st, &flag);
            CHECK(flag);
            MPI_Start(&precv);
        }
        MPI_Barrier(c);
        pace();
        memset(pout, (int)round, 64);
        MPI_Request *ps = round % 3 == 0 ? &psend : round % 3 == 1 ? &pssend : &pbsend;
        MPI_Start(ps);
        if (round % 5 == 0) pace();
        MPI_Wait(&precv, &st);
        MPI_Test_cancelled(&st, &flag);
        CHECK(!flag && st.MPI_TAG == 50 && st.MPI_SOURCE == left && pin[63] == (char)round);
        memset(pin, 1, 64);
        MPI_Wait(ps, &st);
        MPI_Cancel(&never);
        MPI_Wait(&never, &st);
        MPI_Test_cancelled(&st, &flag);
        CHECK(flag);
        if (round % 7 == 0) {
            void *b; int s;
            MPI_Bsend(&round, 1, MPI_LONG, right, 60, c);
            MPI_Request q; long got;
            MPI_Irecv(&got, 1, MPI_LONG, left, 60, c, &q);
            MPI_Buffer_detach(&b, &s);
            CHECK(b == attached && s == bsize);
            MPI_Wait(&q, MPI_STATUS_IGNORE);
            CHECK(got == round);
            MPI_Buffer_attach(attached, bsize);
        }
    }
    MPI_Request *all[] = {&never, &precv, &psend, &pssend, &pbsend};
    for (int i = 0; i < 5; i++) MPI_Request_free(all[i]);
    uint64_t sum;
    MPI_Reduce(&result, &sum, 1, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Comm_free(&c);
    MPI_Finalize();
    return rank == 0 ? finish(sum) : 0;
}
