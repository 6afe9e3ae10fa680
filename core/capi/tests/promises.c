/* What stillpoint.h promises, checked from inside: tests/tests/capi.rs runs it natively, and kills it once after its last
 * checkpoint. No MPI. Prints `result` and EXIT-SUCCESS. */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "stillpoint.h"

#define CHECK(what) do { if (!(what)) { \
    fprintf(stderr, "%s:%d: failed: %s (code %d)\n", __FILE__, __LINE__, #what, code); _exit(1); } } while (0)
enum { BYTES = 8 << 20 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int objection, inside, order[64], events, befores, afters, restarts;

static int first_before(void *arg) {
    pthread_mutex_lock(&lock);
    order[events++ % 64] = *(int *)arg;
    inside = stillpoint_checkpoint();
    befores++;
    free(malloc(100));
    return 0;
}
static void first_after(void *arg) {
    order[events++ % 64] = -*(int *)arg;
    afters++;
    pthread_mutex_unlock(&lock);
}
static void first_restarted(void *arg) {
    order[events++ % 64] = -*(int *)arg;
    restarts++;
    pthread_mutex_unlock(&lock);
}
static int second_before(void *arg) {
    order[events++ % 64] = *(int *)arg;
    return objection;
}
static void second_after(void *arg) { order[events++ % 64] = -*(int *)arg; }

int main(void) {
    int code = 0, one = 1, two = 2, there = stillpoint_active();
    unsigned char *kept, *left = NULL;
    CHECK(posix_memalign((void **)&left, 4096, BYTES) == 0 && (kept = malloc(BYTES)) != NULL);
    memset(kept, 7, BYTES);
    memset(left, 9, BYTES);
    CHECK((code = stillpoint_on_checkpoint(first_before, first_after, first_restarted, &one)) == 0);
    CHECK((code = stillpoint_on_checkpoint(second_before, second_after, second_after, &two)) == 0);
    CHECK((code = stillpoint_allow()) == (there ? -EINVAL : 0));
    CHECK((code = stillpoint_exclude(left, 0)) == (there ? -EINVAL : 0));
    CHECK((code = stillpoint_exclude(left, BYTES)) == 0 && (code = stillpoint_exclude(left, BYTES)) == 0);
    CHECK((code = stillpoint_include(left + BYTES / 2, 4096)) == 0);
    if (!there) {
        CHECK((code = stillpoint_checkpoint()) == -ENOSYS && stillpoint_restarts() == 0 && befores == 0);
        puts("result kept\nEXIT-SUCCESS");
        return 0;
    }

    stillpoint_forbid();
    stillpoint_forbid();
    stillpoint_allow();
    CHECK((code = stillpoint_checkpoint()) == -EBUSY);
    CHECK(befores == 0);
    stillpoint_allow();

    objection = 5;
    CHECK((code = stillpoint_checkpoint()) == -EBUSY);
    objection = 0;
    CHECK(befores == 0 && events == 1 && order[0] == 2); /* the second objected: the first was not even asked */
    events = 0;
    CHECK((code = stillpoint_checkpoint()) == 0);
    CHECK(stillpoint_checkpoints() == 1 && befores == 1 && afters == 1 && inside == -EDEADLK);
    CHECK(events == 4 && order[0] == 2 && order[1] == 1 && order[2] == -1 && order[3] == -2);

    events = 0;
    code = stillpoint_checkpoint();
    CHECK(code == 0 || code == 1);
    CHECK(stillpoint_checkpoints() == 2 && events == 4 && order[2] == -1);
    if (code == 0) {
        puts("ready to be killed");
        fflush(stdout);
        pause();
    }
    CHECK(stillpoint_restarts() == 1 && restarts == 1 && afters == 1 && befores == 2);
    for (int i = 0; i < BYTES; i++) {
        int included = i >= BYTES / 2 && i < BYTES / 2 + 4096;
        CHECK(kept[i] == 7 && left[i] == (included ? 9 : 0));
    }
    CHECK((code = stillpoint_include(left, BYTES)) == 0);
    free(left);
    pthread_mutex_lock(&lock);
    puts("result kept\nEXIT-SUCCESS");
    return 0;
}
