/* A victim: a program with one property. It prepares its state, says that it is ready, waits, and checks itself when asked.
 *
 *   SIGUSR1   check yourself; the answer goes to DIR/report: "ok GENERATION FILE" or "failed REASON"
 *   SIGUSR2   change: the state moves on by one generation, in memory and in DIR/generation
 *
 * GENERATION is what memory says and FILE what DIR/generation says: after a restore both are what they were.
 */
#ifndef VICTIM_H
#define VICTIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *victim_dir;
static int generation;
static char victim_failure[512];

/* Records the first thing that is not as it should be. */
__attribute__((format(printf, 2, 3))) static inline void expect(int holds, const char *format, ...)
{
	va_list arguments;
	if (holds || victim_failure[0])
		return;
	va_start(arguments, format);
	vsnprintf(victim_failure, sizeof victim_failure, format, arguments);
	va_end(arguments);
}

/* Ends the victim if it cannot even prepare. */
#define must(call)                                                                                                     \
	({                                                                                                             \
		long must_result = (long)(call);                                                                       \
		if (must_result == -1) {                                                                               \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, strerror(errno));                \
			_exit(1);                                                                                      \
		}                                                                                                      \
		must_result;                                                                                           \
	})

static inline const char *in_dir(const char *name)
{
	static char path[4][4096];
	static int next;
	next = (next + 1) % 4;
	snprintf(path[next], sizeof path[next], "%s/%s", victim_dir, name);
	return path[next];
}

static inline void write_file(const char *name, const char *text)
{
	char temporary[4096];
	snprintf(temporary, sizeof temporary, "%s/.%s", victim_dir, name);
	int fd = must(open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
	must(write(fd, text, strlen(text)));
	must(close(fd));
	must(rename(temporary, in_dir(name)));
}

static inline int read_generation(void)
{
	char text[32] = "";
	int fd = open(in_dir("generation"), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t length = read(fd, text, sizeof text - 1);
	close(fd);
	return length > 0 ? atoi(text) : -1;
}

/* sd_notify(3), without the library. */
static inline void notify(const char *text)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (!path || strlen(path) >= sizeof address.sun_path)
		return;
	memcpy(address.sun_path, path, strlen(path));
	if (path[0] == '@')
		address.sun_path[0] = 0;
	int fd = must(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	must(sendto(fd, text, strlen(text), 0, (struct sockaddr *)&address,
		    offsetof(struct sockaddr_un, sun_path) + strlen(path)));
	close(fd);
}

static inline void set_generation(int number)
{
	char text[32];
	generation = number;
	snprintf(text, sizeof text, "%d\n", number);
	write_file("generation", text);
}

/* Two texts in buffers of one size are to be the same; tells the first line that differs. */
static inline void expect_same_text(const char *before, const char *after, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (before[i] != after[i]) {
			size_t line = i;
			while (line && before[line - 1] != '\n')
				line--;
			expect(0, "was '%.*s', is '%.*s'", (int)strcspn(before + line, "\n"), before + line,
			       (int)strcspn(after + line, "\n"), after + line);
			return;
		}
}

/* Answers SIGUSR1: what verify finds goes to the report. */
static inline void report_on(void (*verify)(void))
{
	char report[1024];
	victim_failure[0] = 0;
	verify();
	if (victim_failure[0])
		snprintf(report, sizeof report, "failed %s\n", victim_failure);
	else
		snprintf(report, sizeof report, "ok %d %d\n", generation, read_generation());
	write_file("report", report);
}

/* Waits and answers until SIGTERM. change may be NULL. */
static inline int serve(void (*change)(void), void (*verify)(void))
{
	sigset_t asked;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigaddset(&asked, SIGUSR2);
	sigaddset(&asked, SIGTERM);
	set_generation(0);
	notify("READY=1");
	for (;;) {
		switch (sigwaitinfo(&asked, NULL)) {
		case SIGTERM:
			return 0;
		case SIGUSR2:
			if (change)
				change();
			set_generation(generation + 1);
			break;
		case SIGUSR1:
			report_on(verify);
			break;
		default:
			break; /* EINTR: a stop and a continue */
		}
	}
}

/* To be called first in main, before any thread or child exists. */
static inline void victim(int argc, char **argv)
{
	sigset_t asked;
	if (argc < 2) {
		fprintf(stderr, "usage: %s DIR\n", argv[0]);
		_exit(2);
	}
	victim_dir = argv[1];
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigaddset(&asked, SIGUSR2);
	sigaddset(&asked, SIGTERM);
	must(sigprocmask(SIG_BLOCK, &asked, NULL));
}

#endif
