/* Nothing is held: a file stays open for reading, `data`, which somebody else may replace or cut meanwhile. */
#include "refuse.h"
static void let_go(void) {}
int main(void) {
    char byte;
    int file = open("data", O_RDONLY);
    CHECK(file >= 0 && read(file, &byte, 1) == 1);
    return hold(let_go);
}
