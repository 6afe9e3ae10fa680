/* Memory maps: a hole, PROT_NONE, read-only, a guard page that still faults, mremap, brk, a private file map. mmap [ROUNDS] */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include "check.h"
static sigjmp_buf back;
static void on_fault(int number) { siglongjmp(back, number); }
static int faults(volatile char *at) {
    if (sigsetjmp(back, 1)) return 1;
    *at = 1;
    return 0;
}
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100), page = sysconf(_SC_PAGESIZE);
    struct sigaction action = {.sa_handler = on_fault};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    char *area = mmap(NULL, 16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *growing = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FILE *self = fopen("/proc/self/exe", "r");
    char *file = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(self), 0);
    CHECK(area != MAP_FAILED && shared != MAP_FAILED && growing != MAP_FAILED && file != MAP_FAILED);
    CHECK(memcmp(file, "\177ELF", 4) == 0);
    memset(area, 5, (size_t)(16 * page));
    CHECK(munmap(area + 4 * page, (size_t)page) == 0);                 /* a hole */
    CHECK(mprotect(area + 8 * page, (size_t)page, PROT_NONE) == 0);    /* a guard page with something below it */
    CHECK(mprotect(area + 12 * page, (size_t)page, PROT_READ) == 0);
    char *heap = sbrk(8 * page);
    CHECK(heap != (void *)-1);
    long size = page;
    for (long round = 0; round < rounds; round++) {
        CHECK(faults(area + 8 * page) && faults(area + 12 * page) && !faults(area + 9 * page));
        CHECK(area[3 * page] == 5 && area[12 * page] == 5 && mprotect(area + 4 * page, 1, PROT_READ) == -1);
        CHECK(growing[0] == (char)round && (round == 0 || file[100] == (char)round));
        if (round % 8 == 0) {
            growing = mremap(growing, (size_t)size, (size_t)(size + page), MREMAP_MAYMOVE);
            CHECK(growing != MAP_FAILED && growing[size] == 0);
            size += page;
        }
        growing[0] = file[100] = shared[0] = heap[page] = (char)(round + 1);
        growing[size - 1] = 3;
        CHECK(madvise(area + 14 * page, (size_t)page, MADV_DONTNEED) == 0 && area[14 * page] == 0);
        pace();
    }
    CHECK(shared[0] == (char)rounds && heap[page] == (char)rounds);
    CHECK(mprotect(area + 8 * page, (size_t)page, PROT_READ) == 0 && area[8 * page] == 5);
    return finish(hash(0, growing, (size_t)size) ^ hash(0, area + 9 * page, (size_t)page));
}
