/* Nothing is held: a file stays open for reading, `data`, which somebody else may replace or cut meanwhile; and one for writing, `log`. */
#include "refuse.h"
static void let_go(void) {}
int main(void) {
    char byte;
    int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    CHECK(log >= 0 && write(log, "0123456789", 10) == 10);
    int file = open("data", O_RDONLY);
    CHECK(file >= 0 && read(file, &byte, 1) == 1);
    return hold(let_go);
}
