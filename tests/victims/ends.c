/* Property: how processes end, and for whom: zombies with every status, the parent-death signal, orphans of a subreaper. */
#include "victim.h"
#include <sys/prctl.h>
#include <sys/resource.h>

enum { ZOMBIES = 5 };

static pid_t zombies[ZOMBIES], middle, orphan;
static siginfo_t expected[ZOMBIES];

static pid_t ended(int how)
{
	pid_t pid = must(fork());
	if (!pid) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
		if (how == 0)
			_exit(0);
		if (how == 1)
			_exit(213);
		kill(getpid(), how == 2 ? SIGKILL : how == 3 ? SIGTERM : SIGABRT);
		_exit(1);
	}
	return pid;
}

static void look(pid_t pid, siginfo_t *info)
{
	memset(info, 0, sizeof *info);
	must(waitid(P_PID, pid, info, WEXITED | WNOWAIT));
}

/* A child of ours whose own child wants to die with it. */
static void start_family(void)
{
	int told[2];
	must(pipe2(told, O_CLOEXEC));
	middle = must(fork());
	if (!middle) {
		pid_t mine = must(fork());
		if (!mine) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pid_t me = getpid();
			must(write(told[1], &me, sizeof me));
			for (;;)
				pause();
		}
		for (;;)
			pause();
	}
	must(read(told[0], &orphan, sizeof orphan));
	close(told[0]);
	close(told[1]);
}

static void verify(void)
{
	int status;
	for (int i = 0; i < ZOMBIES; i++) {
		siginfo_t now;
		look(zombies[i], &now);
		expect(now.si_code == expected[i].si_code && now.si_status == expected[i].si_status &&
			       now.si_uid == expected[i].si_uid,
		       "zombie %d has code %d status %d", i, now.si_code, now.si_status);
	}
	/* The grandchild dies with its parent, and falls to us, the subreaper. */
	must(kill(middle, SIGKILL));
	must(waitpid(middle, &status, 0));
	for (int i = 0; i < 3000; i++) {
		pid_t got = waitpid(orphan, &status, WNOHANG);
		if (got == orphan)
			break;
		usleep(1000);
		expect(i < 2999, "the orphan is not ours or does not die (%d)", got);
	}
	expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the orphan ended with %#x", status);
	start_family();
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int i = 0; i < ZOMBIES; i++) {
		zombies[i] = ended(i);
		look(zombies[i], &expected[i]);
	}
	start_family();
	return serve(NULL, verify);
}
