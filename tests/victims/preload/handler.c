/* Property: whatever comes while it is in its handler for SIGSEGV, and in another within that, its next fault reaches the handler too.
   Each round prints `in` from the innermost handler, waits there for a byte, and prints `out` after both. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static char *page;

static void line(const char *text, size_t length) {
    if (write(1, text, length) != (ssize_t)length)
        abort();
}

static void wait_here(int signal) {
    (void)signal;
    char byte;
    line("in\n", 3);
    if (read(0, &byte, 1) != 1)
        _exit(1);
}

static void repair(int signal) {
    (void)signal;
    raise(SIGUSR1);
    if (mprotect(page, 4096, PROT_READ | PROT_WRITE) != 0)
        abort();
}

int main(void) {
    page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t alternate = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    struct sigaction outer = {.sa_handler = repair}, inner = {.sa_handler = wait_here, .sa_flags = SA_ONSTACK};
    sigaddset(&inner.sa_mask, SIGUSR2);
    if (page == MAP_FAILED || sigaltstack(&alternate, NULL) != 0 || sigaction(SIGSEGV, &outer, NULL) != 0 ||
        sigaction(SIGUSR1, &inner, NULL) != 0)
        abort();
    for (char round = 1; round < 4; round++) {
        if (mprotect(page, 4096, PROT_READ) != 0)
            abort();
        page[0] = round;
        sigset_t now;
        sigprocmask(SIG_BLOCK, NULL, &now);
        if (page[0] != round || sigismember(&now, SIGSEGV) || sigismember(&now, SIGUSR1) || sigismember(&now, SIGUSR2))
            abort();
        line("out\n", 4);
    }
    return 0;
}
