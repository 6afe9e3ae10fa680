/* Datatypes and operations made once and used in every round: a column, an indexed triangle, a resized struct, a subarray,
 * their envelopes, an operation of our own on a struct that does not commute. types [ROUNDS] */
#include <mpi.h>
#include <stddef.h>
#include "check.h"
enum { N = 8 };
struct pair { double factor; int8_t mark; int32_t add[2]; };
/* Affine maps over int32, composed: the order of the ranks shows in the result. */
static void compose(void *in, void *inout, int *count, MPI_Datatype *type) {
    struct pair *first = in, *second = inout;
    int bytes;
    MPI_Type_size(*type, &bytes);
    CHECK(bytes == 17);
    for (int i = 0; i < *count; i++) {
        second[i].add[0] = (int32_t)second[i].factor * first[i].add[0] + second[i].add[0];
        second[i].factor *= first[i].factor;
    }
}
int main(int argc, char **argv) {
    int rank, size;
    MPI_Datatype column, triangle, bare, record, block;
    MPI_Op op;
    MPI_Init(&argc, &argv);
    long rounds = argument(argc, argv, 1, 100);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Type_vector(N, 1, N, MPI_INT, &column);
    int lengths[N], places[N];
    for (int i = 0; i < N; i++) { lengths[i] = i + 1; places[i] = i * N; }
    MPI_Type_indexed(N, lengths, places, MPI_INT, &triangle);
    MPI_Type_create_struct(3, (int[]){1, 1, 2}, (MPI_Aint[]){offsetof(struct pair, factor), offsetof(struct pair, mark), offsetof(struct pair, add)},
                           (MPI_Datatype[]){MPI_DOUBLE, MPI_INT8_T, MPI_INT32_T}, &bare);
    MPI_Type_create_resized(bare, 0, sizeof(struct pair), &record);
    MPI_Type_free(&bare); /* the record keeps it */
    MPI_Type_create_subarray(2, (int[]){N, N}, (int[]){2, 3}, (int[]){4, 5}, MPI_ORDER_C, MPI_INT, &block);
    MPI_Type_commit(&column);
    MPI_Type_commit(&triangle);
    MPI_Type_commit(&record);
    MPI_Type_commit(&block);
    MPI_Op_create(compose, 0, &op);
    int right = (rank + 1) % size, left = (rank + size - 1) % size;
    uint64_t result = 0;
    for (long round = 0; round < rounds; round++) {
        int mine[N][N], got[N][N] = {{0}}, ints, addresses, types, combiner, count;
        MPI_Status status;
        for (int y = 0; y < N; y++) for (int x = 0; x < N; x++) mine[y][x] = rank * 1000 + y * N + x + (int)round;
        MPI_Sendrecv(&mine[0][2], 1, column, right, 0, got[3], N, MPI_INT, left, 0, MPI_COMM_WORLD, &status);
        for (int y = 0; y < N; y++) CHECK(got[3][y] == left * 1000 + y * N + 2 + (int)round);
        MPI_Get_count(&status, MPI_INT, &count);
        CHECK(count == N);
        MPI_Sendrecv(mine, 1, triangle, right, 1, got, 1, triangle, left, 1, MPI_COMM_WORLD, &status);
        for (int y = 0; y < N; y++) CHECK(got[y][y] == left * 1000 + y * N + y + (int)round);
        MPI_Get_elements(&status, triangle, &count);
        CHECK(count == N * (N + 1) / 2);
        MPI_Sendrecv(mine, 1, block, right, 2, got, 1, block, left, 2, MPI_COMM_WORLD, &status);
        CHECK(got[4][5] == left * 1000 + 4 * N + 5 + (int)round && got[5][7] == left * 1000 + 5 * N + 7 + (int)round);
        struct pair in[2] = {{rank + 2, 1, {(int)round, 0}}, {3, 1, {rank, 0}}}, out[2], expected = in[0];
        MPI_Allreduce(in, out, 2, record, op, MPI_COMM_WORLD);
        expected.factor = 1;
        expected.add[0] = 0;
        for (int each = 0; each < size; each++) {
            expected.add[0] = (each + 2) * expected.add[0] + (int)round;
            expected.factor *= each + 2;
        }
        CHECK(out[0].factor == expected.factor && out[0].add[0] == expected.add[0]);
        MPI_Type_get_envelope(record, &ints, &addresses, &types, &combiner);
        CHECK(combiner == MPI_COMBINER_RESIZED && types == 1);
        result = hash(result, &out[1].add[0], sizeof(int32_t));
        pace();
    }
    MPI_Op_free(&op);
    MPI_Type_free(&block);
    MPI_Type_free(&record);
    MPI_Type_free(&triangle);
    MPI_Type_free(&column);
    MPI_Finalize();
    return rank == 0 ? finish(result) : 0;
}
