/* Property: whatever it writes, reads into memory, maps, forks and catches, it finds every result as it must be.
   Usage: protected PART… — each part runs in a thread of its own until standard input ends. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096ul
static atomic_int stop;
static __thread const char *part;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            int e = errno;                                                                                             \
            fprintf(stderr, "%s: line %d: %s (errno %d)\n", part, __LINE__, #condition, e);                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static unsigned long next(unsigned long *seed) {
    *seed = *seed * 6364136223846793005ul + 1442695040888963407ul;
    return *seed >> 33;
}

static char *map(size_t pages) {
    char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

/* Writes of single words all over a region, checked against a second copy kept in another. */
static void writes(void) {
    enum { PAGES = 2048 };
    char *memory = map(PAGES), *copy = map(PAGES);
    unsigned long seed = 7;
    char *sparse = map(4096); /* pages that are not there when they are protected */
    size_t touched = 0;
    while (!stop) {
        if (touched < 4096)
            sparse[touched * PAGE] = 1, touched += 3;
        for (int n = 0; n < 300; n++) {
            unsigned long at = next(&seed) % (PAGES * PAGE / 8) * 8, value = next(&seed);
            *(unsigned long *)(memory + at) = value;
            *(unsigned long *)(copy + at) = value;
        }
        if (next(&seed) % 16 == 0)
            for (size_t at = 0; at < 64 * PAGE; at++)
                memory[at] = copy[at] = (char)at;
        if (next(&seed) % 64 == 0)
            CHECK(memcmp(memory, copy, PAGES * PAGE) == 0);
        usleep(200);
    }
}

/* The kernel writes into memory: read, readv, pread, recvmsg, getdents, stat, poll, select, times; also by syscall(2). */
static void kernel_writes(void) {
    enum { PAGES = 64 };
    int pipes[2], pair[2];
    CHECK(pipe(pipes) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    fcntl(pipes[1], F_SETPIPE_SZ, 1 << 18);
    char *from = map(PAGES), *to = map(PAGES);
    unsigned long seed = 99;
    int zero = memfd_create("zero", 0), self = open("/proc/self/exe", O_RDONLY);
    CHECK(ftruncate(zero, PAGES * PAGE) == 0);
    char *whole = map(PAGES);
    ssize_t have = pread(self, whole, PAGES * PAGE, 0);
    CHECK(have > 0);
    while (!stop) {
        size_t length = next(&seed) % (32 * PAGE) + 1, at = next(&seed) % (PAGES * PAGE - length);
        for (size_t n = 0; n < length; n += 7)
            from[at + n] = (char)(seed + n);
        CHECK(write(pipes[1], from + at, length) == (ssize_t)length);
        if (next(&seed) % 2)
            CHECK(read(pipes[0], to + at, length) == (ssize_t)length);
        else
            CHECK(syscall(SYS_read, pipes[0], to + at, length) == (ssize_t)length);
        CHECK(memcmp(from + at, to + at, length) == 0);
        struct iovec parts[3] = {{to, length / 3}, {to + 20 * PAGE, length / 3}, {to + 40 * PAGE, length - length / 3 * 2}};
        CHECK(write(pipes[1], from + at, length) == (ssize_t)length);
        CHECK(readv(pipes[0], parts, 3) == (ssize_t)length);
        CHECK(memcmp(to, from + at, length / 3) == 0);
        CHECK(memcmp(to + 40 * PAGE, from + at + length / 3 * 2, length - length / 3 * 2) == 0);
        size_t small = length % 5000 + 1;
        CHECK(send(pair[0], from + at, small, 0) == (ssize_t)small);
        struct iovec whole_part = {to + at, small};
        struct msghdr *message = (struct msghdr *)(to + 50 * PAGE + 100);
        memset(message, 0, sizeof *message);
        message->msg_iov = &whole_part;
        message->msg_iovlen = 1;
        CHECK(recvmsg(pair[1], message, MSG_WAITALL) == (ssize_t)small);
        CHECK(at + small > 50 * PAGE || memcmp(to + at, from + at, small) == 0);
        CHECK(pread(self, to, have, 0) == have && memcmp(to, whole, have) == 0);
        CHECK(lseek(zero, 0, SEEK_SET) == 0 && read(zero, to, PAGES * PAGE) == (ssize_t)(PAGES * PAGE));
        for (size_t n = 0; n < PAGES * PAGE; n += 512)
            CHECK(to[n] == 0);
        struct stat *about = (struct stat *)(to + next(&seed) % 60 * PAGE + PAGE - 40);
        CHECK(stat("/", about) == 0 && S_ISDIR(about->st_mode));
        struct timespec *now = (struct timespec *)(to + 62 * PAGE - 8);
        CHECK(syscall(SYS_clock_gettime, CLOCK_REALTIME, now) == 0 && now->tv_sec > 1000000);
        struct pollfd *polled = (struct pollfd *)(to + next(&seed) % 60 * PAGE + PAGE - 4);
        *polled = (struct pollfd){pipes[0], POLLIN, -1};
        CHECK(poll(polled, 1, 1) == 0 && polled->revents == 0);
        fd_set *set = (fd_set *)(to + 10 * PAGE - 64);
        FD_ZERO(set);
        FD_SET(pair[0], set);
        struct timeval *wait = (struct timeval *)(to + 11 * PAGE - 8);
        *wait = (struct timeval){0, 100};
        CHECK(select(pair[0] + 1, set, NULL, NULL, wait) == 0);
        char path[64];
        CHECK(getcwd(to + 30 * PAGE - 100, 200) != NULL);
        CHECK(readlink("/proc/self/cwd", path, sizeof path) > 0);
    }
}

/* A reader that mostly sleeps in read(2), with its buffer in memory that may be protected meanwhile. */
static int slow_pipe[2];

static void *feeder(void *unused) {
    (void)unused;
    char block[10000];
    part = "feeder";
    unsigned n = 0;
    do {
        memset(block, (int)n++, sizeof block);
        CHECK(write(slow_pipe[1], block, sizeof block) == sizeof block);
        usleep(3000);
    } while (!stop);
    close(slow_pipe[1]);
    return NULL;
}

static void sleeps(void) {
    CHECK(pipe(slow_pipe) == 0);
    /* Never full: then each write is in it whole. */
    CHECK(fcntl(slow_pipe[1], F_SETPIPE_SZ, 1 << 20) > 0);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, feeder, NULL) == 0);
    char *to = map(64);
    int rounds = 0;
    for (unsigned n = 0;; n++) {
        char *at = to + n % 50 * PAGE + 123;
        ssize_t got = read(slow_pipe[0], at, 10000);
        if (got == 0)
            break;
        CHECK(got == 10000);
        CHECK(at[0] == (char)n && at[9999] == (char)n);
        rounds++;
    }
    CHECK(rounds > 0 && pthread_join(other, NULL) == 0);
}

/* Mappings made, moved, protected and removed. */
static void layout(void) {
    unsigned long seed = 5;
    while (!stop) {
        size_t pages = next(&seed) % 200 + 10;
        char *p = map(pages);
        memset(p, 0x11, pages * PAGE);
        usleep(next(&seed) % 2000);
        CHECK(mprotect(p + 3 * PAGE, 2 * PAGE, PROT_READ) == 0);
        p[2 * PAGE] = p[5 * PAGE] = 0x22;
        char *q = mremap(p, pages * PAGE, (pages + 100) * PAGE, MREMAP_MAYMOVE);
        if (q == MAP_FAILED) { /* more than one mapping */
            CHECK(mprotect(p + 3 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE) == 0);
            p[3 * PAGE] = 0x11;
            q = mremap(p, pages * PAGE, (pages + 100) * PAGE, MREMAP_MAYMOVE);
        }
        CHECK(q != MAP_FAILED && q[0] == 0x11 && q[2 * PAGE] == 0x22 && q[5 * PAGE] == 0x22);
        memset(q + pages * PAGE, 0x33, 100 * PAGE);
        usleep(next(&seed) % 2000);
        CHECK(madvise(q + 6 * PAGE, PAGE, MADV_DONTNEED) == 0 && q[6 * PAGE] == 0);
        q[6 * PAGE] = 0x44;
        CHECK(munmap(q + 8 * PAGE, PAGE) == 0);
        CHECK(q[7 * PAGE] == 0x11 && q[9 * PAGE] == 0x11 && q[pages * PAGE] == 0x33);
        CHECK(mmap(q + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
              q + 8 * PAGE);
        CHECK(q[8 * PAGE] == 0);
        q[8 * PAGE] = 1;
        CHECK(munmap(q, (pages + 100) * PAGE) == 0);
        char *heap = malloc(next(&seed) % 300000 + 1);
        heap[0] = 1;
        free(heap);
    }
}

/* Faults of the application's own, with a handler that repairs them; the addresses must be the right ones. */
static char *guarded;
static atomic_int faults;

static void repair(int signal, siginfo_t *info, void *context) {
    (void)context;
    CHECK(signal == SIGSEGV && info->si_code == SEGV_ACCERR);
    CHECK((char *)info->si_addr >= guarded && (char *)info->si_addr < guarded + 16 * PAGE);
    sigset_t now;
    CHECK(sigprocmask(SIG_BLOCK, NULL, &now) == 0);
    CHECK(sigismember(&now, SIGSEGV) && sigismember(&now, SIGUSR2));
    CHECK(mprotect((char *)((unsigned long)info->si_addr & ~(PAGE - 1)), PAGE, PROT_READ | PROT_WRITE) == 0);
    faults++;
}

static sigjmp_buf back;
static void leap(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

static void own_faults(void) {
    guarded = map(16);
    struct sigaction action = {.sa_sigaction = repair, .sa_flags = SA_SIGINFO}, got;
    sigaddset(&action.sa_mask, SIGUSR2);
    while (!stop) {
        CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
        CHECK(sigaction(SIGSEGV, NULL, &got) == 0 && got.sa_sigaction == repair && sigismember(&got.sa_mask, SIGUSR2));
        CHECK(mprotect(guarded, 16 * PAGE, PROT_READ) == 0);
        int before = faults;
        for (int n = 0; n < 16; n++)
            guarded[n * PAGE + n] = (char)n;
        CHECK(faults == before + 16);
        sigset_t now;
        CHECK(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0 && !sigismember(&now, SIGSEGV) && !sigismember(&now, SIGUSR2));
        signal(SIGSEGV, leap);
        if (sigsetjmp(back, 1) == 0) {
            *(volatile int *)16 = 1;
            CHECK(0);
        }
        usleep(300);
    }
}

/* Signals with alternate stacks, all blocked, waited for, and many of them. */
static atomic_int caught;
static char *scribble;

static void count(int signal) {
    (void)signal;
    caught++;
    scribble[caught % 64 * PAGE] = (char)caught;
    char text[300];
    int fd = open("/proc/self/stat", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text) > 0);
    close(fd);
}

static void signals(void) {
    scribble = map(64);
    stack_t alternate = {.ss_sp = map(64), .ss_size = 64 * PAGE}, old;
    CHECK(sigaltstack(&alternate, NULL) == 0 && sigaltstack(NULL, &old) == 0 && old.ss_sp == alternate.ss_sp);
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_ONSTACK | SA_RESTART}, got;
    sigfillset(&action.sa_mask);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGUSR1, NULL, &got) == 0);
    CHECK(sigismember(&got.sa_mask, SIGSEGV) && sigismember(&got.sa_mask, SIGSYS));
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    char *to = map(16);
    for (int n = 0; !stop; n++) {
        sigset_t all, before, now, wait;
        sigfillset(&all);
        CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0 && !sigismember(&before, SIGSEGV));
        int had = caught;
        pthread_kill(pthread_self(), SIGUSR1);
        scribble[n % 64 * PAGE + 1] = 1; /* a fault of ours while all is blocked */
        CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGSEGV) && sigismember(&now, SIGSYS));
        CHECK(caught == had);
        sigfillset(&wait);
        sigdelset(&wait, SIGUSR1);
        CHECK(sigsuspend(&wait) == -1 && errno == EINTR && caught == had + 1);
        CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGSEGV));
        CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
        CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && !sigismember(&now, SIGSEGV));
        pthread_kill(pthread_self(), SIGUSR1);
        CHECK(caught == had + 2);
        CHECK(write(pipes[1], "abc", 3) == 3 && read(pipes[0], to + n % 15 * PAGE + PAGE - 1, 3) == 3);
        usleep(500);
    }
}

/* Children: fork, vfork, posix_spawn, popen, clone with memory of its own; each works on what it inherited. */
extern char **environ;
static void children(void) {
    char *memory = map(512);
    memset(memory, 5, 512 * PAGE);
    for (int n = 0; !stop; n++) {
        int status, pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t child = n % 2 ? fork() : (pid_t)syscall(SYS_fork);
        CHECK(child >= 0);
        if (child == 0) {
            memory[n % 512 * PAGE] = 9;
            CHECK(write(pipes[1], "0123456789", 10) == 10);
            CHECK(read(pipes[0], memory + 100 * PAGE - 5, 10) == 10 && memory[100 * PAGE] == '5');
            pid_t grandchild = fork();
            if (grandchild == 0) {
                memory[7 * PAGE] = 1;
                _exit(3);
            }
            CHECK(waitpid(grandchild, (int *)(memory + 200 * PAGE), 0) == grandchild);
            CHECK(WEXITSTATUS(*(int *)(memory + 200 * PAGE)) == 3);
            _exit(memory[n % 512 * PAGE] == 9 && memory[511 * PAGE] == 5 ? 42 : 1);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 42);
        CHECK(memory[n % 512 * PAGE] == 5);
        close(pipes[0]), close(pipes[1]);
        char *const arguments[] = {"true", NULL};
        CHECK(posix_spawnp(&child, "true", NULL, NULL, arguments, environ) == 0);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        child = vfork();
        if (child == 0) {
            execvp("true", arguments);
            _exit(1);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
        FILE *out = popen("echo hello", "r");
        char line[20];
        CHECK(out && fgets(line, sizeof line, out) && strcmp(line, "hello\n") == 0 && pclose(out) == 0);
        usleep(1000);
    }
}

/* Threads that come and go, with stacks of malloc too, and cancelled ones. */
static atomic_long sum;
static void *one_thread(void *argument) {
    char local[20000];
    part = "one thread";
    memset(local, 1, sizeof local);
    char text[64];
    int fd = open("/proc/self/comm", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text) > 0);
    close(fd);
    sum += (long)argument + local[19999] - 1;
    return argument;
}

static void *forever(void *argument) {
    char byte;
    part = "forever";
    while (read(*(int *)argument, &byte, 1) >= 0) {
    }
    return NULL;
}

static void threads(void) {
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    while (!stop) {
        pthread_t all[8], cancelled;
        pthread_attr_t attributes;
        void *stack = NULL, *result;
        sum = 0;
        for (long n = 0; n < 8; n++) {
            pthread_attr_init(&attributes);
            if (n == 3) {
                CHECK(posix_memalign(&stack, PAGE, 40 * PAGE) == 0);
                CHECK(pthread_attr_setstack(&attributes, stack, 40 * PAGE) == 0);
            }
            CHECK(pthread_create(&all[n], &attributes, one_thread, (void *)n) == 0);
        }
        for (long n = 0; n < 8; n++)
            CHECK(pthread_join(all[n], &result) == 0 && result == (void *)n);
        CHECK(sum == 28);
        free(stack);
        CHECK(pthread_create(&cancelled, NULL, forever, &pipes[0]) == 0);
        usleep(500);
        CHECK(pthread_cancel(cancelled) == 0);
        CHECK(pthread_join(cancelled, &result) == 0 && result == PTHREAD_CANCELED);
        usleep(300);
    }
}

/* Coroutines on stacks in the heap. */
static ucontext_t home, fibers[20];
static int turns[20];

static void fiber(int n) {
    part = "fiber";
    for (;;) {
        char local[3000];
        memset(local, n, sizeof local);
        turns[n]++;
        char text[64];
        int fd = open("/proc/self/comm", O_RDONLY);
        CHECK(fd >= 0 && read(fd, text, sizeof text) > 0 && close(fd) == 0);
        CHECK(local[0] == n && local[2999] == n);
        swapcontext(&fibers[n], &home);
    }
}

static void coroutines(void) {
    char *stacks = malloc(20 * 32768);
    for (int n = 0; n < 20; n++) {
        getcontext(&fibers[n]);
        fibers[n].uc_stack = (stack_t){.ss_sp = stacks + n * 32768, .ss_size = 32768};
        fibers[n].uc_link = &home;
        makecontext(&fibers[n], (void (*)(void))fiber, 1, n);
    }
    for (int round = 1; !stop; round++) {
        for (int n = 0; n < 20; n++) {
            swapcontext(&home, &fibers[n]);
            part = "coroutines";
            CHECK(turns[n] == round);
        }
        usleep(300);
    }
}

/* stdio, with buffers in protected memory. */
static void streams(void) {
    char *buffer = map(4);
    while (!stop) {
        FILE *file = tmpfile();
        CHECK(file);
        setvbuf(file, buffer + 100, _IOFBF, 3 * PAGE);
        for (int n = 0; n < 3000; n++)
            CHECK(fprintf(file, "line %d\n", n) > 0);
        rewind(file);
        char line[50], expected[50];
        for (int n = 0; n < 3000; n++) {
            snprintf(expected, sizeof expected, "line %d\n", n);
            CHECK(fgets(line, sizeof line, file) && strcmp(line, expected) == 0);
        }
        CHECK(fclose(file) == 0);
        usleep(1000);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} parts[] = {{"writes", writes},         {"kernel", kernel_writes}, {"sleeps", sleeps},     {"layout", layout},
             {"faults", own_faults},     {"signals", signals},      {"children", children}, {"threads", threads},
             {"coroutines", coroutines}, {"streams", streams}};

static void *runner(void *index) {
    part = parts[(long)index].name;
    parts[(long)index].run();
    return NULL;
}

int main(int count, char **names) {
    pthread_t all[sizeof parts / sizeof *parts];
    int running = 0;
    part = "main";
    for (long n = 0; n < (long)(sizeof parts / sizeof *parts); n++)
        for (int at = 1; at < count; at++)
            if (strcmp(names[at], parts[n].name) == 0)
                CHECK(pthread_create(&all[running++], NULL, runner, (void *)n) == 0);
    CHECK(running == count - 1);
    puts("ready");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {
    }
    stop = 1;
    for (int n = 0; n < running; n++)
        CHECK(pthread_join(all[n], NULL) == 0);
    puts("unharmed");
    return 0;
}
