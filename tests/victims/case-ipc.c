/* Properties of terminals, System V IPC and POSIX message queues. */
#include "case.h"
#include <mqueue.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <termios.h>

/* pseudo-terminals */

static int master, slave;

static void terminal(void)
{
	if (openpty(&master, &slave, NULL, NULL, NULL))
		cannot("no pseudo-terminals");
}

CASE(pty_works)
{
	terminal();
	restored();
	put(master, "line\n");
	reads(slave, "line\n");
	reads(master, "line\r\n");
	put(slave, "out");
	reads(master, "out");
}

CASE(pty_name)
{
	char before[64], after[64];
	terminal();
	must(ptsname_r(master, before, sizeof before));
	restored();
	must(ptsname_r(master, after, sizeof after));
	holds(!strcmp(before, after));
	holds(!strcmp(ttyname(slave), before));
}

CASE(pty_settings)
{
	struct termios settings, got;
	terminal();
	must(tcgetattr(slave, &settings));
	cfmakeraw(&settings);
	settings.c_cc[VINTR] = 7;
	cfsetspeed(&settings, B115200);
	must(tcsetattr(slave, TCSANOW, &settings));
	must(tcgetattr(slave, &settings));
	restored();
	must(tcgetattr(slave, &got));
	same(got.c_lflag, settings.c_lflag);
	same(got.c_iflag, settings.c_iflag);
	same(got.c_oflag, settings.c_oflag);
	same(got.c_cflag, settings.c_cflag);
	holds(!memcmp(got.c_cc, settings.c_cc, sizeof got.c_cc));
}

CASE(pty_size)
{
	struct winsize size = { 33, 111, 5, 6 }, got;
	terminal();
	must(ioctl(master, TIOCSWINSZ, &size));
	restored();
	must(ioctl(slave, TIOCGWINSZ, &got));
	same(got.ws_row, 33);
	same(got.ws_col, 111);
}

CASE(pty_output_waiting)
{
	terminal();
	put(slave, "shown\n");
	restored();
	reads(master, "shown\r\n");
}

CASE(pty_input_waiting)
{
	terminal();
	put(master, "typed\n");
	restored();
	reads(slave, "typed\n");
}

CASE(pty_input_raw)
{
	struct termios settings;
	terminal();
	must(tcgetattr(slave, &settings));
	cfmakeraw(&settings);
	must(tcsetattr(slave, TCSANOW, &settings));
	put(master, "raw");
	restored();
	reads(slave, "raw");
}

CASE(pty_packet_mode)
{
	int mode = 1, got = 0;
	terminal();
	must(ioctl(master, TIOCPKT, &mode));
	restored();
	must(ioctl(master, 0x80045438 /* TIOCGPKT */, &got));
	same(got, 1);
}

CASE(pty_exclusive_and_locked)
{
	int fd = posix_openpt(O_RDWR | O_NOCTTY), got = 0;
	if (fd < 0)
		cannot("no pseudo-terminals");
	restored();
	must(ioctl(fd, 0x80045439 /* TIOCGPTLCK */, &got));
	same(got, 1);
	must(grantpt(fd));
	must(unlockpt(fd));
	slave = must(open(ptsname(fd), O_RDWR | O_NOCTTY));
	put(slave, "x");
	reads(fd, "x");
}

CASE(pty_slave_only_hangs_up)
{
	char byte;
	terminal();
	close(master);
	restored();
	same(read(slave, &byte, 1), 0);
	same(write(slave, "x", 1), -1);
}

CASE(pty_master_only)
{
	char byte;
	terminal();
	close(slave);
	restored();
	same(read(master, &byte, 1), -1);
	same(errno, EIO);
}

static void take_terminal(void)
{
	must(setsid());
	must(ioctl(slave, TIOCSCTTY, 0));
}

static int terminal_is_ours(void)
{
	int fd = open("/dev/tty", O_RDWR);
	if (fd < 0)
		return -errno;
	close(fd);
	return tcgetsid(slave) == getpid() && tcgetpgrp(slave) == getpgrp();
}

CASE(pty_controlling)
{
	terminal();
	struct child child = spawn(take_terminal, terminal_is_ours);
	same(ask(child), 1);
	restored();
	same(ask(child), 1);
}

static void take_terminal_dev_tty(void)
{
	take_terminal();
	close(slave);
	slave = must(open("/dev/tty", O_RDWR));
}

static int says_hello(void)
{
	return (int)write(slave, "hello", 5);
}

CASE(pty_dev_tty)
{
	terminal();
	struct child child = spawn(take_terminal_dev_tty, says_hello);
	restored();
	same(ask(child), 5);
	reads(master, "hello");
}

static pid_t job;
static void take_terminal_with_job(void)
{
	take_terminal();
	job = must(fork());
	if (!job) {
		setpgid(0, 0);
		for (;;)
			pause();
	}
	setpgid(job, job);
	signal(SIGTTOU, SIG_IGN);
	must(tcsetpgrp(slave, job));
}

static int job_is_in_front(void)
{
	return tcgetpgrp(slave) == job;
}

CASE(pty_foreground_group)
{
	terminal();
	struct child child = spawn(take_terminal_with_job, job_is_in_front);
	restored();
	same(ask(child), 1);
}

static int interrupts;
static void on_interrupt(int number)
{
	(void)number;
	interrupts++;
}
static void take_terminal_and_handle(void)
{
	take_terminal();
	signal(SIGINT, on_interrupt);
	signal(SIGWINCH, on_interrupt);
}
static int interrupts_seen(void)
{
	for (int i = 0; i < 100 && !interrupts; i++)
		usleep(10000);
	return interrupts;
}

CASE(pty_interrupt_key)
{
	terminal();
	struct child child = spawn(take_terminal_and_handle, interrupts_seen);
	restored();
	put(master, "\003");
	same(ask(child), 1);
}

/* System V */

CASE(sysv_semaphores)
{
	int id = must(semget(IPC_PRIVATE, 3, 0600));
	must(semctl(id, 0, SETVAL, 4));
	must(semctl(id, 2, SETVAL, 7));
	restored();
	same(semctl(id, 0, GETVAL), 4);
	same(semctl(id, 1, GETVAL), 0);
	same(semctl(id, 2, GETVAL), 7);
	must(semctl(id, 0, IPC_RMID));
}

CASE(sysv_semaphore_waiter)
{
	int id = must(semget(IPC_PRIVATE, 1, 0600)), status;
	struct sembuf down = { 0, -1, 0 };
	pid_t pid = must(fork());
	if (!pid) {
		int result = semop(id, &down, 1);
		_exit(result ? errno : 0);
	}
	usleep(50000);
	restored();
	must(semctl(id, 0, SETVAL, 1));
	must(waitpid(pid, &status, 0));
	same(status, 0);
	must(semctl(id, 0, IPC_RMID));
}

struct message {
	long type;
	char text[64];
};

REFUSED(sysv_messages, "sysv-queue")
{
	struct message message = { 5, "five" }, got = { 0 };
	int id = must(msgget(IPC_PRIVATE, 0600));
	must(msgsnd(id, &message, 5, 0));
	message = (struct message){ 3, "three" };
	must(msgsnd(id, &message, 6, 0));
	restored();
	same(msgrcv(id, &got, sizeof got.text, 3, IPC_NOWAIT), 6);
	holds(!strcmp(got.text, "three"));
	same(msgrcv(id, &got, sizeof got.text, 0, IPC_NOWAIT), 5);
	same(got.type, 5);
	holds(!strcmp(got.text, "five"));
	must(msgctl(id, IPC_RMID, NULL));
}

REFUSED(sysv_messages_key_and_limits, "sysv-queue")
{
	struct msqid_ds status;
	key_t key = 0x4711cafe;
	int old = msgget(key, 0);
	if (old >= 0)
		msgctl(old, IPC_RMID, NULL);
	int id = must(msgget(key, IPC_CREAT | 0640));
	must(msgctl(id, IPC_STAT, &status));
	status.msg_qbytes = 1000;
	must(msgctl(id, IPC_SET, &status));
	struct message message = { 5, "five" };
	must(msgsnd(id, &message, 5, 0));
	restored();
	same(msgget(key, 0), id);
	must(msgctl(id, IPC_STAT, &status));
	same(status.msg_qbytes, 1000);
	same(status.msg_qnum, 1);
	same(status.msg_perm.mode & 0777, 0640);
	must(msgctl(id, IPC_RMID, NULL));
}

REFUSED(sysv_messages_reader_waits, "sysv-queue")
{
	struct message message = { 1, "x" };
	int id = must(msgget(IPC_PRIVATE, 0600)), status;
	pid_t pid = must(fork());
	if (!pid)
		_exit(msgrcv(id, &message, 64, 0, 0) == 2 ? 0 : errno);
	usleep(50000);
	must(msgctl(id, IPC_STAT, &(struct msqid_ds){ 0 }));
	restored();
	must(msgsnd(id, &message, 2, 0));
	must(waitpid(pid, &status, 0));
	same(status, 0);
	must(msgctl(id, IPC_RMID, NULL));
}

REFUSED(sysv_segment_unattached, "sysv-unattached")
{
	int id = must(shmget(IPC_PRIVATE, 4096, 0600));
	char *at = shmat(id, NULL, 0);
	strcpy(at, "nobody is attached");
	must(shmdt(at));
	restored();
	at = shmat(id, NULL, 0);
	holds(at != (void *)-1 && !strcmp(at, "nobody is attached"));
	must(shmctl(id, IPC_RMID, NULL));
}

/* POSIX message queues and semaphores */

static const char *queue_name = "/case-queue";

REFUSED(posix_queue, "message-queue")
{
	struct mq_attr attributes = { .mq_maxmsg = 5, .mq_msgsize = 100 }, got;
	char text[100] = "";
	unsigned priority;
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT | O_NONBLOCK, 0640, &attributes);
	if (queue < 0)
		cannot("no message queues");
	must(mq_send(queue, "low", 4, 1));
	must(mq_send(queue, "high", 5, 9));
	must(mq_send(queue, "low too", 8, 1));
	restored();
	must(mq_getattr(queue, &got));
	same(got.mq_maxmsg, 5);
	same(got.mq_msgsize, 100);
	same(got.mq_curmsgs, 3);
	same(got.mq_flags, O_NONBLOCK);
	same(mq_receive(queue, text, sizeof text, &priority), 5);
	same(priority, 9);
	holds(!strcmp(text, "high"));
	same(mq_receive(queue, text, sizeof text, &priority), 4);
	same(mq_receive(queue, text, sizeof text, &priority), 8);
	mqd_t again = mq_open(queue_name, O_RDONLY);
	holds(again >= 0);
	mq_unlink(queue_name);
}

REFUSED(posix_queue_unlinked, "message-queue")
{
	char text[9000];
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT, 0600, NULL);
	if (queue < 0)
		cannot("no message queues");
	must(mq_send(queue, "gone", 5, 0));
	must(mq_unlink(queue_name));
	restored();
	same(mq_receive(queue, text, sizeof text, NULL), 5);
}

REFUSED(posix_queue_notify, "message-queue")
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 6 };
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT, 0600, NULL);
	if (queue < 0)
		cannot("no message queues");
	must(mq_notify(queue, &event));
	restored();
	must(mq_send(queue, "x", 1, 0));
	siginfo_t info;
	struct timespec limit = { 5, 0 };
	same(sigtimedwait(&set, &info, &limit), SIGRTMIN);
	same(info.si_value.sival_int, 6);
	mq_unlink(queue_name);
}
