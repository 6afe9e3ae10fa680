/* Reads its standard input to the end, a line a millisecond. lines */
#include "check.h"
int main(void) {
    char line[256];
    uint64_t sum = 0, lines = 0;
    while (fgets(line, sizeof line, stdin)) {
        sum = hash(sum, line, strlen(line));
        lines++;
        pace();
    }
    return lines ? finish(sum) : 0;
}
