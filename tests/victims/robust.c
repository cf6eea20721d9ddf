/* Property: mutexes, conditions, barriers and locks of pthreads that are held or waited for across processes, robust ones too. */
#include "victim.h"
#include <pthread.h>
#include <sys/mman.h>

static struct {
	pthread_mutex_t held, robust, checked;
	pthread_cond_t asked;
	pthread_barrier_t barrier;
	pthread_rwlock_t lock;
	volatile int rounds, answers, owner_dead;
} *common;
static pid_t holder, waiter;

static void hold(void)
{
	must(pthread_mutex_lock(&common->robust) ? -1 : 0);
	must(pthread_rwlock_rdlock(&common->lock) ? -1 : 0);
	common->owner_dead = 1;
	for (;;)
		pause();
}

static void answer(void)
{
	int seen = 0;
	for (;;) {
		pthread_mutex_lock(&common->held);
		while (common->rounds == seen)
			pthread_cond_wait(&common->asked, &common->held);
		seen = common->rounds;
		common->answers++;
		pthread_mutex_unlock(&common->held);
		pthread_barrier_wait(&common->barrier);
	}
}

static void start(void (*work)(void), pid_t *pid)
{
	*pid = must(fork());
	if (!*pid) {
		work();
		_exit(0);
	}
}

static void verify(void)
{
	struct timespec soon;
	int before = common->answers;
	expect(pthread_mutex_trylock(&common->robust) == EBUSY, "the mutex that the other process holds is free");
	expect(pthread_rwlock_trywrlock(&common->lock) == EBUSY, "the lock that is read is free");
	int own = pthread_mutex_trylock(&common->checked);
	expect(own == EBUSY || own == EDEADLK, "our own mutex is free: %d", own);
	pthread_mutex_lock(&common->held);
	common->rounds++;
	pthread_cond_broadcast(&common->asked);
	pthread_mutex_unlock(&common->held);
	pthread_barrier_wait(&common->barrier);
	expect(common->answers == before + 1, "the other process did not answer");
	/* Its death is told to who waits for a robust mutex. */
	must(kill(holder, SIGKILL));
	must(waitpid(holder, NULL, 0));
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_sec += 5;
	int got = pthread_mutex_timedlock(&common->robust, &soon);
	expect(got == EOWNERDEAD, "the dead owner is not told: %d", got);
	pthread_mutex_consistent(&common->robust);
	pthread_mutex_unlock(&common->robust);
	pthread_rwlock_unlock(&common->lock);
	common->owner_dead = 0;
	start(hold, &holder);
	while (!common->owner_dead)
		usleep(1000);
	expect(pthread_mutex_unlock(&common->checked) == 0 && pthread_mutex_lock(&common->checked) == 0,
	       "our own mutex has another owner");
}

int main(int argc, char **argv)
{
	pthread_mutexattr_t shared;
	pthread_condattr_t condition;
	pthread_barrierattr_t barrier;
	pthread_rwlockattr_t lock;
	victim(argc, argv);
	common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(common == MAP_FAILED ? -1 : 0);
	pthread_mutexattr_init(&shared);
	pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&common->held, &shared);
	pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&common->robust, &shared);
	pthread_mutexattr_settype(&shared, PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_init(&common->checked, &shared);
	pthread_condattr_init(&condition);
	pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
	pthread_cond_init(&common->asked, &condition);
	pthread_barrierattr_init(&barrier);
	pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&common->barrier, &barrier, 2);
	pthread_rwlockattr_init(&lock);
	pthread_rwlockattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
	pthread_rwlock_init(&common->lock, &lock);
	must(pthread_mutex_lock(&common->checked) ? -1 : 0);
	start(hold, &holder);
	start(answer, &waiter);
	while (!common->owner_dead)
		usleep(1000);
	return serve(NULL, verify);
}
