/* OpenMP and MPI: four threads compute, one funnels; thread-private state lives from round to round. openmp_mpi [ROUNDS] [SEED] */
#include <mpi.h>
#include <omp.h>
#include "check.h"
enum { THREADS = 4, WORDS = 1 << 14 };
static uint64_t own;
#pragma omp threadprivate(own)
int main(int argc, char **argv) {
    int rank, size, level;
    static uint64_t table[WORDS];
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
    CHECK(level >= MPI_THREAD_FUNNELED);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long rounds = argument(argc, argv, 1, 100);
    uint64_t total = (uint64_t)argument(argc, argv, 2, 1), owns = 0;
    omp_set_dynamic(0);
    omp_set_num_threads(THREADS);
    for (long round = 0; round < rounds; round++) {
        uint64_t part = 0;
        #pragma omp parallel reduction(+ : part)
        {
            CHECK(omp_get_num_threads() == THREADS);
            own++;
            CHECK(own == (uint64_t)round + 1);
            #pragma omp for schedule(dynamic, 256)
            for (int i = 0; i < WORDS; i++) {
                uint64_t state = total + table[i] + (uint64_t)(rank * WORDS + i);
                table[i] = mix(&state);
                part += table[i];
            }
        }
        MPI_Allreduce(&part, &total, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
        pace();
    }
    #pragma omp parallel reduction(+ : owns)
    owns += own;
    CHECK(owns == (uint64_t)(THREADS * rounds));
    MPI_Finalize();
    return rank == 0 ? finish(total) : 0;
}
