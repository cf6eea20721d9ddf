/* Property: POSIX timers of every clock and notification are as they were and fire as they would. */
#include "victim.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>

enum { TIMERS = 8 };

static const clockid_t clocks[TIMERS] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID,
					  CLOCK_THREAD_CPUTIME_ID, CLOCK_TAI, CLOCK_MONOTONIC, CLOCK_MONOTONIC };
static timer_t timers[TIMERS], gone, directed, overrun;
static pid_t other;
static volatile int hits, wrong_thread;

static void fired(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	if (syscall(SYS_gettid) != other || info->si_value.sival_int != 77 || info->si_code != SI_TIMER)
		wrong_thread++;
	hits++;
}

static void *thread(void *unused)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 6);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	other = syscall(SYS_gettid);
	for (;;)
		pause();
	return unused;
}

static void verify(void)
{
	for (int i = 0; i < TIMERS; i++) {
		struct itimerspec left = { 0 };
		expect(!timer_gettime(timers[i], &left), "timer %d is gone", i);
		expect(left.it_value.tv_sec > 900 * i + 4000 && left.it_value.tv_sec <= 900 * i + 5000 &&
			       left.it_interval.tv_sec == i && left.it_interval.tv_nsec == 100 + i,
		       "timer %d has %ld s, interval %ld.%09ld", i, (long)left.it_value.tv_sec,
		       (long)left.it_interval.tv_sec, (long)left.it_interval.tv_nsec);
	}
	int before = hits;
	for (int i = 0; i < 3000 && hits < before + 3; i++)
		usleep(1000);
	expect(hits >= before + 3, "the timer for one thread fires no more");
	expect(!wrong_thread, "it fires for another thread, or with another value");
	/* Ids are not used again while they are in use. */
	timer_t fresh;
	must(timer_create(CLOCK_MONOTONIC, &(struct sigevent){ .sigev_notify = SIGEV_NONE }, &fresh));
	for (int i = 0; i < TIMERS; i++)
		expect(fresh != timers[i], "a new timer has the id of timer %d", i);
	must(timer_delete(fresh));
	sigset_t pending;
	sigpending(&pending);
	expect(sigismember(&pending, SIGRTMIN + 7) == 1, "the expiry that is pending is lost");
	expect(timer_getoverrun(overrun) >= 0, "its overrun count is not told");
}

int main(int argc, char **argv)
{
	pthread_t made;
	sigset_t set;
	struct sigaction action = { .sa_sigaction = fired, .sa_flags = SA_SIGINFO };
	victim(argc, argv);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 6);
	sigaddset(&set, SIGRTMIN + 7);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	must(sigaction(SIGRTMIN + 6, &action, NULL));
	must(pthread_create(&made, NULL, thread, NULL) ? -1 : 0);
	while (!other)
		usleep(100);
	for (int i = 0; i < TIMERS; i++) {
		struct sigevent event = { .sigev_notify = i % 2 ? SIGEV_NONE : SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 8 };
		struct itimerspec time = { .it_value.tv_sec = 900 * i + 5000,
					   .it_interval = { .tv_sec = i, .tv_nsec = 100 + i } };
		must(timer_create(clocks[i], &event, &timers[i]));
		must(timer_settime(timers[i], 0, &time, NULL));
		if (i == 3) {
			must(timer_create(CLOCK_MONOTONIC, &event, &gone));
			must(timer_delete(gone));
		}
	}
	struct sigevent to_thread = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 6,
				      .sigev_value.sival_int = 77 };
	to_thread._sigev_un._tid = other;
	must(timer_create(CLOCK_MONOTONIC, &to_thread, &directed));
	must(timer_settime(directed, 0, &(struct itimerspec){ .it_value.tv_nsec = 5000000, .it_interval.tv_nsec = 5000000 },
			   NULL));
	struct sigevent blocked = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 7 };
	must(timer_create(CLOCK_MONOTONIC, &blocked, &overrun));
	must(timer_settime(overrun, 0, &(struct itimerspec){ .it_value.tv_nsec = 1000000, .it_interval.tv_nsec = 1000000 },
			   NULL));
	usleep(20000);
	return serve(NULL, verify);
}
