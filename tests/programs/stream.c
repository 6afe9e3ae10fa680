/* Without MPI: two programs that talk over TCP, as verbs programs do to find each other. stream ROUNDS SEED listen|connect FILE
 * Numbers go there and back; each end checks what it gets. The listener writes its address, ADDRESS from the environment or
 * 127.0.0.1, and its port into the file. */
#include <arpa/inet.h>
#include <sys/socket.h>
#include "check.h"

static void all(ssize_t (*step)(int, void *, size_t), int s, void *bytes, size_t n) {
    for (char *at = bytes; n > 0;) {
        ssize_t done = step(s, at, n);
        CHECK(done > 0);
        at += done;
        n -= (size_t)done;
    }
}
static ssize_t put(int s, void *bytes, size_t n) { return send(s, bytes, n, MSG_NOSIGNAL); }
static ssize_t get(int s, void *bytes, size_t n) { return recv(s, bytes, n, 0); }

int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    uint64_t state = (uint64_t)argument(argc, argv, 2, 1), sum = 0, word;
    CHECK(argc > 4);
    int listens = strcmp(argv[3], "listen") == 0, port, s = socket(AF_INET, SOCK_STREAM, 0);
    const char *own = getenv("ADDRESS");
    char address[64] = "127.0.0.1";
    struct sockaddr_in at = {.sin_family = AF_INET};
    if (own) CHECK(snprintf(address, sizeof address, "%s", own) < (int)sizeof address);
    socklen_t length = sizeof at;
    if (listens) {
        at.sin_addr.s_addr = inet_addr(address);
        CHECK(bind(s, (struct sockaddr *)&at, sizeof at) == 0 && listen(s, 1) == 0);
        CHECK(getsockname(s, (struct sockaddr *)&at, &length) == 0);
        char name[4096];
        CHECK(snprintf(name, sizeof name, "%s.new", argv[4]) < (int)sizeof name);
        FILE *file = fopen(name, "w");
        CHECK(file && fprintf(file, "%s %d\n", address, ntohs(at.sin_port)) > 0 && fclose(file) == 0 && rename(name, argv[4]) == 0);
        int listener = s;
        CHECK((s = accept(listener, NULL, NULL)) >= 0 && close(listener) == 0);
    } else {
        FILE *file;
        while (!(file = fopen(argv[4], "r"))) pace();
        CHECK(fscanf(file, "%63s %d", address, &port) == 2 && fclose(file) == 0);
        at.sin_addr.s_addr = inet_addr(address);
        at.sin_port = htons((uint16_t)port);
        CHECK(connect(s, (struct sockaddr *)&at, sizeof at) == 0);
    }
    /* The one that connects is a few numbers ahead, so that some are always on their way. */
    enum { AHEAD = 8 };
    uint64_t mine[AHEAD] = {0};
    for (long round = 0; round < rounds + AHEAD; round++) {
        if (!listens) {
            if (round >= AHEAD) {
                all(get, s, &word, sizeof word);
                CHECK(word == hash(mine[round % AHEAD], &mine[round % AHEAD], sizeof word));
                sum ^= word;
            }
            if (round < rounds) {
                word = mine[round % AHEAD] = mix(&state);
                all(put, s, &word, sizeof word);
            }
        } else if (round < rounds) {
            all(get, s, &word, sizeof word);
            CHECK(word == mix(&state));
            word = hash(word, &word, sizeof word);
            sum ^= word;
            all(put, s, &word, sizeof word);
        }
        pace();
    }
    return finish(sum);
}
