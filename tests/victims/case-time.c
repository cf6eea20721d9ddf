/* Time limits of system calls: what is left of them at the checkpoint is what is left after the restore, and checkpoints do not make them longer. */
#include "case.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <time.h>

/* Half of it passes before the checkpoint. */
enum { LIMIT = 6 };

static int nothing = -1, set = -1, word;

static volatile int told;

static void tell(union sigval value)
{
	told += value.sival_int;
}

/* The C library's way, by a thread and a signal that it keeps for itself. */
CASE(timer_tells_by_a_thread)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD,
				  .sigev_notify_function = tell,
				  .sigev_value.sival_int = 1 };
	struct itimerspec often = { .it_value.tv_nsec = 2000000, .it_interval.tv_nsec = 2000000 };
	timer_t timer;
	must(timer_create(CLOCK_MONOTONIC, &event, &timer));
	must(timer_settime(timer, 0, &often, NULL));
	while (!told)
		usleep(1000);
	restored();
	int before = told;
	for (int i = 0; i < 5000 && told < before + 5; i++)
		usleep(1000);
	holds(told >= before + 5);
}

static int in_poll(void)
{
	return poll(NULL, 0, LIMIT * 1000);
}

static int in_ppoll(void)
{
	return ppoll(NULL, 0, &(struct timespec){ LIMIT, 0 }, NULL);
}

static int in_select(void)
{
	return select(0, NULL, NULL, NULL, &(struct timeval){ LIMIT, 0 });
}

static int in_epoll_wait(void)
{
	struct epoll_event event;
	return epoll_wait(nothing, &event, 1, LIMIT * 1000);
}

static int in_epoll_pwait(void)
{
	struct epoll_event event;
	sigset_t all;
	sigfillset(&all);
	return epoll_pwait(nothing, &event, 1, LIMIT * 1000, &all);
}

static int in_epoll_pwait2(void)
{
	struct epoll_event event;
	return syscall(441, nothing, &event, 1, &(struct timespec){ LIMIT, 0 }, NULL, 0L);
}

static int in_semtimedop(void)
{
	return semtimedop(set, &(struct sembuf){ 0, -1, 0 }, 1, &(struct timespec){ LIMIT, 0 }) == -1 && errno == EAGAIN ? 0 : -1;
}

static int in_sigtimedwait(void)
{
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, SIGUSR2);
	return sigtimedwait(&one, NULL, &(struct timespec){ LIMIT, 0 }) == -1 && errno == EAGAIN ? 0 : -1;
}

static int in_futex(void)
{
	return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &(struct timespec){ LIMIT, 0 }, NULL, 0) == -1 && errno == ETIMEDOUT ? 0 : -1;
}

static int in_nanosleep(void)
{
	return syscall(SYS_nanosleep, &(struct timespec){ LIMIT, 0 }, NULL);
}

static int in_nanosleep_with_rest(void)
{
	struct timespec rest;
	return nanosleep(&(struct timespec){ LIMIT, 0 }, &rest);
}

static int in_clock_nanosleep(void)
{
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &(struct timespec){ LIMIT, 0 }, NULL);
}

static struct waiter {
	const char *name;
	int (*call)(void);
	pthread_t thread;
	int got;
	double took;
} waiters[] = {
	{ "poll", in_poll, 0, 0, 0 },
	{ "ppoll", in_ppoll, 0, 0, 0 },
	{ "select", in_select, 0, 0, 0 },
	{ "epoll_wait", in_epoll_wait, 0, 0, 0 },
	{ "epoll_pwait", in_epoll_pwait, 0, 0, 0 },
	{ "epoll_pwait2", in_epoll_pwait2, 0, 0, 0 },
	{ "semtimedop", in_semtimedop, 0, 0, 0 },
	{ "sigtimedwait", in_sigtimedwait, 0, 0, 0 },
	{ "futex", in_futex, 0, 0, 0 },
	{ "nanosleep", in_nanosleep, 0, 0, 0 },
	{ "nanosleep with rest", in_nanosleep_with_rest, 0, 0, 0 },
	{ "clock_nanosleep", in_clock_nanosleep, 0, 0, 0 },
};

static double seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void *wait_in(void *argument)
{
	struct waiter *waiter = argument;
	double begin = seconds();
	waiter->got = waiter->call();
	waiter->took = seconds() - begin;
	return NULL;
}

static void begin_to_wait(void)
{
	sigset_t all;
	nothing = must(epoll_create1(EPOLL_CLOEXEC));
	set = must(semget(IPC_PRIVATE, 1, 0600));
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	for (size_t i = 0; i < sizeof waiters / sizeof *waiters; i++)
		must(pthread_create(&waiters[i].thread, NULL, wait_in, &waiters[i]) ? -1 : 0);
}

/* The group's clock stands still from the checkpoint to the restore; threads of a busy machine wake late. */
static void all_waited_as_long(double tolerance)
{
	for (size_t i = 0; i < sizeof waiters / sizeof *waiters; i++) {
		struct waiter *waiter = &waiters[i];
		pthread_join(waiter->thread, NULL);
		expect(!waiter->got, "%s gives %d", waiter->name, waiter->got);
		expect(waiter->took > LIMIT - 0.05 && waiter->took < LIMIT + tolerance, "%s takes %.3f s, not %d s",
		       waiter->name, waiter->took, LIMIT);
	}
	semctl(set, 0, IPC_RMID);
}

/* Without the rest they would take half as long again. */
CASE(limits_keep_their_rest)
{
	begin_to_wait();
	usleep(LIMIT * 500000);
	restored();
	all_waited_as_long(LIMIT * 0.4);
}

/* Checkpoints come until half the time has passed; each of them interrupts all calls. */
CASE(limits_under_checkpoints)
{
	begin_to_wait();
	restored();
	all_waited_as_long(LIMIT * 0.4);
}
