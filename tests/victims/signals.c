/* Property: handlers, the alternate stack, masks, pending signals and timers are as they were. */
#include "victim.h"
#include <sys/time.h>
#include <time.h>

static volatile sig_atomic_t handled, on_stack, value;
static char *stack;
static timer_t often, far;
static volatile sig_atomic_t ticks;

static void handler(int number, siginfo_t *info, void *context)
{
	char here;
	(void)number;
	(void)context;
	handled++;
	value = info->si_value.sival_int;
	on_stack = &here >= stack && &here < stack + 65536;
}

static void tick(int number)
{
	(void)number;
	ticks++;
}

static void check_pending(void)
{
	sigset_t set;
	siginfo_t info;
	struct timespec none = { 0 };
	sigpending(&set);
	expect(sigismember(&set, SIGHUP) == 1, "SIGHUP is not pending");
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	for (int i = 0; i < 3; i++) {
		expect(sigtimedwait(&set, &info, &none) == SIGRTMIN + 5 && info.si_value.sival_int == 100 + i &&
			       info.si_code == SI_QUEUE,
		       "queued signal %d is lost or changed", i);
	}
	for (int i = 0; i < 3; i++)
		sigqueue(getpid(), SIGRTMIN + 5, (union sigval){ .sival_int = 100 + i });
}

static void verify(void)
{
	struct sigaction action;
	struct itimerspec left;
	struct itimerval real;
	struct timespec pause = { .tv_nsec = 10000000 };
	stack_t now;
	int before = handled;
	sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 4711 });
	expect(handled == before + 1 && value == 4711, "the handler is not called with its value");
	expect(on_stack, "the handler does not run on its stack");
	sigaltstack(NULL, &now);
	expect(now.ss_sp == stack && now.ss_size == 65536, "the alternate stack is another");
	sigaction(SIGRTMIN + 1, NULL, &action);
	expect(action.sa_sigaction == handler && (action.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_RESTART)) ==
							 (SA_SIGINFO | SA_ONSTACK | SA_RESTART) &&
		       sigismember(&action.sa_mask, SIGURG) == 1,
	       "the action is another");
	sigaction(SIGPIPE, NULL, &action);
	expect(action.sa_handler == SIG_IGN, "SIGPIPE is not ignored");
	check_pending();
	before = ticks;
	for (int i = 0; i < 300 && ticks < before + 2; i++)
		nanosleep(&pause, NULL);
	expect(ticks >= before + 2, "the timer ticks no more");
	expect(!timer_gettime(far, &left) && left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 10000,
	       "the far timer has %ld s", (long)left.it_value.tv_sec);
	getitimer(ITIMER_REAL, &real);
	expect(real.it_value.tv_sec > 3000 && real.it_value.tv_sec <= 9000, "the alarm has %ld s", real.it_value.tv_sec);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2 };
	struct itimerspec short_time = { .it_value.tv_nsec = 20000000, .it_interval.tv_nsec = 20000000 };
	struct itimerspec long_time = { .it_value.tv_sec = 10000 };
	struct itimerval alarm = { .it_value.tv_sec = 9000 };
	sigset_t blocked;
	victim(argc, argv);
	stack = malloc(65536);
	must(sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = 65536 }, NULL));
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGURG);
	must(sigaction(SIGRTMIN + 1, &action, NULL));
	signal(SIGPIPE, SIG_IGN);
	signal(SIGRTMIN + 2, tick);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGHUP);
	sigaddset(&blocked, SIGRTMIN + 5);
	must(sigprocmask(SIG_BLOCK, &blocked, NULL));
	kill(getpid(), SIGHUP);
	for (int i = 0; i < 3; i++)
		sigqueue(getpid(), SIGRTMIN + 5, (union sigval){ .sival_int = 100 + i });
	must(timer_create(CLOCK_MONOTONIC, &event, &often));
	must(timer_settime(often, 0, &short_time, NULL));
	event.sigev_signo = SIGRTMIN + 3;
	must(timer_create(CLOCK_REALTIME, &event, &far));
	must(timer_settime(far, 0, &long_time, NULL));
	must(setitimer(ITIMER_REAL, &alarm, NULL));
	return serve(NULL, verify);
}
