/* Property: pipes, eventfd, epoll, timerfd and signalfd keep what is in them, their flags and who shares them. */
#include "victim.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static int full[2], packets[2], counter, semaphore, epoll, timer, periodic, signals, duplicate;

static void content(const char *text)
{
	char old[256];
	ssize_t length = read(full[0], old, sizeof old);
	(void)length;
	must(write(full[1], text, strlen(text)));
}

static void change(void)
{
	char text[64];
	snprintf(text, sizeof text, "generation %d in the pipe", generation + 1);
	content(text);
	eventfd_write(counter, 1);
}

static void check_epoll(void)
{
	struct epoll_event events[8];
	int seen = 0, count = epoll_wait(epoll, events, 8, 0);
	for (int i = 0; i < count; i++)
		seen |= 1 << events[i].data.u32;
	/* 0: the pipe has data; 1: the counter is not zero; 2: the timer far ahead; 3: the signal is pending. */
	expect(seen == (1 | 2 | 8), "epoll tells %x", seen);
}

static void check_packets(void)
{
	char text[16] = "";
	expect(read(packets[0], text, sizeof text) == 3 && !memcmp(text, "one", 3), "the first packet is '%s'", text);
	expect(read(packets[0], text, sizeof text) == 5 && !memcmp(text, "three", 5), "the second packet is '%s'", text);
	must(write(packets[1], "one", 3));
	must(write(packets[1], "three", 5));
}

static void verify(void)
{
	char text[256] = "", wanted[64];
	int waiting;
	uint64_t value;
	struct itimerspec left;
	check_epoll();
	snprintf(wanted, sizeof wanted, "generation %d in the pipe", generation);
	must(ioctl(full[0], FIONREAD, &waiting));
	expect(waiting == (int)strlen(wanted), "%d bytes wait in the pipe", waiting);
	must(read(full[0], text, sizeof text - 1));
	expect(!strcmp(text, wanted), "the pipe has '%s'", text);
	must(write(full[1], wanted, strlen(wanted)));
	expect(fcntl(full[0], F_GETFL) & O_NONBLOCK, "the pipe is not O_NONBLOCK");
	expect(!(fcntl(full[1], F_GETFL) & O_NONBLOCK), "the pipe's other end is O_NONBLOCK");
	expect(fcntl(full[1], F_GETPIPE_SZ) == 262144, "the pipe's size is %d", fcntl(full[1], F_GETPIPE_SZ));
	check_packets();
	expect(!eventfd_read(counter, &value) && value == 7 + (uint64_t)generation, "the eventfd has %lu", value);
	eventfd_write(counter, value);
	expect(!eventfd_read(semaphore, &value) && value == 1, "the semaphore gives %lu", value);
	eventfd_write(semaphore, 1);
	expect(!timerfd_gettime(timer, &left) && left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 10000,
	       "the timer has %ld s", left.it_value.tv_sec);
	struct pollfd ticks = { .fd = periodic, .events = POLLIN };
	expect(read(periodic, &value, sizeof value) == 8 || poll(&ticks, 1, 2000) == 1, "the periodic timer is silent");
	expect(poll(&ticks, 1, 2000) == 1, "the periodic timer ticks no more");
	expect(fcntl(duplicate, F_GETFD) == FD_CLOEXEC && fcntl(full[0], F_GETFD) == FD_CLOEXEC &&
		       fcntl(semaphore, F_GETFD) == 0,
	       "a close-on-exec flag is wrong");
	/* One description behind both: a status flag set through one is seen through the other. */
	must(fcntl(duplicate, F_SETFL, 0));
	expect(!(fcntl(counter, F_GETFL) & O_NONBLOCK), "the duplicate is a description of its own");
	must(fcntl(duplicate, F_SETFL, O_NONBLOCK));
}

static void watch(int fd, int number)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = number };
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

int main(int argc, char **argv)
{
	sigset_t set;
	struct itimerspec far = { .it_value.tv_sec = 10000 };
	struct itimerspec often = { .it_value.tv_nsec = 50000000, .it_interval.tv_nsec = 50000000 };
	victim(argc, argv);
	must(pipe2(full, O_CLOEXEC));
	must(fcntl(full[0], F_SETFL, O_NONBLOCK));
	must(fcntl(full[1], F_SETPIPE_SZ, 262144));
	must(pipe2(packets, O_CLOEXEC | O_DIRECT | O_NONBLOCK));
	must(write(packets[1], "one", 3));
	must(write(packets[1], "three", 5));
	counter = must(eventfd(6, EFD_CLOEXEC | EFD_NONBLOCK));
	semaphore = must(eventfd(5, EFD_SEMAPHORE));
	timer = must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	must(timerfd_settime(timer, 0, &far, NULL));
	periodic = must(timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
	must(timerfd_settime(periodic, 0, &often, NULL));
	sigemptyset(&set);
	sigaddset(&set, SIGWINCH);
	sigaddset(&set, SIGRTMIN + 3);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	signals = must(signalfd(-1, &set, SFD_CLOEXEC));
	must(kill(getpid(), SIGRTMIN + 3));
	duplicate = must(fcntl(counter, F_DUPFD_CLOEXEC, 400));
	epoll = must(epoll_create1(EPOLL_CLOEXEC));
	watch(full[0], 0);
	watch(counter, 1);
	watch(timer, 2);
	watch(signals, 3);
	generation = -1;
	change();
	return serve(change, verify);
}
