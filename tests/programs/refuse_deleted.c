/* A file that is open and has no name any more. */
#include "refuse.h"
static int file;
static void let_go(void) { CHECK(close(file) == 0); }
int main(void) {
    file = open("gone", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(file >= 0 && write(file, "x", 1) == 1 && unlink("gone") == 0);
    return hold(let_go);
}
