/* Property: CLOCK_MONOTONIC and CLOCK_BOOTTIME neither go back nor jump, and what waits for them has the rest of its time. */
#include "victim.h"
#include <pthread.h>
#include <sys/timerfd.h>
#include <time.h>

enum { STEP_MS = 20, GAP_MS = 5000, AHEAD_S = 3000 };

static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME };
static volatile int64_t last[2], widest[2];
static volatile int backwards, early, rounds;
static int64_t began[2];
static int timers[3];
static timer_t posix_timer;

static int64_t now(clockid_t clock)
{
	struct timespec time;
	must(clock_gettime(clock, &time));
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static struct timespec of(int64_t time)
{
	return (struct timespec){ .tv_sec = time / 1000000000LL, .tv_nsec = time % 1000000000LL };
}

/* Looks all the time. */
static void *look(void *unused)
{
	for (;;) {
		for (int i = 0; i < 2; i++) {
			int64_t here = now(clocks[i]);
			if (last[i] && here < last[i])
				backwards++;
			if (last[i] && here - last[i] > widest[i])
				widest[i] = here - last[i];
			last[i] = here;
		}
		struct timespec step = { .tv_nsec = STEP_MS * 1000000 };
		nanosleep(&step, NULL);
	}
	return unused;
}

/* Sleeps to a time that it knows before. */
static void *sleep_until(void *unused)
{
	for (;;) {
		int64_t until = now(CLOCK_MONOTONIC) + 700000000LL;
		struct timespec time = of(until);
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
			;
		if (now(CLOCK_MONOTONIC) < until)
			early++;
		rounds++;
	}
	return unused;
}

static void check_rest(const char *what, int64_t rest, clockid_t clock, int which)
{
	int64_t wanted = AHEAD_S * 1000000000LL - (now(clock) - began[which]);
	expect(llabs(rest - wanted) < 1000000000LL, "%s has %lld ms left and not %lld", what, (long long)rest / 1000000,
	       (long long)wanted / 1000000);
}

static void verify(void)
{
	struct itimerspec left;
	for (int i = 0; i < 2; i++)
		expect(widest[i] < GAP_MS * 1000000LL, "clock %d jumped by %lld ms", clocks[i],
		       (long long)widest[i] / 1000000);
	expect(!backwards, "a clock went back");
	expect(!early, "a sleep ended too early");
	for (int i = 0; i < 3; i++) {
		must(timerfd_gettime(timers[i], &left));
		check_rest(i == 2 ? "the relative timer" : "an absolute timer",
			   left.it_value.tv_sec * 1000000000LL + left.it_value.tv_nsec, clocks[i % 2], i % 2);
	}
	must(timer_gettime(posix_timer, &left));
	check_rest("the POSIX timer", left.it_value.tv_sec * 1000000000LL + left.it_value.tv_nsec, CLOCK_MONOTONIC, 0);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	struct sigevent none = { .sigev_notify = SIGEV_NONE };
	struct itimerspec ahead = { .it_value.tv_sec = AHEAD_S };
	victim(argc, argv);
	for (int i = 0; i < 2; i++) {
		struct itimerspec until = { 0 };
		began[i] = now(clocks[i]);
		until.it_value = of(began[i] + AHEAD_S * 1000000000LL);
		timers[i] = must(timerfd_create(clocks[i], TFD_CLOEXEC));
		must(timerfd_settime(timers[i], TFD_TIMER_ABSTIME, &until, NULL));
	}
	timers[2] = must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	must(timerfd_settime(timers[2], 0, &ahead, NULL));
	must(timer_create(CLOCK_MONOTONIC, &none, &posix_timer));
	must(timer_settime(posix_timer, TIMER_ABSTIME,
			   &(struct itimerspec){ .it_value = of(began[0] + AHEAD_S * 1000000000LL) }, NULL));
	must(pthread_create(&thread, NULL, look, NULL) ? -1 : 0);
	must(pthread_create(&thread, NULL, sleep_until, NULL) ? -1 : 0);
	return serve(NULL, verify);
}
