/* What the test programs share: a check that names its place, a repeatable random number, a hash of a result.
 * A program takes the number of rounds and a seed as arguments, so that a driver decides how long it lives, prints
 * one `result` line that depends on both alone, and EXIT-SUCCESS as its last word. */
#ifndef CHECK_H
#define CHECK_H
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { \
    fprintf(stderr, "%s:%d: failed: %s (errno %d)\n", __FILE__, __LINE__, #what, errno); \
    fflush(stderr); _exit(1); } } while (0)

/* SplitMix64. */
static inline uint64_t mix(uint64_t *state) {
    uint64_t word = *state += 0x9e3779b97f4a7c15u;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
    return word ^ (word >> 31);
}

/* FNV-1a over bytes. */
static inline uint64_t hash(uint64_t seed, const void *bytes, size_t count) {
    const unsigned char *byte = bytes;
    uint64_t value = seed ^ 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++) value = (value ^ byte[i]) * 0x100000001b3u;
    return value;
}

static inline long argument(int argc, char **argv, int index, long otherwise) {
    return argc > index ? atol(argv[index]) : otherwise;
}

/* One millisecond: rounds take time, so that a checkpoint falls between them. */
static inline void pace(void) { usleep(1000); }

static inline int finish(uint64_t result) {
    printf("result %016lx\nEXIT-SUCCESS\n", (unsigned long)result);
    return fflush(stdout) ? 1 : 0;
}
#endif
