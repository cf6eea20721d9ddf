/* Cases: many small properties in one program. Each prepares its state, calls restored(), which returns when the process has come back (or at once, with
 * the word "now" behind, to try a case by itself), and then checks itself.
 *
 *   case-AREA --list        the names, one a line; behind a name the code with which a checkpoint is refused, or, behind a `!`, a word that the
 *                           refusal names, where only the checkpoint itself can tell
 *   case-AREA DIR NAME      runs it as a victim that is asked once
 *   case-AREA DIR NAME now  runs it without a checkpoint
 */
#ifndef CASE_H
#define CASE_H

#include "victim.h"
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

struct property {
	const char *name, *refused;
	void (*run)(void);
	struct property *next;
};
static struct property *properties;
static int at_once;

#define REFUSED(function, code)                                                                                        \
	static void function(void);                                                                                    \
	__attribute__((constructor)) static void function##_listed(void)                                               \
	{                                                                                                              \
		static struct property one = { #function, code, function, NULL };                                      \
		one.next = properties;                                                                                 \
		properties = &one;                                                                                     \
	}                                                                                                              \
	static void function(void)

#define CASE(function) REFUSED(function, "")

/* Says that the state is there, and waits for the question. */
static inline void restored(void)
{
	sigset_t asked;
	set_generation(0);
	if (at_once)
		return;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	notify("READY=1");
	while (sigwaitinfo(&asked, NULL) != SIGUSR1)
		;
}

/* Ends the case as one that this kernel or machine cannot run. */
static inline void cannot(const char *why)
{
	char text[256];
	snprintf(text, sizeof text, "skipped %s\n", why);
	write_file("report", text);
	set_generation(0);
	notify("READY=1");
	if (at_once)
		dprintf(1, "skipped %s\n", why);
	for (; !at_once;)
		pause();
	_exit(0);
}

static inline int readable_now(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };
	return poll(&one, 1, 0) == 1 && one.revents & POLLIN;
}

static inline int readable_soon(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };
	return poll(&one, 1, 5000) == 1;
}

#define same(got, wanted)                                                                                              \
	({                                                                                                             \
		long same_got = (long)(got), same_wanted = (long)(wanted);                                             \
		expect(same_got == same_wanted, "line %d: %s is %ld, not %ld (%s)", __LINE__, #got, same_got,          \
		       same_wanted, strerror(errno));                                                                  \
	})

#define holds(condition) expect(!!(condition), "line %d: not %s (%s)", __LINE__, #condition, strerror(errno))

/* The next bytes are these. */
#define reads(fd, text)                                                                                                \
	({                                                                                                             \
		char reads_got[4096] = "";                                                                             \
		int reads_fd = (fd);                                                                                   \
		ssize_t reads_n = readable_soon(reads_fd) ? read(reads_fd, reads_got, sizeof reads_got - 1) : -2;      \
		expect(reads_n == (ssize_t)strlen(text) && !memcmp(reads_got, text, strlen(text)),                     \
		       "line %d: %s gives '%s' (%zd), not '%s'", __LINE__, #fd, reads_got, reads_n, text);             \
	})

static inline void put(int fd, const char *text)
{
	must(write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1);
}

/* A child that does one thing and then waits for its end; its answer to "ask" is what `answer` gives. */
struct child {
	pid_t pid;
	int ask, told;
};

static inline struct child spawn(void (*begin)(void), int (*answer)(void))
{
	int there[2], back[2];
	must(pipe2(there, O_CLOEXEC));
	must(pipe2(back, O_CLOEXEC));
	pid_t pid = must(fork());
	if (!pid) {
		char question;
		int said = 0;
		close(there[1]);
		close(back[0]);
		if (begin)
			begin();
		must(write(back[1], &said, sizeof said));
		while (read(there[0], &question, 1) == 1) {
			said = answer ? answer() : 0;
			must(write(back[1], &said, sizeof said));
		}
		_exit(0);
	}
	close(there[0]);
	close(back[1]);
	int said;
	must(read(back[0], &said, sizeof said) == sizeof said ? 0 : -1);
	return (struct child){ pid, there[1], back[0] };
}

static inline int ask(struct child child)
{
	int said = -1;
	if (write(child.ask, "?", 1) != 1 || read(child.told, &said, sizeof said) != sizeof said)
		return -77;
	return said;
}

/* Answers with what was found, and waits for the end. */
static inline void done(void)
{
	char report[768];
	if (victim_failure[0])
		snprintf(report, sizeof report, "failed %s\n", victim_failure);
	else
		snprintf(report, sizeof report, "ok 0 %d\n", read_generation());
	write_file("report", report);
	if (at_once)
		dprintf(1, "%s", report);
	for (; !at_once;)
		pause();
	exit(victim_failure[0] != 0);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--list")) {
		for (struct property *one = properties; one; one = one->next)
			printf("%s %s\n", one->name, one->refused);
		return 0;
	}
	if (argc < 3) {
		fprintf(stderr, "usage: %s DIR NAME [now]\n", argv[0]);
		return 2;
	}
	victim(argc, argv);
	at_once = argc > 3 && !strcmp(argv[3], "now");
	sigset_t unblocked;
	sigemptyset(&unblocked);
	sigaddset(&unblocked, SIGTERM);
	must(sigprocmask(SIG_UNBLOCK, &unblocked, NULL));
	signal(SIGPIPE, SIG_IGN);
	for (struct property *one = properties; one; one = one->next) {
		if (strcmp(one->name, argv[2]))
			continue;
		one->run();
		done();
	}
	fprintf(stderr, "%s: no case %s\n", argv[0], argv[2]);
	return 2;
}

#endif
