/* 256 MiB in memory, of which every round changes a part: more pages than a job with little memory to spare could have twice.
 * resident [ROUNDS] [SEED] */
#include <sys/mman.h>
#include "check.h"
enum { WORDS = 32 << 20, PAGE = 512, PART = 4096 };
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    uint64_t state = (uint64_t)argument(argc, argv, 2, 1);
    uint64_t *all = mmap(NULL, WORDS * sizeof *all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED);
    for (size_t i = 0; i < WORDS; i++) all[i] = i * 0x9e3779b97f4a7c15u; /* no page like another */
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < PART; i++) all[mix(&state) % WORDS / PAGE * PAGE + (size_t)round % PAGE] += state;
        pace();
    }
    return finish(hash(state, all, WORDS * sizeof *all));
}
