/* Property: a process whose first thread has ended goes on in its others, and its parent is told of its end only then. */
#include "victim.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

static pid_t child;
static int ask[2], answer[2];

static void *go_on(void *leader)
{
	int numbers[3];
	char byte;
	pthread_join(*(pthread_t *)leader, NULL);
	for (;;) {
		while (read(ask[0], &byte, 1) != 1)
			;
		numbers[0] = getpid();
		numbers[1] = syscall(SYS_gettid);
		numbers[2] = getppid();
		must(write(answer[1], numbers, sizeof numbers));
	}
	return leader;
}

static char state(pid_t pid)
{
	char path[64], text[512] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	close(fd);
	char *end = length > 0 ? strrchr(text, ')') : NULL;
	return end ? end[2] : '?';
}

static void verify(void)
{
	static int tid;
	int numbers[3] = { 0 }, status;
	expect(waitpid(child, &status, WNOHANG) == 0, "it has ended");
	expect(state(child) == 'Z', "its first thread is %c", state(child));
	must(write(ask[1], "x", 1));
	must(read(answer[0], numbers, sizeof numbers));
	expect(numbers[0] == child && numbers[2] == getpid(), "it is %d of %d", numbers[0], numbers[2]);
	expect(!tid || numbers[1] == tid, "its thread was %d and is %d", tid, numbers[1]);
	tid = numbers[1];
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	must(pipe(ask));
	must(pipe(answer));
	child = must(fork());
	if (!child) {
		static pthread_t leader;
		pthread_t thread;
		leader = pthread_self();
		must(pthread_create(&thread, NULL, go_on, &leader) ? -1 : 0);
		pthread_exit(NULL);
	}
	while (state(child) != 'Z')
		usleep(1000);
	return serve(NULL, verify);
}
