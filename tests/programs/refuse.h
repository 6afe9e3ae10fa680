/* What the programs refuse_*.c share. Each holds something that cannot be saved until the file `let-go` appears in its
 * directory, says so by files (`held`, `free`), and ends once there is a file `end`. */
#ifndef REFUSE_H
#define REFUSE_H
#include <fcntl.h>
#include "check.h"

static inline void mark(const char *name) {
    int file = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0 && close(file) == 0);
}

static inline void await(const char *name) {
    while (access(name, F_OK) != 0) usleep(5000);
}

/* For programs without MPI: what is held has been made; `let_go` undoes it. */
static inline int hold(void (*let_go)(void)) {
    mark("held");
    await("let-go");
    let_go();
    mark("free");
    await("end");
    return finish(1);
}
#endif
