/* Property: what a process has counted in memory is what it has appended to its file, to the last record.
 *
 * counter DIR WRITERS: each writer counts for ever and appends each number to DIR/count.N in turn with pwrite, write and fsync.
 * Asked, each writer compares. A record is 16 bytes: the number in 15 digits and a newline.
 */
#include "victim.h"
#include <poll.h>
#include <sys/mman.h>

enum { RECORD = 16, MOST = 64 };

static int writers, from_writer[MOST];
static pid_t pids[MOST];
static volatile sig_atomic_t asked;

static void ask(int signal)
{
	(void)signal;
	asked = 1;
}

/* "ok COUNT" if the file ends where memory says. */
static void answer(int fd, int to, long count)
{
	char text[128], record[RECORD + 1] = "";
	struct stat status;
	must(fstat(fd, &status));
	ssize_t got = pread(fd, record, RECORD, status.st_size - RECORD);
	long last = got == RECORD ? atol(record) : -1;
	if (status.st_size == (count + 1) * RECORD && last == count)
		snprintf(text, sizeof text, "ok %ld\n", count);
	else
		snprintf(text, sizeof text, "memory %ld, file %ld in %ld bytes\n", count, last, (long)status.st_size);
	must(write(to, text, strlen(text)));
}

static void count(int number, int to)
{
	char name[32], record[32];
	sigset_t none;
	snprintf(name, sizeof name, "count.%d", number);
	int fd = must(open(in_dir(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
	signal(SIGHUP, ask);
	sigemptyset(&none);
	sigaddset(&none, SIGTERM);
	must(sigprocmask(SIG_UNBLOCK, &none, NULL));
	for (long n = 0;; n++) {
		snprintf(record, sizeof record, "%015ld\n", n);
		if (n & 1)
			must(pwrite(fd, record, RECORD, n * RECORD));
		else {
			must(lseek(fd, n * RECORD, SEEK_SET));
			must(write(fd, record, RECORD));
		}
		if (n % 1000 == 0)
			must(fdatasync(fd));
		if (asked && n) { /* asked at its very start, it answers when it has moved */
			asked = 0;
			answer(fd, to, n);
		}
	}
}

static void verify(void)
{
	long least = -1;
	for (int i = 0; i < writers; i++) {
		char text[129] = "";
		struct pollfd ready = { .fd = from_writer[i], .events = POLLIN };
		must(kill(pids[i], SIGHUP));
		int polled = poll(&ready, 1, 5000);
		expect(polled == 1, "writer %d does not answer", i);
		if (polled != 1)
			return;
		must(read(from_writer[i], text, sizeof text - 1));
		text[strcspn(text, "\n")] = 0;
		expect(!strncmp(text, "ok ", 3), "writer %d: %s", i, text);
		long n = atol(text + 3);
		if (least < 0 || n < least)
			least = n;
	}
	expect(least > 0, "a writer stands still");
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	writers = argc > 2 ? atoi(argv[2]) : 1;
	if (writers < 1 || writers > MOST)
		return 2;
	for (int i = 0; i < writers; i++) {
		int pipes[2];
		must(pipe2(pipes, O_CLOEXEC));
		from_writer[i] = pipes[0];
		pids[i] = must(fork());
		if (!pids[i])
			count(i, pipes[1]);
		close(pipes[1]);
	}
	return serve(NULL, verify);
}
