/* System calls that a checkpoint interrupts: what is left of their time at the checkpoint is what is left after the restore, and checkpoints do not make it
 * longer; those of which a part is done go on with the rest. */
#include "case.h"
#include <linux/futex.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/time.h>
#include <sys/uio.h>
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

static int limited(int socket, int option)
{
	must(setsockopt(socket, SOL_SOCKET, option, &(struct timeval){ LIMIT, 0 }, sizeof(struct timeval)));
	return socket;
}

static int in_recv(void)
{
	char byte;
	int pair[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	return recv(limited(pair[0], SO_RCVTIMEO), &byte, 1, 0) == -1 && errno == EAGAIN ? 0 : -1;
}

static int in_read_of_socket(void)
{
	char byte;
	struct sockaddr_in any = { .sin_family = AF_INET };
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(fd, (struct sockaddr *)&any, sizeof any));
	return read(limited(fd, SO_RCVTIMEO), &byte, 1) == -1 && errno == EAGAIN ? 0 : -1;
}

static int in_accept(void)
{
	int fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(listen(fd, 1));
	return accept(limited(fd, SO_RCVTIMEO), NULL, NULL) == -1 && errno == EAGAIN ? 0 : -1;
}

static int in_send(void)
{
	static char data[4096];
	int pair[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	while (send(pair[0], data, sizeof data, MSG_DONTWAIT) > 0)
		;
	return send(limited(pair[0], SO_SNDTIMEO), data, sizeof data, 0) == -1 && errno == EAGAIN ? 0 : -1;
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
	{ "recv of a socket with a limit", in_recv, 0, 0, 0 },
	{ "read of a socket with a limit", in_read_of_socket, 0, 0, 0 },
	{ "accept of a socket with a limit", in_accept, 0, 0, 0 },
	{ "send of a socket with a limit", in_send, 0, 0, 0 },
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

enum { LARGE = 1000000 };

static int ends[2];
static char data[LARGE], came[LARGE];

static struct iovec parts[3] = { { data, 300000 }, { data + 300000, 300000 }, { data + 600000, 400000 } };

static ssize_t by_write(void)
{
	return write(ends[1], data, LARGE);
}

static ssize_t by_writev(void)
{
	return writev(ends[1], parts, 3);
}

static ssize_t by_send(void)
{
	return send(ends[1], data, LARGE, 0);
}

static ssize_t by_sendmsg(void)
{
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 3 };
	return sendmsg(ends[1], &message, 0);
}

static void *in_part(void *call)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	return (void *)((ssize_t(*)(void))call)();
}

static void take_all(void)
{
	size_t got = 0;
	while (got < LARGE && readable_soon(ends[0])) {
		ssize_t n = read(ends[0], came + got, LARGE - got);
		if (n <= 0)
			break;
		got += n;
	}
	same(got, LARGE);
	holds(!memcmp(data, came, LARGE));
}

static void goes_on(ssize_t (*call)(void))
{
	pthread_t thread;
	void *told;
	for (size_t i = 0; i < LARGE; i++)
		data[i] = i * 7 + i / 251;
	must(pthread_create(&thread, NULL, in_part, (void *)call) ? -1 : 0);
	usleep(200000);
	restored();
	usleep(200000);
	take_all();
	pthread_join(thread, &told);
	same(told, LARGE);
}

CASE(large_write_to_a_pipe)
{
	must(pipe(ends));
	goes_on(by_write);
}

CASE(large_writev_to_a_pipe)
{
	must(pipe(ends));
	goes_on(by_writev);
}

CASE(large_send_unix)
{
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	goes_on(by_send);
}

CASE(large_sendmsg_unix)
{
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	goes_on(by_sendmsg);
}

static void tcp_pair(int pair[2])
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof here;
	int listener = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(listener, (struct sockaddr *)&here, size));
	must(listen(listener, 1));
	must(getsockname(listener, (struct sockaddr *)&here, &size));
	pair[0] = must(socket(AF_INET, SOCK_STREAM, 0));
	must(connect(pair[0], (struct sockaddr *)&here, size));
	pair[1] = must(accept(listener, NULL, NULL));
	close(listener);
}

CASE(large_send_tcp)
{
	int size = 65536;
	tcp_pair(ends);
	must(setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
	goes_on(by_send);
}

static ssize_t by_recv_of_all(void)
{
	return recv(ends[0], came, 100, MSG_WAITALL);
}

static void receives_all(void)
{
	pthread_t thread;
	void *told;
	must(pthread_create(&thread, NULL, in_part, (void *)by_recv_of_all) ? -1 : 0);
	put(ends[1], "the first half of it");
	usleep(200000);
	restored();
	must(write(ends[1], data, 80));
	pthread_join(thread, &told);
	same(told, 100);
	holds(!memcmp(came, "the first half of it", 20) && !memcmp(came + 20, data, 80));
}

CASE(recv_of_all_unix)
{
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	receives_all();
}

CASE(recv_of_all_tcp)
{
	tcp_pair(ends);
	receives_all();
}

static ssize_t by_recvmmsg(void)
{
	struct iovec first = { came, 10 }, second = { came + 10, 10 };
	struct mmsghdr messages[2] = { { .msg_hdr = { .msg_iov = &first, .msg_iovlen = 1 } },
				       { .msg_hdr = { .msg_iov = &second, .msg_iovlen = 1 } } };
	int got = recvmmsg(ends[0], messages, 2, 0, NULL);
	return got == 2 ? (ssize_t)(messages[0].msg_len * 100 + messages[1].msg_len) : got;
}

CASE(messages_of_which_one_has_come)
{
	pthread_t thread;
	void *told;
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends));
	must(pthread_create(&thread, NULL, in_part, (void *)by_recvmmsg) ? -1 : 0);
	put(ends[1], "one");
	usleep(200000);
	restored();
	put(ends[1], "other");
	pthread_join(thread, &told);
	same(told, 305);
	holds(!memcmp(came, "one", 3) && !memcmp(came + 10, "other", 5));
}
