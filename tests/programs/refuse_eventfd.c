/* A descriptor that is no file: an eventfd stands for epoll, timerfd, signalfd and inotify. */
#include <sys/eventfd.h>
#include "refuse.h"
static int counter;
static void let_go(void) { CHECK(close(counter) == 0); }
int main(void) {
    counter = eventfd(3, 0);
    CHECK(counter >= 0);
    return hold(let_go);
}
