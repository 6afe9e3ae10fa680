/* Thousands of single pages, each apart from the next, in 1 GiB, and more of them as time goes by; and 9000 mapped one by one,
 * every other one without access. sparse [ROUNDS] [SEED] */
#include <sys/mman.h>
#include "check.h"
enum { PAGE = 4096, ROOM = 1 << 30, FIRST = 6000, STRIPES = 9000 };
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    uint64_t seed = (uint64_t)argument(argc, argv, 2, 1), state = seed, result = 0;
    unsigned char *room = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned char *stripes = mmap(NULL, (size_t)STRIPES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED && stripes != MAP_FAILED);
    CHECK(madvise(room, ROOM, MADV_NOHUGEPAGE) == 0);
    for (int i = 0; i < STRIPES; i++) {
        stripes[(size_t)i * PAGE] = (unsigned char)(i % 251 + 1);
        if (i % 2) CHECK(mprotect(stripes + (size_t)i * PAGE, PAGE, PROT_READ) == 0);
    }
    for (long n = -FIRST; n < rounds; n++) {
        room[mix(&state) % ROOM] = (unsigned char)(n % 251 + 1);
        if (n >= 0) pace();
    }
    state = seed;
    for (long n = -FIRST; n < rounds; n++) result = hash(result, &room[mix(&state) % ROOM], 1);
    for (int i = 0; i < STRIPES; i++) result = hash(result, &stripes[(size_t)i * PAGE], 1);
    return finish(result);
}
