/* Property: processes that clone(2) made share what they shared, and nothing else: descriptors, directories, memory. */
#include "victim.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

enum { FILES, FS, VM, NONE, KINDS };
enum { ASK_FD = 700 };

static const int flags[KINDS] = { CLONE_FILES, CLONE_FS, CLONE_VM, 0 };
static struct {
	volatile int order, done, answer;
} *shared[KINDS];
static volatile int in_memory;
static pid_t pids[KINDS];

static int run(void *argument)
{
	int kind = (int)(intptr_t)argument;
	struct timespec step = { .tv_nsec = 2000000 };
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (;;) {
		while (shared[kind]->done == shared[kind]->order)
			nanosleep(&step, NULL);
		int answer = 0;
		answer |= fcntl(ASK_FD, F_GETFD) >= 0 ? 1 : 0;
		char here[256] = "";
		syscall(SYS_getcwd, here, sizeof here);
		answer |= strstr(here, "/elsewhere") ? 2 : 0;
		answer |= in_memory ? 4 : 0;
		shared[kind]->answer = answer;
		shared[kind]->done = shared[kind]->order;
	}
	return 0;
}

static int ask(int kind)
{
	int tries = 0;
	shared[kind]->order++;
	while (shared[kind]->done != shared[kind]->order && tries++ < 5000)
		usleep(1000);
	return tries < 5000 ? shared[kind]->answer : -1;
}

static void verify(void)
{
	static const int wanted[KINDS] = { 1, 2, 4, 0 };
	for (int kind = 0; kind < KINDS; kind++) {
		int answer = ask(kind);
		expect(answer == 0, "%d sees %d before anything was changed", kind, answer);
	}
	must(dup2(0, ASK_FD));
	must(chdir(in_dir("elsewhere")));
	in_memory = 1;
	for (int kind = 0; kind < KINDS; kind++) {
		int answer = ask(kind);
		expect(answer == wanted[kind], "%d sees %d and not %d", kind, answer, wanted[kind]);
	}
	must(close(ASK_FD));
	must(chdir("/"));
	in_memory = 0;
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	must(mkdir(in_dir("elsewhere"), 0777) && errno != EEXIST ? -1 : 0);
	must(chdir("/"));
	if (fcntl(0, F_GETFD) < 0)
		must(open("/dev/null", O_RDWR));
	for (int kind = 0; kind < KINDS; kind++) {
		shared[kind] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		must(shared[kind] == MAP_FAILED ? -1 : 0);
	}
	for (int kind = 0; kind < KINDS; kind++) {
		char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		must(stack == MAP_FAILED ? -1 : 0);
		pids[kind] = must(clone(run, stack + 65536, flags[kind] | SIGCHLD, (void *)(intptr_t)kind));
	}
	return serve(NULL, verify);
}
