/* Memory that forked children do not get (MADV_DONTFORK), or get empty (MADV_WIPEONFORK), keeps what is in it; and children go on not
 * to get it. advice [ROUNDS] [SEED] */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
#include "check.h"
enum { PAGES = 16, BYTES = PAGES * 4096, WORDS = BYTES / 8 };
static uint64_t *mapped(int advice) {
    uint64_t *at = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED && (advice == 0 || madvise(at, BYTES, advice) == 0));
    return at;
}
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 3000);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), state = seed, sum = 0;
    uint64_t *kept = mapped(MADV_DONTFORK), *wiped = mapped(MADV_WIPEONFORK), *twin = mapped(0);
    for (long round = 0; round < rounds; round++) {
        size_t at = mix(&state) % WORDS;
        uint64_t word = mix(&state);
        kept[at] = wiped[at] = twin[at] = word;
        if (round % 20 == 0) {
            CHECK(memcmp(kept, twin, BYTES) == 0 && memcmp(wiped, twin, BYTES) == 0);
            sum = hash(sum, twin, BYTES);
        }
        if (round % 200 == 100) {
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                int all_zero = 1;
                for (size_t k = 0; k < WORDS; k++) all_zero &= wiped[k] == 0;
                /* Not there: ENOMEM. */
                int gone = msync(kept, BYTES, MS_ASYNC) == -1 && errno == ENOMEM;
                _exit(all_zero && gone && twin[at] == word ? 0 : 1);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        pace();
    }
    return finish(sum);
}
