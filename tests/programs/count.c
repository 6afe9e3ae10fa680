/* No MPI: counts in memory and, at the end, writes what it counted into a file. count [ROUNDS] [SEED] [FILE] */
#include "check.h"
enum { WORDS = 1 << 17 };
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    uint64_t state = (uint64_t)argument(argc, argv, 2, 1);
    uint64_t *table = calloc(WORDS, sizeof *table), expected = 0, sum = 0;
    CHECK(table);
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < 1000; i++) {
            uint64_t word = mix(&state);
            table[word % WORDS] += word >> 32;
            expected += word >> 32;
        }
        pace();
    }
    for (int i = 0; i < WORDS; i++) sum += table[i];
    CHECK(sum == expected);
    uint64_t result = hash(0, table, WORDS * sizeof *table);
    if (argc > 3) {
        FILE *file = fopen(argv[3], "w");
        CHECK(file && fprintf(file, "%016lx\n", (unsigned long)result) > 0 && fclose(file) == 0);
    }
    return finish(result);
}
