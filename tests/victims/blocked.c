/* Property: threads that wait in system calls without a limit wait on, none is told EINTR, and each gets what it waited for. */
#include "victim.h"
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <time.h>

enum { CALLS = 16 };

static int gate[CALLS][2], failures, set_id, counter_fd, epoll, locked[2], listener;
static volatile int started[CALLS], finished[CALLS], result[CALLS], number_of[CALLS];
static sem_t semaphore;
static pid_t child;

static int call(int which)
{
	char byte;
	int in = gate[which][0], status, signal;
	uint64_t count;
	struct pollfd ready = { .fd = in, .events = POLLIN };
	struct epoll_event event;
	struct timespec far = { .tv_sec = 5000 };
	struct timeval far_too = { .tv_sec = 5000 };
	struct sembuf down = { .sem_num = 0, .sem_op = -1 };
	sigset_t set;
	fd_set fds;
	switch (which) {
	case 0:
		return read(in, &byte, 1);
	case 1:
		return poll(&ready, 1, -1);
	case 2:
		return poll(&ready, 1, 5000000);
	case 3:
		return ppoll(&ready, 1, &far, NULL);
	case 4:
		FD_ZERO(&fds);
		FD_SET(in, &fds);
		return select(in + 1, &fds, NULL, NULL, &far_too);
	case 5:
		FD_ZERO(&fds);
		FD_SET(in, &fds);
		return pselect(in + 1, &fds, NULL, NULL, NULL, NULL);
	case 6:
		return epoll_wait(epoll, &event, 1, 5000000);
	case 7:
		return epoll_pwait(epoll, &event, 1, -1, NULL);
	case 8:
		return sem_wait(&semaphore) ? -1 : 1;
	case 9:
		return semop(set_id, &down, 1) ? -1 : 1;
	case 10:
		return semtimedop(set_id, &down, 1, &far) ? -1 : 1;
	case 11:
		return read(counter_fd, &count, sizeof count) == sizeof count ? 1 : -1;
	case 12:
		return waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? 1 : -1;
	case 13:
		return flock(locked[1], LOCK_EX) ? -1 : 1;
	case 14:
		sigemptyset(&set);
		sigaddset(&set, SIGRTMIN + 4);
		signal = sigtimedwait(&set, NULL, &far);
		return signal == SIGRTMIN + 4 ? 1 : -1;
	default:
		return accept(listener, NULL, NULL) >= 0 ? 1 : -1;
	}
}

static void *wait_in(void *argument)
{
	int which = (int)(intptr_t)argument;
	number_of[which] = syscall(SYS_gettid);
	started[which] = 1;
	int got = call(which);
	result[which] = got == 1 ? 1 : -errno - 1000;
	finished[which] = 1;
	return NULL;
}

static void begin(int which)
{
	pthread_t thread;
	started[which] = finished[which] = 0;
	must(pthread_create(&thread, NULL, wait_in, (void *)(intptr_t)which) ? -1 : 0);
	pthread_detach(thread);
	while (!started[which])
		usleep(100);
}

static void start_child(void)
{
	child = must(fork());
	if (!child)
		for (;;)
			pause();
}

static void let_go(int which)
{
	struct sembuf up = { .sem_num = 0, .sem_op = 1 };
	uint64_t one = 1;
	int fd;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	switch (which) {
	case 8:
		sem_post(&semaphore);
		break;
	case 9:
	case 10:
		must(semop(set_id, &up, 1));
		break;
	case 11:
		must(write(counter_fd, &one, sizeof one));
		break;
	case 12:
		must(kill(child, SIGKILL));
		break;
	case 13:
		must(flock(locked[0], LOCK_UN));
		break;
	case 14:
		must(syscall(SYS_tgkill, getpid(), number_of[14], SIGRTMIN + 4));
		break;
	case 15:
		snprintf(address.sun_path, sizeof address.sun_path, "%s", in_dir("socket"));
		fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
		must(connect(fd, (struct sockaddr *)&address, sizeof address));
		close(fd);
		break;
	default:
		must(write(gate[which][1], "x", 1));
	}
}

static void verify(void)
{
	char byte;
	for (int which = 0; which < CALLS; which++)
		expect(!finished[which], "call %d ended with %d", which, result[which]);
	for (int which = 0; which < CALLS; which++) {
		/* Two wait at the same instance. */
		if (which == 7)
			continue;
		let_go(which);
		if (which == 6)
			let_go(7);
		for (int i = 0; i < 5000 && !(finished[which] && (which != 6 || finished[7])); i++)
			usleep(1000);
		expect(finished[which] || which == 9 || which == 10, "call %d does not end", which);
		expect(!finished[which] || result[which] == 1, "call %d ended with %d", which, result[which]);
	}
	for (int i = 0; i < 5000 && !(finished[9] && finished[10]); i++)
		usleep(1000);
	expect(finished[9] && finished[10], "the semaphores' calls do not end");
	if (victim_failure[0])
		return;
	for (int which = 1; which < 8; which++)
		must(read(gate[which][0], &byte, 1));
	start_child();
	must(flock(locked[1], LOCK_UN));
	must(flock(locked[0], LOCK_EX));
	for (int which = 0; which < CALLS; which++)
		begin(which);
	usleep(50000);
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	sigset_t set;
	victim(argc, argv);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 4);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	must(sem_init(&semaphore, 0, 0));
	set_id = must(semget(IPC_PRIVATE, 1, 0600));
	counter_fd = must(eventfd(0, EFD_CLOEXEC));
	epoll = must(epoll_create1(EPOLL_CLOEXEC));
	for (int which = 0; which < CALLS; which++)
		must(pipe2(gate[which], O_CLOEXEC));
	for (int which = 6; which < 8; which++)
		must(epoll_ctl(epoll, EPOLL_CTL_ADD, gate[which][0], &(struct epoll_event){ .events = EPOLLIN }));
	for (int i = 0; i < 2; i++)
		locked[i] = must(open(in_dir("locked"), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
	must(flock(locked[0], LOCK_EX));
	listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	snprintf(address.sun_path, sizeof address.sun_path, "%s", in_dir("socket"));
	unlink(address.sun_path);
	must(bind(listener, (struct sockaddr *)&address, sizeof address));
	must(listen(listener, 4));
	start_child();
	for (int which = 0; which < CALLS; which++)
		begin(which);
	usleep(50000);
	(void)failures;
	return serve(NULL, verify);
}
