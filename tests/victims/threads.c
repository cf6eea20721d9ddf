/* Property: 200 threads, waiting in different calls, go on in them; each keeps its number, name, mask and own memory. */
#include "victim.h"
#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

enum { THREADS = 200 };

static __thread int own;
static pid_t tids[THREADS];
static int round_asked, answered, wrong, wake_pipe[THREADS][2];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;

static void check_thread(int number)
{
	char name[32], wanted[32];
	sigset_t mask;
	snprintf(wanted, sizeof wanted, "thread-%d", number);
	prctl(PR_GET_NAME, name);
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	if (own != number || syscall(SYS_gettid) != tids[number] || strcmp(name, wanted) ||
	    sigismember(&mask, SIGRTMIN + number % 8) != 1 || sigismember(&mask, SIGRTMIN + 9) != 0)
		wrong++;
	answered++;
}

/* Waits for the round after `seen`, in one of five ways. */
static void wait_for_round(int number, int seen)
{
	struct timespec second = { .tv_sec = 0, .tv_nsec = 20000000 }, until;
	struct pollfd ready = { .fd = wake_pipe[number][0], .events = POLLIN };
	char byte;
	switch (number % 4) {
	case 0: /* futex without a limit */
		pthread_mutex_lock(&lock);
		while (round_asked == seen)
			pthread_cond_wait(&asked, &lock);
		pthread_mutex_unlock(&lock);
		break;
	case 1: /* read of an empty pipe */
		while (read(wake_pipe[number][0], &byte, 1) != 1)
			;
		break;
	case 2: /* poll without a limit */
		while (poll(&ready, 1, -1) != 1)
			;
		while (read(wake_pipe[number][0], &byte, 1) != 1)
			;
		break;
	default: /* futex with a limit, sleeps between */
		pthread_mutex_lock(&lock);
		while (round_asked == seen) {
			clock_gettime(CLOCK_REALTIME, &until);
			until.tv_sec += 1000;
			pthread_cond_timedwait(&asked, &lock, &until);
		}
		pthread_mutex_unlock(&lock);
		nanosleep(&second, NULL);
	}
}

static void *thread(void *argument)
{
	int number = (int)(intptr_t)argument, seen = 0;
	char name[32];
	sigset_t mask;
	own = number;
	tids[number] = syscall(SYS_gettid);
	snprintf(name, sizeof name, "thread-%d", number);
	prctl(PR_SET_NAME, name);
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + number % 8);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	pthread_mutex_lock(&lock);
	answered++;
	pthread_cond_signal(&done);
	pthread_mutex_unlock(&lock);
	for (;;) {
		wait_for_round(number, seen++);
		pthread_mutex_lock(&lock);
		check_thread(number);
		pthread_cond_signal(&done);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

static void verify(void)
{
	struct timespec until;
	int reached = 0;
	pthread_mutex_lock(&lock);
	answered = wrong = 0;
	round_asked++;
	pthread_cond_broadcast(&asked);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < THREADS; i++)
		if (i % 4 == 1 || i % 4 == 2)
			must(write(wake_pipe[i][1], "x", 1));
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	pthread_mutex_lock(&lock);
	while (answered < THREADS && !reached)
		reached = pthread_cond_timedwait(&done, &lock, &until);
	expect(answered == THREADS, "%d of %d threads answer", answered, THREADS);
	expect(!wrong, "%d threads are not what they were", wrong);
	pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv)
{
	pthread_attr_t small;
	pthread_t ignored;
	victim(argc, argv);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 * 1024);
	for (int i = 0; i < THREADS; i++) {
		must(pipe2(wake_pipe[i], O_CLOEXEC));
		must(pthread_create(&ignored, &small, thread, (void *)(intptr_t)i) ? -1 : 0);
	}
	pthread_mutex_lock(&lock);
	while (answered < THREADS)
		pthread_cond_wait(&done, &lock);
	pthread_mutex_unlock(&lock);
	return serve(NULL, verify);
}
