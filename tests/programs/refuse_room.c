/* Memory whose image fits into no store: a file that takes up no room itself, 4 TiB, mapped privately eight times. */
#include <sys/mman.h>
#include "refuse.h"
enum { TIMES = 8, BITS = 42 };
static void *memory[TIMES];
static void let_go(void) {
    for (int i = 0; i < TIMES; i++) CHECK(munmap(memory[i], 1ul << BITS) == 0);
}
int main(void) {
    int file = open("sparse", O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 1l << BITS) != 0) return 77; /* the file system has no files as large */
    for (int i = 0; i < TIMES; i++) {
        memory[i] = mmap(NULL, 1ul << BITS, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, file, 0);
        if (memory[i] == MAP_FAILED) return 77;
    }
    CHECK(close(file) == 0);
    return hold(let_go);
}
