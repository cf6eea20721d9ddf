/* Operations in every state. operations MODE FILE: gets into the mode's situation, prints "ready" and stays there until
 * its standard input ends. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *path;
static int empty[2]; /* a pipe that nothing comes through */
static sigjmp_buf place;
static volatile int jumped, handled, cleaned;

static void ready_and_wait(void)
{
	char byte;
	puts("ready");
	fflush(stdout);
	while (syscall(SYS_read, 0, &byte, 1) > 0)
		;
	_exit(0);
}

static void *writer(void *how)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	FILE *stream = fopen(path, "a");
	char line[256];
	memset(line, 'x', sizeof line);
	for (;;) {
		switch ((long)how) {
		case 0: if (write(fd, line, sizeof line) < 0) abort(); break;
		case 1: if (pwrite(fd, line, sizeof line, 0) < 0) abort(); break;
		case 2: fwrite(line, sizeof line, 1, stream); fflush(stream); break;
		case 3: fprintf(stream, "%s %d\n", "line", 1); fflush(stream); break;
		}
	}
	return NULL;
}

static void start(void *(*work)(void *), long argument)
{
	pthread_t thread;
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	if (pthread_create(&thread, &attributes, work, (void *)argument))
		abort();
	pthread_detach(thread);
}

static void *blocked(void *unused)
{
	char byte;
	(void)unused;
	read(empty[0], &byte, 1);
	return NULL;
}

static void *touch(void *unused)
{
	(void)unused;
	close(open(path, O_RDWR | O_CREAT, 0600));
	return NULL;
}

static void jump(int signal)
{
	(void)signal;
	jumped = 1;
	siglongjmp(place, 1);
}

static void write_in_handler(int signal)
{
	(void)signal;
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	if (pwrite(fd, "x", 1, 0) != 1 || fsync(fd))
		abort();
	close(fd);
	handled++;
}

static void clean(void *unused)
{
	(void)unused;
	touch(NULL);
	cleaned = 1;
}

static void *cancelled(void *unused)
{
	char byte;
	(void)unused;
	pthread_cleanup_push(clean, NULL);
	read(empty[0], &byte, 1);
	pthread_cleanup_pop(0);
	return NULL;
}

static void catch_alarm(void (*handler)(int), int flags, int repeat)
{
	static char stack[65536];
	stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
	struct itimerval timer = {.it_value.tv_usec = 20000, .it_interval.tv_usec = repeat};
	sigaltstack(&alternate, NULL);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static int raw_thread(void *unused)
{
	(void)unused;
	touch(NULL);
	return 0;
}

int main(int count, char **arguments)
{
	char byte;
	const char *mode = count > 1 ? arguments[1] : "";
	path = count > 2 ? arguments[2] : "/dev/null";
	if (pipe(empty))
		abort();
	if (!strcmp(mode, "crowd")) {
		/* More threads than a table has slots. */
		for (int thread = 0; thread < 4500; thread++)
			start(blocked, 0);
		for (int thread = 0; thread < 4; thread++)
			start(writer, thread);
	} else if (!strcmp(mode, "writers")) {
		for (long how = 0; how < 4; how++)
			start(writer, how);
	} else if (!strcmp(mode, "blocked")) {
		for (int thread = 0; thread < 300; thread++)
			start(blocked, 0);
	} else if (!strcmp(mode, "churn")) {
		for (int round = 0; round < 5000; round++) {
			pthread_t thread;
			pthread_create(&thread, NULL, touch, NULL);
			pthread_join(thread, NULL);
		}
		/* Threads that libc knows nothing of end without giving anything back. */
		static char stack[65536];
		for (int round = 0; round < 20; round++) {
			int pid = clone(raw_thread, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD, NULL);
			waitpid(pid, NULL, 0);
		}
	} else if (!strcmp(mode, "jump") || !strcmp(mode, "jump-altstack")) {
		catch_alarm(jump, strcmp(mode, "jump") ? SA_ONSTACK : 0, 0);
		if (!sigsetjmp(place, 1))
			read(empty[0], &byte, 1);
		if (!jumped)
			abort();
	} else if (!strcmp(mode, "nested") || !strcmp(mode, "nested-altstack")) {
		catch_alarm(write_in_handler, SA_RESTART | (strcmp(mode, "nested") ? SA_ONSTACK : 0), 1000);
		start(blocked, 0);
		while (handled < 100)
			touch(NULL);
		struct itimerval off = {0};
		setitimer(ITIMER_REAL, &off, NULL);
	} else if (!strcmp(mode, "cancel")) {
		for (int round = 0; round < 50; round++) {
			pthread_t thread;
			void *result;
			cleaned = 0;
			pthread_create(&thread, NULL, cancelled, NULL);
			if (round % 2)
				usleep(1000);
			pthread_cancel(thread);
			pthread_join(thread, &result);
			if (result != PTHREAD_CANCELED)
				abort();
		}
		if (!cleaned)
			abort();
	} else if (!strcmp(mode, "forks")) {
		for (;;) {
			pid_t pid = fork();
			if (pid == 0) {
				touch(NULL);
				_exit(0);
			}
			waitpid(pid, NULL, 0);
			static int told;
			if (!told++) {
				puts("ready");
				fflush(stdout);
			}
		}
	} else if (!strcmp(mode, "close-range")) {
		closefrom(3);
		touch(NULL);
	} else {
		abort();
	}
	ready_and_wait();
}
