/* A System V shared memory segment. */
#include <sys/ipc.h>
#include <sys/shm.h>
#include "refuse.h"
static char *memory;
static void let_go(void) { CHECK(shmdt(memory) == 0); }
int main(void) {
    int segment = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    CHECK(segment >= 0);
    memory = shmat(segment, NULL, 0);
    CHECK(memory != (void *)-1 && shmctl(segment, IPC_RMID, NULL) == 0);
    memory[0] = 1;
    return hold(let_go);
}
