/* A listening socket at which a stranger waits to be accepted. Who has connected is not of this job, so only this end can be asked. */
#include "refuse_tcp.h"
static void let_go(void) {
    int s = accept(listener, NULL, NULL);
    CHECK(s >= 0 && close(s) == 0);
}
int main(void) {
    int s = dial();
    /* It has no descriptor in this process any more, and still waits. */
    CHECK(close(s) == 0);
    return hold(let_go);
}
