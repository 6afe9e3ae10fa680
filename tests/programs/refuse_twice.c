/* Shared anonymous memory that is mapped at two places (mremap(2) with an old size of 0). */
#define _GNU_SOURCE
#include <sys/mman.h>
#include "refuse.h"
static char *first, *second;
static void let_go(void) { CHECK(munmap(second, 4096) == 0); }
int main(void) {
    first = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(first != MAP_FAILED);
    second = mremap(first, 0, 4096, MREMAP_MAYMOVE);
    CHECK(second != MAP_FAILED && second != first);
    first[0] = 1;
    CHECK(second[0] == 1);
    return hold(let_go);
}
