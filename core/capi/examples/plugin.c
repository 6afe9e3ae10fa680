/* A plugin: a box of memory below, with a number in it, stands for what a library may keep that no image can hold. Each rank passes
 * numbers around by MPI and keeps the sum in its box. Before a checkpoint the number is fetched from there; after a restart
 * there is a new box. On the way the ranks tell each other what they know, in rounds, and end the program if that is wrong.
 *
 *     mpicc plugin.c -o plugin -lstillpoint && stillpoint run -n 3 -- ./plugin 300 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stillpoint.h>
#include <unistd.h>

static int rank, size, under, get, put, drop, below_pid;
static uint64_t box, kept, here; /* the box's address below, what was in it, and the process that it was made in */

static uint64_t call(int function, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t result = 0, arguments[] = {a, b, c};
    if (stillpoint_call(function, &result, arguments, 3) != 0) abort();
    return result;
}

static void set(uint64_t number) {
    if (under) call(put, box, (uint64_t)&number, sizeof number);
    else kept = number;
}

static uint64_t number(void) {
    uint64_t number = kept;
    if (under) call(put, (uint64_t)&number, box, sizeof number);
    return number;
}

/* Appends a record to `out`. */
static void say(struct stillpoint_still *a, uint32_t to, const void *bytes, uint32_t length) {
    uint32_t head[2] = {to, length}, all = (uint32_t)sizeof head + ((length + 3) & ~3u);
    if (a->out_len + all <= a->out_cap) {
        memset(a->out + a->out_len, 0, all);
        memcpy(a->out + a->out_len, head, sizeof head);
        memcpy(a->out + a->out_len + sizeof head, bytes, length);
    }
    a->out_len += all;
}

/* What `from` has said, behind `skip` bytes, as a number; `none` if it has said nothing. */
static uint64_t heard(const struct stillpoint_still *a, uint32_t from, size_t skip, uint64_t none) {
    for (size_t at = 0; at + 8 <= a->input_len;) {
        uint32_t head[2];
        memcpy(head, a->input + at, sizeof head);
        if (head[0] == from && head[1] == skip + sizeof none) memcpy(&none, a->input + at + 8 + skip, sizeof none);
        at += 8 + ((head[1] + 3) & ~3u);
    }
    return none;
}

static int64_t still(uint32_t command, struct stillpoint_still *a) {
    enum { NOTHING = 77 };
    uint32_t next = (uint32_t)((rank + 1) % size), before = (uint32_t)((rank + size - 1) % size);
    struct { uint32_t length, key; uint64_t value; } mine = {4, (uint32_t)rank, kept};
    a->out_len = 0;
    switch (command) {
    case STILLPOINT_COUNTS: /* to the next rank, and for the one before */
        mine.value = kept = number();
        say(a, next, &kept, sizeof kept);
        say(a, STILLPOINT_PUBLISH, &mine, sizeof mine);
        say(a, STILLPOINT_ASK, &before, sizeof before);
        return STILLPOINT_DONE;
    case STILLPOINT_DRAIN:
        if (a->round == 1) { /* the rank before has told twice, and now rank 0 has a word for the next one */
            if (heard(a, before, 0, NOTHING) != heard(a, STILLPOINT_FOUND, 12, NOTHING + 1)) return -1;
            if (rank == 0) say(a, next, &kept, sizeof kept);
            return rank == 0 ? STILLPOINT_SPEAKS : STILLPOINT_DONE;
        }
        if (rank == 1 && a->round == 2 && a->input_len != 0) { /* was done, and passes it on */
            if (heard(a, before, 0, NOTHING) == NOTHING) return -2;
            say(a, next, &kept, sizeof kept);
            return STILLPOINT_SPEAKS;
        }
        return STILLPOINT_DONE;
    case STILLPOINT_REBUILD:
        if (a->round == 0) {
            box = call(get, sizeof kept, 0, 0);
            set(kept);
            if (call(below_pid, 0, 0, 0) == here) return -3;
            here = call(below_pid, 0, 0, 0);
            say(a, next, &here, sizeof here);
            return STILLPOINT_SPEAKS;
        }
        return heard(a, before, 0, NOTHING) == NOTHING ? -4 : STILLPOINT_DONE;
    default: return STILLPOINT_DONE;
    }
}

int main(int argc, char **argv) {
    static const char *const refused[] = {"open boxes; they can be saved once they are closed"};
    int rounds = argc > 1 ? atoi(argv[1]) : 300;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int plugin = stillpoint_plugin("box", still, refused, 1);
    under = plugin >= 0;
    if (under) {
        get = stillpoint_below("libc.so.6", "malloc");
        put = stillpoint_below("libc.so.6", "memcpy");
        drop = stillpoint_below("libc.so.6", "free");
        below_pid = stillpoint_below("libc.so.6", "getpid");
        box = call(get, sizeof kept, 0, 0);
        here = call(below_pid, 0, 0, 0);
        stillpoint_plugin_live(plugin, 1);
        if (stillpoint_plugin("box", still, refused, 1) >= 0 || stillpoint_below(NULL, "malloc") >= 0) abort();
    }
    set(1);
    for (int round = 1; round <= rounds; round++) {
        uint64_t out = number() * 31 + (uint64_t)round, in;
        MPI_Sendrecv(&out, 1, MPI_UINT64_T, (rank + 1) % size, 0, &in, 1, MPI_UINT64_T, (rank + size - 1) % size, 0,
                     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        set(number() + in);
        if (round % 100 == 0 && under) {
            if (round == 100 && rank == 0) { /* what cannot be saved is named, and the program runs on */
                stillpoint_plugin_refuse(plugin, 0, 1);
                if (stillpoint_checkpoint() >= 0) abort();
                stillpoint_plugin_refuse(plugin, 0, -1);
            }
            MPI_Barrier(MPI_COMM_WORLD);
            int made = stillpoint_checkpoint();
            if (rank == 0) printf("round %d: %s\n", round, made == 1 ? "restarted" : made == 0 ? "checkpoint" : "none");
            fflush(stdout);
        }
        if (round > 100) usleep(10000);
    }
    uint64_t mine = number(), all;
    MPI_Reduce(&mine, &all, 1, MPI_UINT64_T, MPI_BXOR, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("result %016llx\nEXIT-SUCCESS\n", (unsigned long long)all);
    if (under) {
        stillpoint_plugin_live(plugin, 0);
        call(drop, box, 0, 0);
    }
    MPI_Finalize();
    return 0;
}
