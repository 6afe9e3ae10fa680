/* The C++ bindings of MPI 2.2, which Open MPI 4 still has: communicators by their classes, requests, a user operation, an error handler,
 * attributes. cxx [ROUNDS] */
#include <mpi.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
#include <vector>

#define CHECK(what) do { if (!(what)) { \
    std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #what); std::fflush(stderr); _exit(1); } } while (0)

/* First one linear function, and then another: the order matters. */
static void later(const void *in, void *inout, int count, const MPI::Datatype &) {
    for (int k = 0; k < count; k++) {
        const long *a = static_cast<const long *>(in) + 2 * k;
        long *b = static_cast<long *>(inout) + 2 * k;
        b[1] = (b[0] * a[1] + b[1]) % 1009;
        b[0] = b[0] * a[0] % 1009;
    }
}

static int errors, last;
static void wrong(MPI::Comm &, int *code, ...) {
    errors++;
    last = MPI::Get_error_class(*code);
}

int main(int argc, char **argv) {
    MPI::Init(argc, argv);
    long rounds = argc > 1 ? std::atol(argv[1]) : 100;
    MPI::Intracomm all = MPI::COMM_WORLD.Dup();
    int rank = all.Get_rank(), ranks = all.Get_size();
    MPI::Intracomm parity = all.Split(rank % 2, rank);
    bool periodic = true;
    MPI::Cartcomm ring = all.Create_cart(1, &ranks, &periodic, false);
    int previous, next;
    ring.Shift(0, 1, previous, next);
    MPI::Op op;
    op.Init(later, false);
    MPI::Datatype triple = MPI::LONG.Create_contiguous(3);
    triple.Commit();
    int key = MPI::Comm::Create_keyval(MPI::Comm::NULL_COPY_FN, MPI::Comm::NULL_DELETE_FN, nullptr);
    all.Set_attr(key, &rounds);
    MPI::Errhandler handler = MPI::Comm::Create_errhandler(wrong);
    all.Set_errhandler(handler);
    MPI::Datatype pair = MPI::LONG.Create_contiguous(2);
    pair.Commit();
    std::vector<long> out(3), in(3), sum(2), whole(2);
    MPI::Prequest send = ring.Send_init(out.data(), 1, triple, next, 4);
    std::uint64_t result = 0;
    for (long round = 0; round < rounds; round++) {
        for (int k = 0; k < 3; k++) out[k] = 100 * round + 10 * k + rank;
        MPI::Request receive = ring.Irecv(in.data(), 3, MPI::LONG, MPI::ANY_SOURCE, 4);
        send.Start();
        MPI::Status status;
        receive.Wait(status);
        send.Wait();
        CHECK(status.Get_source() == previous && status.Get_count(MPI::LONG) == 3 && in[2] == 100 * round + 20 + previous);
        all.Allreduce(in.data(), sum.data(), 1, pair, op);
        all.Reduce(in.data(), whole.data(), 1, pair, op, 0);
        CHECK(rank != 0 || sum == whole);
        long most;
        parity.Allreduce(&out[0], &most, 1, MPI::LONG, MPI::MAX);
        CHECK(most == 100 * round + (ranks - 1 - (ranks - 1 - rank) % 2));
        if (round % 50 == 0) {
            void *value = nullptr;
            CHECK(all.Get_attr(key, &value) && value == &rounds);
            all.Send(&most, 1, MPI::LONG, ranks + 3, 1);
            CHECK(errors == round / 50 + 1 && last == MPI::ERR_RANK);
        }
        for (long word : sum) result = (result * 31 + static_cast<std::uint64_t>(word)) % 1000000007;
        usleep(1000);
    }
    send.Free();
    triple.Free();
    pair.Free();
    handler.Free();
    op.Free();
    ring.Free();
    parity.Free();
    MPI::Comm::Free_keyval(key);
    all.Free();
    MPI::Finalize();
    if (rank == 0) std::printf("result %016lx\nEXIT-SUCCESS\n", static_cast<unsigned long>(result));
    return 0;
}
