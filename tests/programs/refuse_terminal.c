/* Both ends of a pseudo-terminal that the program has opened itself. */
#define _GNU_SOURCE
#include "refuse.h"
static int master, slave;
static void let_go(void) { CHECK(close(slave) == 0 && close(master) == 0); }
int main(void) {
    master = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    CHECK(slave >= 0);
    return hold(let_go);
}
