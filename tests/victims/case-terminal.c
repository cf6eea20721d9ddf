/* Properties of pseudo-terminals. */
#include "case.h"
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

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

/* Of what exec(2) closes only the number knows; what TIOCGPTPEER opens keeps O_CLOEXEC, whatever numbers come of it. */
CASE(pty_closed_on_exec)
{
	terminal();
	int peer = must(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)), copy = must(dup(peer));
	same(fcntl(copy, F_GETFD), 0);
	restored();
	same(fcntl(slave, F_GETFD), 0);
	same(fcntl(slave, F_GETFL) & O_CLOEXEC, 0);
	same(fcntl(copy, F_GETFD), 0);
	same(fcntl(peer, F_GETFD), FD_CLOEXEC);
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

CASE(pty_input_lines)
{
	terminal();
	put(master, "one\ntwo\n\nfour\004\004fi");
	usleep(50000);
	reads(master, "one\r\ntwo\r\n\r\nfourfi");
	restored();
	holds(!readable_now(master));
	reads(slave, "one\n");
	reads(slave, "two\n");
	reads(slave, "\n");
	reads(slave, "four");
	reads(slave, "");
	holds(!readable_now(slave));
	put(master, "ve\n");
	reads(slave, "five\n");
	reads(master, "ve\r\n");
}

CASE(pty_input_line_to_be_edited)
{
	terminal();
	put(master, "wromg");
	usleep(50000);
	restored();
	holds(!readable_now(slave));
	put(master, "\177\177ng\n");
	reads(slave, "wrong\n");
}

CASE(pty_input_raw_of_many)
{
	struct termios settings;
	terminal();
	must(tcgetattr(slave, &settings));
	cfmakeraw(&settings);
	settings.c_cc[VMIN] = 200;
	must(tcsetattr(slave, TCSANOW, &settings));
	put(master, "few");
	usleep(50000);
	restored();
	settings.c_cc[VMIN] = 1;
	must(tcsetattr(slave, TCSANOW, &settings));
	reads(slave, "few");
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
