/* Property: a user namespace that systemd made: its ids, the powers of every thread and child in it, and none outside. */
#include "victim.h"
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define NS_GET_OWNER_UID _IO(0xb7, 4)
#define NS_GET_PARENT _IO(0xb7, 2)

static int ask[2], answer[2], thread_ask[2], thread_answer[2];

static size_t add_file(char *text, size_t at, size_t size, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, text + at, size - at - 1);
	close(fd);
	return at + (length > 0 ? (size_t)length : 0);
}

/* What a thread is, and can do. */
static void describe(char *text, size_t size)
{
	static const char *const lines[] = { "Uid:",	"Gid:",	   "Groups:", "CapInh:", "CapPrm:",
					     "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:" };
	char line[512], path[64];
	size_t at = 0;
	memset(text, 0, size);
	snprintf(path, sizeof path, "/proc/self/task/%ld/status", syscall(SYS_gettid));
	FILE *status = fopen(path, "re");
	while (status && fgets(line, sizeof line, status))
		for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
			if (!strncmp(line, lines[i], strlen(lines[i])))
				at += snprintf(text + at, size - at, "%s", line);
	if (status)
		fclose(status);
	at = add_file(text, at, size, "/proc/self/uid_map");
	at = add_file(text, at, size, "/proc/self/gid_map");
	at = add_file(text, at, size, "/proc/self/setgroups");
	uid_t owner = -1;
	int own = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
	int known = own < 0 ? errno : ioctl(own, NS_GET_OWNER_UID, &owner);
	int outside = own < 0 ? -1 : ioctl(own, NS_GET_PARENT);
	if (outside >= 0)
		close(outside);
	close(own);
	snprintf(text + at, size - at, "bits %d owner %d %d outside %d tid %ld host name %d policy %d\n", prctl(PR_GET_SECUREBITS),
		 known, (int)owner, outside >= 0, syscall(SYS_gettid), sethostname("x", 1), sched_getscheduler(0));
}

static char texts[3][2][8192];

static void *of_thread(void *unused)
{
	char byte;
	while (read(thread_ask[0], &byte, 1) == 1) {
		describe(texts[1][1], sizeof texts[1][1]);
		must(write(thread_answer[1], &byte, 1));
	}
	return unused;
}

static void look(int when)
{
	char byte;
	describe(texts[0][when], sizeof texts[0][when]);
	must(write(thread_ask[1], "?", 1));
	must(read(thread_answer[0], &byte, 1));
	must(write(ask[1], "?", 1));
	size_t at = 0;
	while (at < sizeof texts[2][1])
		at += must(read(answer[0], texts[2][1] + at, sizeof texts[2][1] - at));
	if (!when)
		for (int i = 1; i < 3; i++)
			memcpy(texts[i][0], texts[i][1], sizeof texts[i][0]);
}

static void verify(void)
{
	look(1);
	for (int i = 0; i < 3; i++)
		expect_same_text(texts[i][0], texts[i][1], sizeof texts[i][0]);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	victim(argc, argv);
	must(pipe(ask));
	must(pipe(answer));
	must(pipe(thread_ask));
	must(pipe(thread_answer));
	if (!must(fork())) {
		char byte;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (read(ask[0], &byte, 1) == 1) {
			describe(texts[2][1], sizeof texts[2][1]);
			must(write(answer[1], texts[2][1], sizeof texts[2][1]));
		}
		_exit(0);
	}
	must(pthread_create(&thread, NULL, of_thread, NULL) ? -1 : 0);
	look(0);
	return serve(NULL, verify);
}
