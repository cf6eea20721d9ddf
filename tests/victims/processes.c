/* Property: a tree of 100 processes keeps its numbers, parents, sessions and process groups, with a zombie and an orphan. */
#include "victim.h"
#include <poll.h>
#include <sys/prctl.h>

enum { CHILDREN = 33, GRANDCHILDREN = 2 };

struct seen {
	pid_t pid, parent, session, group;
};

static int ask_pipe[CHILDREN * 3][2], answer_pipe[2], members;
static struct seen expected[CHILDREN * 3];
static pid_t zombie, orphan;

static void look(struct seen *seen)
{
	*seen = (struct seen){ getpid(), getppid(), getsid(0), getpgrp() };
}

static void answer(int index)
{
	struct {
		int index;
		struct seen seen;
	} message = { .index = index };
	for (;;) {
		char byte;
		look(&message.seen);
		must(write(answer_pipe[1], &message, sizeof message));
		while (read(ask_pipe[index][0], &byte, 1) != 1)
			;
	}
}

/* Child `number`, with grandchildren; every third leads a session, every other third a process group. */
static void child(int number)
{
	sigset_t end;
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	must(sigprocmask(SIG_UNBLOCK, &end, NULL));
	if (number % 3 == 0)
		must(setsid());
	else if (number % 3 == 1)
		must(setpgid(0, 0));
	for (int i = 0; i < GRANDCHILDREN; i++)
		if (!must(fork()))
			answer(CHILDREN + number * GRANDCHILDREN + i);
	answer(number);
}

static int collect(struct seen *into)
{
	for (int i = 0; i < members; i++) {
		struct {
			int index;
			struct seen seen;
		} message;
		struct pollfd ready = { .fd = answer_pipe[0], .events = POLLIN };
		if (poll(&ready, 1, 10000) != 1)
			return i;
		must(read(answer_pipe[0], &message, sizeof message));
		into[message.index] = message.seen;
	}
	return members;
}

static void verify(void)
{
	static struct seen now[CHILDREN * 3];
	siginfo_t ended = { 0 };
	for (int i = 0; i < members; i++)
		must(write(ask_pipe[i][1], "x", 1));
	int got = collect(now);
	expect(got == members, "%d of %d processes answer", got, members);
	for (int i = 0; i < members; i++)
		expect(!memcmp(&now[i], &expected[i], sizeof now[i]),
		       "process %d was %d of %d, session %d, group %d; is %d of %d, session %d, group %d", i,
		       expected[i].pid, expected[i].parent, expected[i].session, expected[i].group, now[i].pid,
		       now[i].parent, now[i].session, now[i].group);
	expect(!waitid(P_PID, zombie, &ended, WEXITED | WNOHANG | WNOWAIT) && ended.si_pid == zombie &&
		       ended.si_status == 5,
	       "the zombie is not there with its status");
	expect(!kill(orphan, 0), "the orphan is gone");
}

int main(int argc, char **argv)
{
	int orphan_pipe[2];
	siginfo_t ended;
	victim(argc, argv);
	members = CHILDREN * (1 + GRANDCHILDREN);
	must(pipe2(answer_pipe, O_CLOEXEC));
	for (int i = 0; i < members; i++)
		must(pipe2(ask_pipe[i], O_CLOEXEC));
	for (int i = 0; i < CHILDREN; i++)
		if (!must(fork()))
			child(i);
	if (collect(expected) != members)
		return 1;
	zombie = must(fork());
	if (!zombie)
		_exit(5);
	must(waitid(P_PID, zombie, &ended, WEXITED | WNOWAIT));
	must(pipe2(orphan_pipe, O_CLOEXEC));
	pid_t between = must(fork());
	if (!between) {
		orphan = must(fork());
		if (!orphan)
			for (;;)
				pause();
		must(write(orphan_pipe[1], &orphan, sizeof orphan));
		_exit(0);
	}
	must(read(orphan_pipe[0], &orphan, sizeof orphan));
	must(waitpid(between, NULL, 0));
	return serve(NULL, verify);
}
