/* Properties of processes and threads. */
#include "case.h"
#include <pthread.h>
#include <sys/prctl.h>

/* What /proc tells of a task: the line of a file that begins with a word. */
static const char *line_of(int pid, const char *file, const char *word)
{
	static char line[4][256];
	static int next;
	char path[64], text[4096] = "", *at;
	next = (next + 1) % 4;
	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
		text[0] = 0;
	close(fd);
	at = strstr(text, word);
	snprintf(line[next], sizeof line[next], "%.*s", at ? (int)strcspn(at, "\n") : 0, at ? at : "");
	return line[next];
}

static char state_of(int pid)
{
	return line_of(pid, "status", "State:")[7];
}

/* thread group leaders that ended */

static int numbers[4];

static void await_end_of(int pid)
{
	while (state_of(pid) != 'Z')
		usleep(1000);
}

static void *after_main(void *unused)
{
	char before[256];
	await_end_of(getpid());
	numbers[0] = getpid(), numbers[1] = syscall(SYS_gettid), numbers[2] = getsid(0);
	strcpy(before, line_of(getpid(), "status", "Uid:"));
	restored();
	same(getpid(), numbers[0]);
	same(syscall(SYS_gettid), numbers[1]);
	same(getsid(0), numbers[2]);
	same(getppid(), at_once ? getppid() : 1);
	same(state_of(getpid()), 'Z');
	holds(strstr(line_of(getpid(), "status", "Name:"), "gone"));
	holds(!strcmp(line_of(getpid(), "status", "Uid:"), before));
	done();
	return unused;
}

/* The main process of the unit. */
CASE(leader_ended_main)
{
	pthread_t thread;
	must(pthread_create(&thread, NULL, after_main, NULL) ? -1 : 0);
	prctl(PR_SET_NAME, "gone");
	pthread_exit(NULL);
}

static int told, there[2], back[2];

/* A child whose leader ends by itself with status 7 (the last decides for all), and whose others do what `thread` does. */
static pid_t headless(void *(*thread)(void *), int threads)
{
	must(pipe2(there, 0));
	must(pipe2(back, 0));
	pid_t pid = must(fork());
	if (!pid) {
		pthread_t one;
		for (long i = 0; i < threads; i++)
			must(pthread_create(&one, NULL, thread, (void *)i) ? -1 : 0);
		syscall(SYS_exit, 7);
	}
	await_end_of(pid);
	return pid;
}

static void *end_when_asked(void *which)
{
	char byte;
	while (read(there[0], &byte, 1) != 1)
		;
	syscall(SYS_exit, 3);
	return which;
}

CASE(leader_ended_status)
{
	int status;
	pid_t pid = headless(end_when_asked, 3);
	restored();
	same(state_of(pid), 'Z');
	same(waitpid(pid, &status, WNOHANG), 0);
	put(there[1], "abc");
	same(waitpid(pid, &status, 0), pid);
	same(WIFEXITED(status), 1);
	same(WEXITSTATUS(status), 3);
}

static void *echo(void *unused)
{
	char byte;
	while (read(there[0], &byte, 1) == 1) {
		told = syscall(SYS_gettid);
		must(write(back[1], &told, sizeof told));
	}
	return unused;
}

static int asked(void)
{
	int said = -1;
	put(there[1], "?");
	must(read(back[0], &said, sizeof said));
	return said;
}

CASE(leader_ended_memory_and_files)
{
	int file = must(open(in_dir("data"), O_RDWR | O_CREAT, 0600));
	put(file, "hello");
	must(lseek(file, 1, SEEK_SET));
	pid_t pid = headless(echo, 1);
	int tid = asked();
	restored();
	same(asked(), tid);
	same(lseek(file, 0, SEEK_CUR), 1);
	same(kill(pid, 0), 0);
	same(kill(pid, SIGKILL), 0);
	int status;
	same(waitpid(pid, &status, 0), pid);
	same(WTERMSIG(status), SIGKILL);
}

static void *fork_and_wait(void *unused)
{
	int status = -1, none = 0;
	pid_t child = must(fork());
	if (!child) {
		char byte;
		int parent;
		must(write(back[1], &none, sizeof none));
		while (read(there[0], &byte, 1) != 1)
			;
		parent = getppid();
		must(write(back[1], &parent, sizeof parent));
		_exit(9);
	}
	pid_t got = waitpid(child, &status, 0);
	status = got == child ? WEXITSTATUS(status) : -1;
	must(write(back[1], &status, sizeof status));
	return unused;
}

CASE(leader_ended_children)
{
	int said = -1;
	pid_t pid = headless(fork_and_wait, 1);
	must(read(back[0], &said, sizeof said));
	restored();
	same(asked(), pid);
	must(read(back[0], &said, sizeof said));
	same(said, 9);
}

static void *fork_mourner(void *unused)
{
	int none = 0;
	await_end_of(getpid());
	if (!must(fork())) {
		char byte;
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigprocmask(SIG_BLOCK, &set, NULL);
		prctl(PR_SET_PDEATHSIG, SIGUSR2);
		must(write(back[1], &none, sizeof none));
		while (read(there[0], &byte, 1) != 1)
			;
		sigpending(&set);
		int pending = sigismember(&set, SIGUSR2);
		must(write(back[1], &pending, sizeof pending));
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		pending = sigwaitinfo(&set, NULL);
		must(write(back[1], &pending, sizeof pending));
		_exit(0);
	}
	for (;;)
		pause();
	return unused;
}

/* A child that another thread has made is not told of its parent's end by the leader's. */
CASE(leader_ended_not_mourned)
{
	int said = -1;
	pid_t pid = headless(fork_mourner, 1);
	must(read(back[0], &said, sizeof said));
	restored();
	same(asked(), 0);
	same(kill(pid, SIGKILL), 0);
	must(read(back[0], &said, sizeof said));
	same(said, SIGUSR2);
}

static void *take_signal(void *which)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	for (;;) {
		siginfo_t info;
		if (sigwaitinfo(&set, &info) == SIGUSR2)
			must(write(back[1], &info.si_value.sival_int, sizeof(int)));
	}
	return which;
}

CASE(leader_ended_signals)
{
	union sigval value = { .sival_int = 42 };
	sigset_t set;
	int said = -1;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	pid_t pid = headless(take_signal, 1);
	restored();
	must(sigqueue(pid, SIGUSR2, value));
	must(read(back[0], &said, sizeof said));
	same(said, 42);
}

/* Stopped by job control, too. */
CASE(leader_ended_stopped)
{
	int status;
	pid_t pid = headless(echo, 2);
	asked();
	must(kill(pid, SIGSTOP));
	same(waitpid(pid, &status, WUNTRACED), pid);
	restored();
	must(kill(pid, SIGCONT));
	holds(asked() > 0);
	same(state_of(pid), 'Z');
}

/* Fifty threads, of which the group is. */
CASE(leader_ended_many_threads)
{
	pid_t pid = headless(end_when_asked, 50);
	restored();
	int status = 0;
	for (int i = 0; i < 50; i++)
		put(there[1], "x");
	same(waitpid(pid, &status, 0), pid);
	same(WEXITSTATUS(status), 3);
}
