/* A file mapped shared and writable: whoever else maps it sees what is written. */
#include <sys/mman.h>
#include "refuse.h"
static char *memory;
static void let_go(void) { CHECK(munmap(memory, 4096) == 0); }
int main(void) {
    int file = open("shared.data", O_RDWR | O_CREAT, 0600);
    CHECK(file >= 0 && ftruncate(file, 4096) == 0);
    memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(memory != MAP_FAILED && close(file) == 0);
    memory[0] = 1;
    return hold(let_go);
}
