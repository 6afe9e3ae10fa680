/* A pipe of the program's own. */
#include "refuse.h"
static int ends[2];
static void let_go(void) { CHECK(close(ends[0]) == 0 && close(ends[1]) == 0); }
int main(void) {
    CHECK(pipe(ends) == 0 && write(ends[1], "x", 1) == 1);
    return hold(let_go);
}
