/* The program forbids checkpoints for a while. refuse_forbid ROUNDS SEED LIBRARY: the path of libstillpoint.so */
#include <dlfcn.h>
#include "refuse.h"
static int (*allow)(void);
static void let_go(void) { CHECK(allow() == 0); }
int main(int argc, char **argv) {
    CHECK(argc > 3);
    void *library = dlopen(argv[3], RTLD_NOW);
    CHECK(library);
    int (*forbid)(void) = (int (*)(void))dlsym(library, "stillpoint_forbid");
    allow = (int (*)(void))dlsym(library, "stillpoint_allow");
    CHECK(forbid && allow && forbid() == 0);
    return hold(let_go);
}
