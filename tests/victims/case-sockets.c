/* Properties of sockets: unix, TCP and UDP over IPv4 and IPv6, netlink, packet, raw. */
#include "socket.h"
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/tls.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>

static const int on = 1;

/* unix */

static int pair[2];

static struct sockaddr_un at_path(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strncpy(address.sun_path, in_dir(name), sizeof address.sun_path - 1);
	return address;
}

static socklen_t abstract(struct sockaddr_un *address, const char *name)
{
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	strcpy(address->sun_path + 1, name);
	return offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
}

static int bound(int kind, const char *name)
{
	struct sockaddr_un address = at_path(name);
	int fd = must(socket(AF_UNIX, kind | SOCK_CLOEXEC, 0));
	must(bind(fd, (void *)&address, sizeof address));
	return fd;
}

static int connected(int kind, const char *name)
{
	struct sockaddr_un address = at_path(name);
	int fd = must(socket(AF_UNIX, kind | SOCK_CLOEXEC, 0));
	must(connect(fd, (void *)&address, sizeof address));
	return fd;
}

static ssize_t receive(int fd, char *text, size_t room)
{
	memset(text, 0, room);
	return recv(fd, text, room - 1, MSG_DONTWAIT);
}

CASE(unix_pair_stream)
{
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[0], "there");
	put(pair[1], "back");
	restored();
	reads(pair[1], "there");
	reads(pair[0], "back");
	put(pair[0], "again");
	reads(pair[1], "again");
}

CASE(unix_pair_stream_full)
{
	static char block[1000];
	long all = 0, n;
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
	memset(block, 7, sizeof block);
	while ((n = write(pair[0], block, sizeof block)) > 0)
		all += n;
	restored();
	while ((n = read(pair[1], block, sizeof block)) > 0)
		all -= n;
	same(all, 0);
	put(pair[0], "again");
	reads(pair[1], "again");
}

CASE(unix_pair_datagram)
{
	char text[64];
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	put(pair[0], "first");
	put(pair[0], "second");
	restored();
	same(receive(pair[1], text, sizeof text), 5);
	same(receive(pair[1], text, sizeof text), 6);
	put(pair[1], "back");
	same(receive(pair[0], text, sizeof text), 4);
}

CASE(unix_pair_sequence)
{
	char text[64];
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	put(pair[0], "first");
	put(pair[0], "second");
	restored();
	same(receive(pair[1], text, sizeof text), 5);
	same(receive(pair[1], text, sizeof text), 6);
}

CASE(unix_datagram_empty)
{
	char text[64];
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	must(send(pair[0], "", 0, 0));
	must(send(pair[0], "x", 1, 0));
	must(send(pair[0], "", 0, 0));
	restored();
	holds(readable_now(pair[1]));
	same(receive(pair[1], text, sizeof text), 0);
	same(receive(pair[1], text, sizeof text), 1);
	same(receive(pair[1], text, sizeof text), 0);
	same(receive(pair[1], text, sizeof text), -1);
}

CASE(unix_sequence_empty)
{
	char text[64];
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	must(send(pair[0], "a", 1, 0));
	must(send(pair[0], "", 0, 0));
	must(send(pair[0], "b", 1, 0));
	restored();
	same(receive(pair[1], text, sizeof text), 1);
	same(receive(pair[1], text, sizeof text), 0);
	same(receive(pair[1], text, sizeof text), 1);
}

CASE(unix_datagram_large)
{
	static char large[150000], got[200000];
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	set(pair[0], SOL_SOCKET, SO_SNDBUF, 200000);
	memset(large, 'l', sizeof large);
	must(send(pair[0], large, sizeof large, 0));
	restored();
	same(receive(pair[1], got, sizeof got), sizeof large);
	holds(!memcmp(large, got, sizeof large));
}

CASE(unix_peer_closed)
{
	char byte;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[1], "last words");
	close(pair[1]);
	restored();
	reads(pair[0], "last words");
	same(read(pair[0], &byte, 1), 0);
	same(write(pair[0], "x", 1), -1);
	same(errno, EPIPE);
}

CASE(unix_peer_closed_unread)
{
	char byte;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[0], "never read");
	close(pair[1]);
	restored();
	same(read(pair[0], &byte, 1), -1);
	same(errno, ECONNRESET);
}

CASE(unix_half_closed_write)
{
	char byte;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[0], "end");
	must(shutdown(pair[0], SHUT_WR));
	restored();
	reads(pair[1], "end");
	same(read(pair[1], &byte, 1), 0);
	same(write(pair[0], "x", 1), -1);
	put(pair[1], "still");
	reads(pair[0], "still");
}

CASE(unix_half_closed_read)
{
	char byte;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	must(shutdown(pair[0], SHUT_RD));
	restored();
	same(read(pair[0], &byte, 1), 0);
	put(pair[0], "still");
	reads(pair[1], "still");
	same(write(pair[1], "x", 1), -1);
}

CASE(unix_listener_path)
{
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	restored();
	int client = connected(SOCK_STREAM, "s"), server = must(accept(fd, NULL, NULL));
	put(client, "x");
	reads(server, "x");
}

CASE(unix_listener_mode)
{
	struct stat status;
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	must(chmod(in_dir("s"), 0620));
	restored();
	must(stat(in_dir("s"), &status));
	same(status.st_mode & 0777, 0620);
}

CASE(unix_listener_relative)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "rel" }, got;
	socklen_t length = sizeof got;
	must(chdir(victim_dir));
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	must(listen(fd, 5));
	restored();
	must(getsockname(fd, (void *)&got, &length));
	holds(!strcmp(got.sun_path, "rel"));
	close(connected(SOCK_STREAM, "rel"));
	must(accept(fd, NULL, NULL));
}

/* As postfix does it: the name has a directory in it. */
CASE(unix_listener_relative_below)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "below/name" };
	must(chdir(victim_dir));
	must(mkdir("below", 0755));
	must(mkdir("name", 0755));
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	must(listen(fd, 5));
	restored();
	close(connected(SOCK_STREAM, "below/name"));
	must(accept(fd, NULL, NULL));
	holds(!access(in_dir("name/."), F_OK));
}

/* Servers that change their root after bind(2), and those that bind below a root of their own. */
CASE(unix_listener_chroot)
{
	struct sockaddr_un inner = { .sun_family = AF_UNIX, .sun_path = "/case-inner" };
	int outer = bound(SOCK_STREAM, "outer"), ready[2];
	must(listen(outer, 5));
	must(mkdir(in_dir("root"), 0755));
	must(pipe(ready));
	if (!must(fork())) {
		must(chroot(in_dir("root")));
		int fd = must(socket(AF_UNIX, SOCK_STREAM, 0));
		must(bind(fd, (void *)&inner, sizeof inner));
		must(listen(fd, 5));
		must(write(ready[1], "r", 1));
		for (;;) {
			put(must(accept(outer, NULL, NULL)), "outer");
			put(must(accept(fd, NULL, NULL)), "inner");
		}
	}
	close(outer);
	reads(ready[0], "r");
	restored();
	int client = connected(SOCK_STREAM, "outer");
	holds(readable_soon(client));
	reads(client, "outer");
	client = connected(SOCK_STREAM, "root/case-inner");
	holds(readable_soon(client));
	reads(client, "inner");
	same(access("/case-inner", F_OK), -1);
}

CASE(unix_listener_in_run)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/run/case-socket" };
	unlink(address.sun_path);
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0)), client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	must(listen(fd, 5));
	restored();
	same(connect(client, (void *)&address, sizeof address), 0);
	unlink(address.sun_path);
}

CASE(unix_listener_unlinked)
{
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	must(unlink(in_dir("s")));
	restored();
	same(access(in_dir("s"), F_OK), -1);
	same(option(fd, SOL_SOCKET, SO_ACCEPTCONN), 1);
}

/* As haproxy and others do it, so that the name that clients know is never missing. */
CASE(unix_listener_renamed)
{
	int fd = bound(SOCK_STREAM, "s.tmp");
	struct sockaddr_un address = at_path("s.tmp"), got;
	socklen_t length = sizeof got;
	must(listen(fd, 5));
	must(rename(in_dir("s.tmp"), in_dir("s")));
	restored();
	same(access(in_dir("s.tmp"), F_OK), -1);
	must(getsockname(fd, (void *)&got, &length));
	same(strcmp(got.sun_path, address.sun_path), 0);
	int client = connected(SOCK_STREAM, "s"), server = must(accept(fd, NULL, NULL));
	put(client, "x");
	reads(server, "x");
}

/* As supervisord and ssh do it: the name that clients know is a link to one that is removed. */
CASE(unix_listener_linked)
{
	int fd = bound(SOCK_STREAM, "s.tmp");
	must(listen(fd, 5));
	must(link(in_dir("s.tmp"), in_dir("s")));
	must(link(in_dir("s.tmp"), in_dir("s.too")));
	must(unlink(in_dir("s.tmp")));
	restored();
	same(access(in_dir("s.tmp"), F_OK), -1);
	struct stat one, two;
	must(stat(in_dir("s"), &one));
	must(stat(in_dir("s.too"), &two));
	same(one.st_ino, two.st_ino);
	int client = connected(SOCK_STREAM, "s.too"), server = must(accept(fd, NULL, NULL));
	put(client, "x");
	reads(server, "x");
}

CASE(unix_listener_abstract)
{
	struct sockaddr_un address;
	socklen_t length = abstract(&address, "case-abstract");
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(bind(fd, (void *)&address, length));
	must(listen(fd, 5));
	restored();
	int client = must(socket(AF_UNIX, SOCK_STREAM, 0));
	same(connect(client, (void *)&address, length), 0);
	must(accept(fd, NULL, NULL));
}

CASE(unix_autobound)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX }, one, two;
	socklen_t length = sizeof one, again = sizeof two;
	int fd = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(bind(fd, (void *)&address, sizeof(sa_family_t)));
	must(getsockname(fd, (void *)&one, &length));
	restored();
	must(getsockname(fd, (void *)&two, &again));
	same(length, again);
	holds(!memcmp(&one, &two, length));
}

CASE(unix_accepted)
{
	struct sockaddr_un name;
	socklen_t length = sizeof name;
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	int client = connected(SOCK_STREAM, "s"), server = must(accept(fd, NULL, NULL));
	put(client, "there");
	put(server, "back");
	restored();
	reads(server, "there");
	reads(client, "back");
	must(getpeername(client, (void *)&name, &length));
	holds(!strcmp(name.sun_path, in_dir("s")));
	length = sizeof name;
	must(getsockname(server, (void *)&name, &length));
	holds(!strcmp(name.sun_path, in_dir("s")));
}

CASE(unix_accepted_listener_gone)
{
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	int client = connected(SOCK_STREAM, "s"), server = must(accept(fd, NULL, NULL));
	close(fd);
	unlink(in_dir("s"));
	put(client, "there");
	restored();
	reads(server, "there");
	put(server, "back");
	reads(client, "back");
}

CASE(unix_accepted_listener_rebound)
{
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	int client = connected(SOCK_STREAM, "s"), server = must(accept(fd, NULL, NULL));
	close(fd);
	must(unlink(in_dir("s")));
	fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	restored();
	put(client, "old");
	reads(server, "old");
	client = connected(SOCK_STREAM, "s");
	must(accept(fd, NULL, NULL));
}

CASE(unix_accepted_many)
{
	int fd = bound(SOCK_STREAM, "s"), clients[50], servers[50];
	char text[16];
	must(listen(fd, 64));
	for (int i = 0; i < 50; i++) {
		clients[i] = connected(SOCK_STREAM, "s");
		servers[i] = must(accept(fd, NULL, NULL));
		snprintf(text, sizeof text, "number %d", i);
		put(clients[i], text);
	}
	restored();
	for (int i = 0; i < 50; i++) {
		snprintf(text, sizeof text, "number %d", i);
		reads(servers[i], text);
	}
}

CASE(unix_backlog)
{
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	int one = connected(SOCK_STREAM, "s"), two = connected(SOCK_STREAM, "s");
	restored();
	int server = must(accept(fd, NULL, NULL));
	put(one, "first");
	reads(server, "first");
	server = must(accept(fd, NULL, NULL));
	put(server, "second");
	reads(two, "second");
}

static int slow_listener;
static atomic_int slowly_served;

/* Leaves every connection waiting for a while. */
static void *serve_slowly(void *nothing)
{
	for (char byte;;) {
		int server = must(accept(slow_listener, NULL, NULL));
		expect(read(server, &byte, 1) == 1, "a connection without a byte");
		must(write(server, "y", 1));
		close(server);
		usleep(15000);
	}
	return nothing;
}

static void *ask_slowly(void *nothing)
{
	for (char byte = 0;; slowly_served++) {
		int client = connected(SOCK_STREAM, "s");
		must(write(client, "x", 1));
		expect(read(client, &byte, 1) == 1 && byte == 'y', "no answer (%s)", strerror(errno));
		close(client);
		usleep(8000);
	}
	return nothing;
}

/* Servers that are busy accept when they come to it: a moment is found in which nothing waits. */
CASE(unix_backlog_written_for_a_moment)
{
	pthread_t server, client;
	slow_listener = bound(SOCK_STREAM, "s");
	must(listen(slow_listener, 5));
	must(-pthread_create(&server, NULL, serve_slowly, NULL));
	must(-pthread_create(&client, NULL, ask_slowly, NULL));
	while (slowly_served < 3)
		usleep(1000);
	restored();
	for (int before = slowly_served; slowly_served < before + 3;)
		usleep(1000);
}

/* As clients of a server that is at its limit: there is none in which nothing waits, until the clients are held. */
CASE(unix_backlog_written_all_the_time)
{
	atomic_int *answers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	for (int n = 0; n < 5; n++) {
		if (must(fork()))
			continue;
		for (char byte = 0;; ++*answers) {
			int client = connected(SOCK_STREAM, "s");
			must(write(client, "x", 1));
			expect(read(client, &byte, 1) == 1 && byte == 'y', "no answer (%s)", strerror(errno));
			close(client);
		}
	}
	if (!must(fork()))
		for (char byte;;) {
			int server = must(accept(fd, NULL, NULL));
			expect(read(server, &byte, 1) == 1, "a connection without a byte");
			usleep(3000);
			must(write(server, "y", 1));
			close(server);
		}
	while (*answers < 10)
		usleep(1000);
	restored();
	for (int before = *answers; *answers < before + 10;)
		usleep(1000);
}

REFUSED(unix_backlog_written, "unix-waiting")
{
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	int one = connected(SOCK_STREAM, "s"), two = connected(SOCK_STREAM, "s");
	put(one, "early one");
	put(two, "early two");
	restored();
	reads(must(accept(fd, NULL, NULL)), "early one");
	reads(must(accept(fd, NULL, NULL)), "early two");
}

CASE(unix_listen_backlog_size)
{
	int fd = bound(SOCK_STREAM, "s"), n = 0;
	must(listen(fd, 2));
	restored();
	struct sockaddr_un address = at_path("s");
	for (; n < 10; n++) {
		int client = must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
		if (connect(client, (void *)&address, sizeof address))
			break;
	}
	same(n, 3);
}

CASE(unix_datagram_named)
{
	struct sockaddr_un from;
	socklen_t length = sizeof from;
	char text[64] = "";
	int server = bound(SOCK_DGRAM, "server"), client = bound(SOCK_DGRAM, "client");
	struct sockaddr_un to = at_path("server");
	must(sendto(client, "queued", 6, 0, (void *)&to, sizeof to));
	restored();
	same(recvfrom(server, text, sizeof text, MSG_DONTWAIT, (void *)&from, &length), 6);
	holds(!strcmp(from.sun_path, in_dir("client")));
	same(sendto(client, "new", 3, 0, (void *)&to, sizeof to), 3);
	same(recv(server, text, sizeof text, MSG_DONTWAIT), 3);
}

CASE(unix_datagram_connected)
{
	char text[64];
	int server = bound(SOCK_DGRAM, "server"), client = connected(SOCK_DGRAM, "server"), other = connected(SOCK_DGRAM, "server");
	put(client, "queued");
	restored();
	same(receive(server, text, sizeof text), 6);
	put(other, "x");
	same(receive(server, text, sizeof text), 1);
}

CASE(unix_datagram_from_closed)
{
	char text[64];
	int server = bound(SOCK_DGRAM, "server"), client = connected(SOCK_DGRAM, "server");
	put(client, "queued");
	close(client);
	restored();
	same(receive(server, text, sizeof text), 6);
}

CASE(unix_datagram_abstract)
{
	struct sockaddr_un address;
	char text[64];
	socklen_t length = abstract(&address, "case-datagrams");
	int server = must(socket(AF_UNIX, SOCK_DGRAM, 0)), client = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(bind(server, (void *)&address, length));
	must(connect(client, (void *)&address, length));
	restored();
	put(client, "x");
	same(receive(server, text, sizeof text), 1);
}

CASE(unix_to_syslog)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/dev/log" };
	int fd = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	if (connect(fd, (void *)&address, sizeof address) && at_once)
		cannot("no /dev/log");
	put(fd, "<14>case: before");
	restored();
	same(send(fd, "<14>case: after", 15, 0), 15);
}

CASE(unix_to_journal)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket" };
	int fd = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	if (connect(fd, (void *)&address, sizeof address))
		cannot("no journal");
	restored();
	same(send(fd, "MESSAGE=after\n", 14, 0), 14);
}

CASE(unix_credentials_of_pair)
{
	struct ucred one, two;
	socklen_t length = sizeof one;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	restored();
	must(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &one, &length));
	must(getsockopt(pair[1], SOL_SOCKET, SO_PEERCRED, &two, &length));
	same(one.uid, geteuid());
	same(one.gid, getegid());
	same(one.pid, getpid());
	same(two.pid, getpid());
}

static void connect_as_child(void)
{
	pair[0] = connected(SOCK_STREAM, "s");
}

CASE(unix_credentials_of_accepted)
{
	struct ucred credentials;
	socklen_t length = sizeof credentials;
	int fd = bound(SOCK_STREAM, "s");
	must(listen(fd, 5));
	struct child child = spawn(connect_as_child, NULL);
	int server = must(accept(fd, NULL, NULL));
	restored();
	must(getsockopt(server, SOL_SOCKET, SO_PEERCRED, &credentials, &length));
	same(credentials.pid, child.pid);
	same(credentials.uid, geteuid());
}

static void connect_as_nobody(void)
{
	must(setgid(65534));
	must(setuid(65534));
	pair[0] = connected(SOCK_STREAM, "s");
}

CASE(unix_credentials_of_other_user)
{
	struct ucred credentials;
	socklen_t length = sizeof credentials;
	int fd = bound(SOCK_STREAM, "s");
	if (geteuid() != 0)
		cannot("not root");
	must(chmod(in_dir("s"), 0777));
	must(listen(fd, 5));
	spawn(connect_as_nobody, NULL);
	int server = must(accept(fd, NULL, NULL));
	restored();
	must(getsockopt(server, SOL_SOCKET, SO_PEERCRED, &credentials, &length));
	same(credentials.uid, 65534);
	same(credentials.gid, 65534);
}

CASE(unix_pass_credentials)
{
	char byte, control[CMSG_SPACE(sizeof(struct ucred))] = "";
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	set(pair[1], SOL_SOCKET, SO_PASSCRED, 1);
	put(pair[0], "x");
	restored();
	same(recvmsg(pair[1], &message, MSG_DONTWAIT), 1);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	holds(head && head->cmsg_type == SCM_CREDENTIALS);
	if (head)
		same(((struct ucred *)CMSG_DATA(head))->pid, getpid());
}

CASE(unix_pass_credentials_of_child)
{
	char byte, control[CMSG_SPACE(sizeof(struct ucred))] = "";
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	set(pair[1], SOL_SOCKET, SO_PASSCRED, 1);
	pid_t pid = must(fork());
	if (!pid) {
		put(pair[0], "c");
		pause();
	}
	holds(readable_soon(pair[1]));
	restored();
	same(recvmsg(pair[1], &message, MSG_DONTWAIT), 1);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	holds(head && head->cmsg_type == SCM_CREDENTIALS);
	if (head)
		same(((struct ucred *)CMSG_DATA(head))->pid, pid);
}

CASE(unix_options)
{
	struct timeval time = { 3, 0 }, got = { 0, 0 };
	socklen_t length = sizeof got;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	must(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
	set(pair[0], SOL_SOCKET, SO_PASSCRED, 1);
	set(pair[0], SOL_SOCKET, SO_SNDBUF, 50000);
	set(pair[0], SOL_SOCKET, SO_TIMESTAMP, 1);
	set(pair[0], SOL_SOCKET, SO_PRIORITY, 4);
	int size = option(pair[0], SOL_SOCKET, SO_SNDBUF);
	restored();
	must(getsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &got, &length));
	same(got.tv_sec, 3);
	same(option(pair[0], SOL_SOCKET, SO_PASSCRED), 1);
	same(option(pair[0], SOL_SOCKET, SO_SNDBUF), size);
	same(option(pair[0], SOL_SOCKET, SO_TIMESTAMP), 1);
	same(option(pair[0], SOL_SOCKET, SO_PRIORITY), 4);
}

CASE(unix_peek_offset)
{
	char text[16] = "";
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[0], "0123456");
	set(pair[1], SOL_SOCKET, SO_PEEK_OFF, 3);
	restored();
	same(option(pair[1], SOL_SOCKET, SO_PEEK_OFF), 3);
	same(recv(pair[1], text, 2, MSG_PEEK), 2);
	holds(!strcmp(text, "34"));
}

REFUSED(unix_out_of_band, "urgent-data")
{
	char byte = 0;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[0], "ab");
	if (send(pair[0], "!", 1, MSG_OOB) != 1)
		cannot("no MSG_OOB");
	restored();
	same(recv(pair[1], &byte, 1, MSG_OOB), 1);
	same(byte, '!');
}

CASE(unix_unconnected)
{
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0));
	int server = bound(SOCK_STREAM, "s");
	restored();
	must(listen(server, 5));
	struct sockaddr_un address = at_path("s");
	same(connect(fd, (void *)&address, sizeof address), 0);
}

CASE(unix_of_group_outside)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/run/dbus/system_bus_socket" };
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0));
	if (connect(fd, (void *)&address, sizeof address))
		cannot("no system bus");
	restored();
	char byte;
	same(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
}

/* TCP and UDP */

static int listening(int port)
{
	struct sockaddr_in address = v4(port);
	int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	set(fd, SOL_SOCKET, SO_REUSEADDR, on);
	must(bind(fd, (void *)&address, sizeof address));
	must(listen(fd, 16));
	return fd;
}

static int client_of(int port)
{
	struct sockaddr_in address = v4(port);
	int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	must(connect(fd, (void *)&address, sizeof address));
	return fd;
}

CASE(tcp_listening)
{
	int fd = listening(7801);
	restored();
	int client = client_of(7801), server = must(accept(fd, NULL, NULL));
	put(client, "x");
	reads(server, "x");
}

/* Keys as a handshake would have made them, for what `fd` sends and receives. */
static void encrypts(int fd, int sends, int receives)
{
	struct tls12_crypto_info_aes_gcm_128 keys = {
		.info = { .version = TLS_1_2_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128 },
	};
	if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls"))
		cannot("no TLS of the kernel");
	memset(keys.key, sends, sizeof keys.key);
	must(setsockopt(fd, SOL_TLS, TLS_TX, &keys, sizeof keys));
	memset(keys.key, receives, sizeof keys.key);
	must(setsockopt(fd, SOL_TLS, TLS_RX, &keys, sizeof keys));
}

/* The keys are told by nobody, and in the clear it must not go on. */
CASE(tcp_encrypted_by_the_kernel_is_reset)
{
	char text[16];
	int listener = listening(7897), client = client_of(7897), server = must(accept(listener, NULL, NULL));
	encrypts(client, 1, 2);
	encrypts(server, 2, 1);
	put(client, "secret");
	reads(server, "secret");
	restored();
	same(read(client, text, sizeof text), -1);
	same(errno, ECONNRESET);
	same(read(server, text, sizeof text), -1);
	same(errno, ECONNRESET);
}

CASE(tcp_listening_any_v6)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(7802), .sin6_addr = IN6ADDR_ANY_INIT };
	int fd = must(socket(AF_INET6, SOCK_STREAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	must(listen(fd, 4));
	restored();
	client_of(7802);
	must(accept(fd, NULL, NULL));
}

CASE(tcp_listening_twice_reuse_port)
{
	struct sockaddr_in address = v4(7803);
	int one = must(socket(AF_INET, SOCK_STREAM, 0)), two = must(socket(AF_INET, SOCK_STREAM, 0));
	set(one, SOL_SOCKET, SO_REUSEPORT, 1);
	set(two, SOL_SOCKET, SO_REUSEPORT, 1);
	must(bind(one, (void *)&address, sizeof address));
	must(bind(two, (void *)&address, sizeof address));
	must(listen(one, 4));
	must(listen(two, 4));
	restored();
	same(option(two, SOL_SOCKET, SO_ACCEPTCONN), 1);
	same(option(one, SOL_SOCKET, SO_REUSEPORT), 1);
}

CASE(tcp_listening_v4_and_v6)
{
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(7804) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(7804) };
	int one = must(socket(AF_INET, SOCK_STREAM, 0)), two = must(socket(AF_INET6, SOCK_STREAM, 0));
	set(two, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	must(bind(one, (void *)&four, sizeof four));
	must(bind(two, (void *)&six, sizeof six));
	must(listen(one, 4));
	must(listen(two, 4));
	restored();
	same(option(two, IPPROTO_IPV6, IPV6_V6ONLY), 1);
	same(option(two, SOL_SOCKET, SO_ACCEPTCONN), 1);
}

CASE(tcp_inside)
{
	int fd = listening(7805), client = client_of(7805), server = must(accept(fd, NULL, NULL));
	restored();
	put(client, "there");
	reads(server, "there");
	put(server, "back");
	reads(client, "back");
}

CASE(tcp_inside_queues_both_ways)
{
	int fd = listening(7806), client = client_of(7806), server = must(accept(fd, NULL, NULL));
	put(client, "there ");
	put(client, "and there");
	put(server, "back");
	usleep(10000);
	restored();
	reads(server, "there and there");
	reads(client, "back");
}

CASE(tcp_inside_full)
{
	static char block[10000];
	long all = 0, n;
	int fd = listening(7807), client = client_of(7807), server = must(accept(fd, NULL, NULL));
	must(fcntl(client, F_SETFL, O_NONBLOCK));
	for (unsigned i = 0; i < sizeof block; i++)
		block[i] = i;
	while ((n = write(client, block, sizeof block)) == sizeof block)
		all += n;
	all += n > 0 ? n : 0;
	restored();
	for (long at = 0; at < all;) {
		char got[5000];
		if (!readable_soon(server) || (n = read(server, got, sizeof got)) <= 0)
			break;
		for (long i = 0; i < n; i++)
			if (got[i] != block[(at + i) % sizeof block]) {
				same(at + i, -1);
				return;
			}
		at += n;
		if (at == all)
			all = 0;
	}
	same(all, 0);
}

CASE(tcp_inside_v6)
{
	struct sockaddr_in6 address = v6(7808);
	int fd = must(socket(AF_INET6, SOCK_STREAM, 0)), client = must(socket(AF_INET6, SOCK_STREAM, 0));
	if (bind(fd, (void *)&address, sizeof address))
		cannot("no IPv6");
	must(listen(fd, 4));
	must(connect(client, (void *)&address, sizeof address));
	int server = must(accept(fd, NULL, NULL));
	put(client, "six");
	restored();
	reads(server, "six");
	put(server, "back");
	reads(client, "back");
}

CASE(tcp_inside_mapped)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(7809), .sin6_addr = IN6ADDR_ANY_INIT };
	int fd = must(socket(AF_INET6, SOCK_STREAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	must(listen(fd, 4));
	int client = client_of(7809), server = must(accept(fd, NULL, NULL));
	put(client, "mapped");
	restored();
	reads(server, "mapped");
	put(server, "back");
	reads(client, "back");
}

CASE(tcp_inside_half_closed)
{
	char byte;
	int fd = listening(7810), client = client_of(7810), server = must(accept(fd, NULL, NULL));
	put(client, "end");
	must(shutdown(client, SHUT_WR));
	usleep(10000);
	restored();
	reads(server, "end");
	same(read(server, &byte, 1), 0);
	put(server, "still");
	reads(client, "still");
}

CASE(tcp_inside_closed_by_peer)
{
	char byte;
	int fd = listening(7811), client = client_of(7811), server = must(accept(fd, NULL, NULL));
	put(client, "end");
	close(client);
	usleep(10000);
	restored();
	reads(server, "end");
	same(read(server, &byte, 1), 0);
}

/* What does not fit is not there after a restore: then the connection ends by an error, not as if that had been all. */
CASE(tcp_inside_closed_with_more_under_way)
{
	static char data[65536];
	ssize_t n;
	size_t written = 0, got = 0;
	int fd = listening(7899), client = client_of(7899), server = must(accept(fd, NULL, NULL));
	while ((n = send(client, data, sizeof data, MSG_DONTWAIT)) > 0)
		written += n;
	close(client);
	usleep(10000);
	restored();
	while (readable_soon(server) && (n = read(server, data, sizeof data)) > 0)
		got += n;
	expect(got == written || (n == -1 && errno == ECONNRESET), "%zu of %zu bytes, then %zd", got, written, n);
}

CASE(tcp_inside_both_closed)
{
	char byte;
	int fd = listening(7812), client = client_of(7812), server = must(accept(fd, NULL, NULL));
	must(shutdown(client, SHUT_WR));
	must(shutdown(server, SHUT_WR));
	usleep(10000);
	restored();
	same(read(server, &byte, 1), 0);
	same(read(client, &byte, 1), 0);
}

CASE(tcp_inside_listener_gone)
{
	int fd = listening(7813), client = client_of(7813), server = must(accept(fd, NULL, NULL));
	close(fd);
	restored();
	put(client, "x");
	reads(server, "x");
}

CASE(tcp_inside_many)
{
	int fd = listening(7814), clients[40], servers[40];
	char text[16];
	for (int i = 0; i < 40; i++) {
		clients[i] = client_of(7814);
		servers[i] = must(accept(fd, NULL, NULL));
		snprintf(text, sizeof text, "number %d", i);
		put(clients[i], text);
	}
	usleep(10000);
	restored();
	for (int i = 0; i < 40; i++) {
		snprintf(text, sizeof text, "number %d", i);
		reads(servers[i], text);
	}
}

static int segment_of(int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof info;
	must(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size));
	return info.tcpi_snd_mss;
}

/* Both ends that nothing was sent through, and those that an application limits, send segments as large as before. */
CASE(tcp_inside_segments)
{
	int fd = listening(7871), limit = 1000, ends[4];
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(7871), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	ends[0] = client_of(7871);
	ends[1] = must(accept(fd, NULL, NULL));
	ends[2] = must(socket(AF_INET, SOCK_STREAM, 0));
	must(setsockopt(ends[2], IPPROTO_TCP, TCP_MAXSEG, &limit, sizeof limit));
	must(connect(ends[2], (void *)&to, sizeof to));
	ends[3] = must(accept(fd, NULL, NULL));
	restored();
	for (int i = 0; i < 4; i++) {
		put(ends[i], "there");
		reads(ends[i ^ 1], "there");
	}
	for (int i = 0; i < 2; i++)
		expect(segment_of(ends[i]) > 30000, "end %d sends %d bytes at once", i, segment_of(ends[i]));
	same(segment_of(ends[2]), limit - 12);
	same(segment_of(ends[3]), limit - 12);
}

CASE(tcp_backlog)
{
	int fd = listening(7815), one = client_of(7815), two = client_of(7815);
	restored();
	int server = must(accept(fd, NULL, NULL));
	put(one, "first");
	reads(server, "first");
	server = must(accept(fd, NULL, NULL));
	put(server, "second");
	reads(two, "second");
}

CASE(tcp_backlog_written)
{
	char byte;
	int fd = listening(7816), one = client_of(7816);
	put(one, "early");
	usleep(10000);
	restored();
	if (at_once)
		return;
	same(recv(one, &byte, 1, MSG_DONTWAIT), -1);
	same(errno, ECONNRESET);
	holds(fd >= 0);
}

CASE(tcp_options)
{
	int fd = listening(7818), client = client_of(7818), server = must(accept(fd, NULL, NULL));
	set(client, IPPROTO_TCP, TCP_NODELAY, 1);
	set(client, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(client, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	set(client, IPPROTO_TCP, TCP_KEEPINTVL, 7);
	set(client, IPPROTO_TCP, TCP_KEEPCNT, 3);
	set(client, IPPROTO_TCP, TCP_USER_TIMEOUT, 12345);
	set(client, SOL_SOCKET, SO_RCVBUF, 30000);
	set(client, IPPROTO_IP, IP_TOS, 0x10);
	set(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
	struct linger linger = { 1, 9 }, got;
	socklen_t length = sizeof got;
	must(setsockopt(server, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	int defer = option(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT), size = option(client, SOL_SOCKET, SO_RCVBUF);
	restored();
	same(option(client, IPPROTO_TCP, TCP_NODELAY), 1);
	same(option(server, IPPROTO_TCP, TCP_NODELAY), 0);
	same(option(client, SOL_SOCKET, SO_KEEPALIVE), 1);
	same(option(client, IPPROTO_TCP, TCP_KEEPIDLE), 77);
	same(option(client, IPPROTO_TCP, TCP_KEEPINTVL), 7);
	same(option(client, IPPROTO_TCP, TCP_KEEPCNT), 3);
	same(option(client, IPPROTO_TCP, TCP_USER_TIMEOUT), 12345);
	same(option(client, SOL_SOCKET, SO_RCVBUF), size);
	same(option(client, IPPROTO_IP, IP_TOS), 0x10);
	same(option(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT), defer);
	must(getsockopt(server, SOL_SOCKET, SO_LINGER, &got, &length));
	same(got.l_linger, 9);
}

CASE(tcp_congestion)
{
	char got[16] = "";
	socklen_t length = sizeof got;
	int fd = listening(7819), client = client_of(7819);
	if (setsockopt(client, IPPROTO_TCP, TCP_CONGESTION, "reno", 4))
		cannot("no reno");
	restored();
	must(getsockopt(client, IPPROTO_TCP, TCP_CONGESTION, got, &length));
	holds(!strcmp(got, "reno") && fd >= 0);
}

CASE(tcp_bound)
{
	struct sockaddr_in address = v4(7820), got;
	socklen_t length = sizeof got;
	int fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	restored();
	must(getsockname(fd, (void *)&got, &length));
	same(ntohs(got.sin_port), 7820);
	must(listen(fd, 3));
	client_of(7820);
}

CASE(tcp_new)
{
	int four = must(socket(AF_INET, SOCK_STREAM, 0)), six = must(socket(AF_INET6, SOCK_STREAM, 0));
	int listener = listening(7821);
	struct sockaddr_in address = v4(7821);
	restored();
	same(connect(four, (void *)&address, sizeof address), 0);
	holds(six >= 0 && listener >= 0);
}

CASE(tcp_refused)
{
	struct sockaddr_in address = v4(1);
	int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	if (connect(fd, (void *)&address, sizeof address) == -1 && errno == EINPROGRESS)
		usleep(10000);
	restored();
	holds(fd >= 0);
}

CASE(tcp_peer_name)
{
	struct sockaddr_in one, two;
	socklen_t length = sizeof one;
	int fd = listening(7822), client = client_of(7822), server = must(accept(fd, NULL, NULL));
	struct sockaddr_in before;
	must(getsockname(client, (void *)&before, &length));
	restored();
	must(getsockname(client, (void *)&one, &length));
	must(getpeername(server, (void *)&two, &length));
	same(one.sin_port, before.sin_port);
	same(two.sin_port, before.sin_port);
}

REFUSED(tcp_out_of_band, "urgent-data")
{
	char byte = 0;
	int fd = listening(7823), client = client_of(7823), server = must(accept(fd, NULL, NULL));
	put(client, "ab");
	must(send(client, "!", 1, MSG_OOB));
	usleep(10000);
	restored();
	same(recv(server, &byte, 1, MSG_OOB), 1);
	same(byte, '!');
}

CASE(tcp_epoll)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u32 = 4 };
	int fd = listening(7824), client = client_of(7824), server = must(accept(fd, NULL, NULL));
	int epoll = must(epoll_create1(0));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, server, &event));
	restored();
	put(client, "x");
	same(epoll_wait(epoll, &event, 1, 5000), 1);
	same(event.data.u32, 4);
}

static int tcp_child_fd;
static int tcp_child_echo(void)
{
	char text[64];
	ssize_t n = read(tcp_child_fd, text, sizeof text);
	return n > 0 ? (int)write(tcp_child_fd, text, n) : -1;
}

CASE(tcp_to_child)
{
	int fd = listening(7825), client = client_of(7825);
	tcp_child_fd = must(accept(fd, NULL, NULL));
	struct child child = spawn(NULL, tcp_child_echo);
	close(tcp_child_fd);
	put(client, "echo");
	restored();
	same(ask(child), 4);
	reads(client, "echo");
}

CASE(tcp_shutdown_read)
{
	int fd = listening(7826), client = client_of(7826), server = must(accept(fd, NULL, NULL));
	char byte;
	must(shutdown(server, SHUT_RD));
	restored();
	same(recv(server, &byte, 1, MSG_DONTWAIT), 0);
	put(server, "x");
	reads(client, "x");
}

CASE(udp_bound)
{
	struct sockaddr_in address = v4(7830);
	char text[16];
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), other = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	restored();
	must(sendto(other, "x", 1, 0, (void *)&address, sizeof address));
	holds(readable_soon(fd));
	same(receive(fd, text, sizeof text), 1);
}

CASE(udp_connected_unbound_source)
{
	struct sockaddr_in address = v4(7835), before, after;
	socklen_t length = sizeof before;
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(connect(fd, (void *)&address, sizeof address));
	must(getsockname(fd, (void *)&before, &length));
	restored();
	must(getsockname(fd, (void *)&after, &length));
	same(after.sin_port, before.sin_port);
	must(getpeername(fd, (void *)&after, &length));
	same(ntohs(after.sin_port), 7835);
}

CASE(udp_multicast)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(7836) }, to = address;
	struct ip_mreqn join = { .imr_multiaddr.s_addr = inet_addr("239.1.2.3"), .imr_ifindex = if_nametoindex("lo") };
	struct in_addr by = { htonl(INADDR_LOOPBACK) };
	char text[16];
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), other = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	if (setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof join))
		cannot("no multicast");
	must(setsockopt(other, IPPROTO_IP, IP_MULTICAST_IF, &by, sizeof by));
	set(other, IPPROTO_IP, IP_MULTICAST_TTL, 7);
	restored();
	same(option(other, IPPROTO_IP, IP_MULTICAST_TTL), 7);
	to.sin_addr = join.imr_multiaddr;
	same(sendto(other, "all", 3, 0, (void *)&to, sizeof to), 3);
	holds(readable_soon(fd));
	same(receive(fd, text, sizeof text), 3);
}

CASE(udp_multicast_v6)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(7837) }, to = address;
	struct ipv6_mreq join = { .ipv6mr_interface = if_nametoindex("lo") };
	char text[16];
	int fd = must(socket(AF_INET6, SOCK_DGRAM, 0)), other = must(socket(AF_INET6, SOCK_DGRAM, 0));
	inet_pton(AF_INET6, "ff02::1234", &join.ipv6mr_multiaddr);
	if (bind(fd, (void *)&address, sizeof address) || setsockopt(fd, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &join, sizeof join))
		cannot("no IPv6 multicast");
	set(other, IPPROTO_IPV6, IPV6_MULTICAST_IF, join.ipv6mr_interface);
	restored();
	same(option(other, IPPROTO_IPV6, IPV6_MULTICAST_IF), join.ipv6mr_interface);
	to.sin6_addr = join.ipv6mr_multiaddr;
	if (sendto(other, "all", 3, 0, (void *)&to, sizeof to) == 3) {
		holds(readable_soon(fd));
		same(receive(fd, text, sizeof text), 3);
	}
}

CASE(udp_options)
{
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0));
	set(fd, SOL_SOCKET, SO_BROADCAST, 1);
	set(fd, IPPROTO_IP, IP_PKTINFO, 1);
	set(fd, IPPROTO_IP, IP_TTL, 33);
	set(fd, IPPROTO_IP, IP_RECVERR, 1);
	set(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
	set(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1);
	set(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
	set(fd, SOL_SOCKET, SO_PRIORITY, 5);
	restored();
	same(option(fd, SOL_SOCKET, SO_BROADCAST), 1);
	same(option(fd, IPPROTO_IP, IP_PKTINFO), 1);
	same(option(fd, IPPROTO_IP, IP_TTL), 33);
	same(option(fd, IPPROTO_IP, IP_RECVERR), 1);
	same(option(fd, IPPROTO_IP, IP_MTU_DISCOVER), IP_PMTUDISC_DO);
	same(option(fd, SOL_SOCKET, SO_TIMESTAMPNS), 1);
	same(option(fd, SOL_SOCKET, SO_RXQ_OVFL), 1);
	same(option(fd, SOL_SOCKET, SO_PRIORITY), 5);
}

CASE(udp_options_seldom_used)
{
	static const int names[] = { SO_DEBUG, SO_NO_CHECK, 82 };
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), one = 1, got;
	socklen_t size = sizeof one;
	for (int i = 0; i < 3; i++)
		if (setsockopt(fd, SOL_SOCKET, names[i], &one, size))
			holds(names[i] == 82); /* SO_RCVPRIORITY, Linux 6.14 */
	int rcvpriority = !getsockopt(fd, SOL_SOCKET, 82, &got, &size);
	restored();
	for (int i = 0; i < 2 + rcvpriority; i++) {
		got = 0;
		must(getsockopt(fd, SOL_SOCKET, names[i], &got, &size));
		same(got, 1);
	}
}

CASE(tcp_reset_not_read)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof here;
	char byte;
	int listener = must(socket(AF_INET, SOCK_STREAM, 0)), fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(listener, (struct sockaddr *)&here, size));
	must(listen(listener, 1));
	must(getsockname(listener, (struct sockaddr *)&here, &size));
	must(connect(fd, (struct sockaddr *)&here, size));
	int server = must(accept(listener, NULL, NULL));
	must(setsockopt(server, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger)));
	close(server);
	usleep(50000);
	restored();
	same(read(fd, &byte, 1), -1);
	same(errno, ECONNRESET);
	same(read(fd, &byte, 1), 0);
}

CASE(tcp_options_before_connect)
{
	int fd = must(socket(AF_INET, SOCK_STREAM, 0)), listener = must(socket(AF_INET, SOCK_STREAM, 0));
	int segment = 1000, window = 20000, got = 9;
	socklen_t size = sizeof got;
	must(setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, size));
	must(setsockopt(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &window, size));
	must(setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &segment, size));
	must(listen(listener, 1));
	restored();
	must(getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &got, &size));
	same(got, segment);
	must(getsockopt(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &got, &size));
	same(got, window);
	must(getsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &got, &size));
	same(got, segment);
}

/* The options of a raw socket, whatever its protocol. */
CASE(raw_options)
{
	static const int protocols[] = { IPPROTO_ICMP, IPPROTO_UDP, IPPROTO_TCP, 253 };
	int fds[4], one = 1, got;
	socklen_t size = sizeof one;
	for (int i = 0; i < 4; i++) {
		fds[i] = must(socket(AF_INET, SOCK_RAW, protocols[i]));
		must(setsockopt(fds[i], IPPROTO_IP, IP_HDRINCL, &one, size));
		must(setsockopt(fds[i], IPPROTO_IP, 22, &one, size)); /* IP_NODEFRAG */
		must(setsockopt(fds[i], IPPROTO_IP, IP_MULTICAST_TTL, &(int){ 7 }, size));
	}
	must(setsockopt(fds[0], 255, 1, &one, size)); /* SOL_RAW, ICMP_FILTER */
	restored();
	for (int i = 0; i < 4; i++) {
		must(getsockopt(fds[i], IPPROTO_IP, IP_HDRINCL, &got, &size));
		same(got, 1);
		must(getsockopt(fds[i], IPPROTO_IP, 22, &got, &size));
		same(got, 1);
		must(getsockopt(fds[i], IPPROTO_IP, IP_MULTICAST_TTL, &got, &size));
		same(got, 7);
		must(getsockopt(fds[i], SOL_SOCKET, SO_PROTOCOL, &got, &size));
		same(got, protocols[i]);
	}
	must(getsockopt(fds[0], 255, 1, &got, &size));
	same(got, 1);
}

/* Those who listen for devices ask for the credentials of who tells of them. */
CASE(netlink_passes_credentials)
{
	int fd = must(socket(AF_NETLINK, SOCK_RAW, 15)), one = 1, got = 0;
	socklen_t size = sizeof one;
	must(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, size));
	restored();
	must(getsockopt(fd, SOL_SOCKET, SO_PASSCRED, &got, &size));
	same(got, 1);
}

CASE(raw_without_checksum)
{
	int fd = must(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)), none = -1, got = 9;
	socklen_t size = sizeof got;
	must(setsockopt(fd, 255, 7, &none, size)); /* SOL_RAW, IPV6_CHECKSUM */
	restored();
	must(getsockopt(fd, 255, 7, &got, &size));
	same(got, -1);
}

CASE(udp_corked)
{
	struct sockaddr_in address = v4(7838);
	char text[32];
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), other = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	must(connect(other, (void *)&address, sizeof address));
	set(other, IPPROTO_UDP, UDP_CORK, 1);
	restored();
	put(other, "one");
	put(other, "two");
	set(other, IPPROTO_UDP, UDP_CORK, 0);
	holds(readable_soon(fd));
	same(receive(fd, text, sizeof text), 6);
}

CASE(udp_filter)
{
	struct sockaddr_in address = v4(7839);
	struct sock_filter nothing = { BPF_RET | BPF_K, 0, 0, 0 };
	struct sock_fprog program = { 1, &nothing };
	char text[16];
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), other = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(bind(fd, (void *)&address, sizeof address));
	must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
	restored();
	must(sendto(other, "x", 1, 0, (void *)&address, sizeof address));
	usleep(10000);
	same(receive(fd, text, sizeof text), -1);
}

CASE(udp_filter_locked)
{
	struct sock_filter all = { BPF_RET | BPF_K, 0, 0, 0xffff };
	struct sock_fprog program = { 1, &all };
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), on = 1;
	must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
	must(setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on));
	restored();
	same(option(fd, SOL_SOCKET, SO_LOCK_FILTER), 1);
	same(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof on), -1);
	same(errno, EPERM);
}

CASE(udp_encapsulation)
{
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), kind = UDP_ENCAP_ESPINUDP;
	if (setsockopt(fd, IPPROTO_UDP, UDP_ENCAP, &kind, sizeof kind))
		cannot("no UDP_ENCAP");
	restored();
	same(option(fd, IPPROTO_UDP, UDP_ENCAP), UDP_ENCAP_ESPINUDP);
}

CASE(tcp_fast_open_at_connect)
{
	int fd = must(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
	if (setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on))
		cannot("no TCP_FASTOPEN_CONNECT");
	restored();
	same(option(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT), 1);
}

CASE(raw_router_alert)
{
	int fd = must(socket(AF_INET, SOCK_RAW, IPPROTO_IGMP)), on = 1;
	must(setsockopt(fd, IPPROTO_IP, IP_ROUTER_ALERT, &on, sizeof on));
	if (option(fd, IPPROTO_IP, IP_ROUTER_ALERT) != 1)
		cannot("it is not told");
	restored();
	same(option(fd, IPPROTO_IP, IP_ROUTER_ALERT), 1);
}

CASE(udp_lite)
{
	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
	if (fd < 0)
		cannot("no UDP-Lite");
	restored();
	same(option(fd, SOL_SOCKET, SO_PROTOCOL), IPPROTO_UDPLITE);
}

CASE(mptcp_listening)
{
	struct sockaddr_in address = v4(7840);
	int fd = socket(AF_INET, SOCK_STREAM, 262);
	if (fd < 0)
		cannot("no MPTCP");
	must(bind(fd, (void *)&address, sizeof address));
	must(listen(fd, 4));
	restored();
	client_of(7840);
	must(accept(fd, NULL, NULL));
}

CASE(icmp_ping_socket)
{
	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	if (fd < 0)
		cannot("no ping sockets");
	restored();
	same(option(fd, SOL_SOCKET, SO_PROTOCOL), IPPROTO_ICMP);
}

CASE(raw_icmp)
{
	struct sockaddr_in address = v4(0);
	struct { uint8_t type, code; uint16_t sum, id, number; } echo = { 8, 0, 0, 1, 1 };
	char text[128];
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	if (fd < 0)
		cannot("no raw sockets");
	echo.sum = ~(8 + 1 + 1);
	restored();
	same(option(fd, SOL_SOCKET, SO_TYPE), SOCK_RAW);
	same(sendto(fd, &echo, sizeof echo, 0, (void *)&address, sizeof address), sizeof echo);
	holds(readable_soon(fd));
	holds(receive(fd, text, sizeof text) > 0);
}

CASE(raw_with_header)
{
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	if (fd < 0)
		cannot("no raw sockets");
	restored();
	same(option(fd, IPPROTO_IP, IP_HDRINCL), 1);
}

CASE(raw_v6)
{
	int fd = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
	if (fd < 0)
		cannot("no raw sockets");
	restored();
	same(option(fd, SOL_SOCKET, SO_PROTOCOL), IPPROTO_ICMPV6);
}

/* netlink and packet */

static int netlink(int protocol, uint32_t groups)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };
	int fd = must(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
	must(bind(fd, (void *)&address, sizeof address));
	return fd;
}

static void ask_links(int fd)
{
	struct { struct nlmsghdr head; struct rtgenmsg body; } question = {
		{ sizeof question, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 }, { AF_UNSPEC } };
	must(send(fd, &question, sizeof question, 0));
}

CASE(netlink_route)
{
	char text[8192];
	int fd = netlink(NETLINK_ROUTE, RTMGRP_LINK);
	restored();
	ask_links(fd);
	holds(readable_soon(fd));
	holds(recv(fd, text, sizeof text, MSG_DONTWAIT) > 0);
}

CASE(netlink_unbound)
{
	char text[8192];
	int fd = must(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE));
	restored();
	ask_links(fd);
	holds(readable_soon(fd));
	holds(recv(fd, text, sizeof text, MSG_DONTWAIT) > 0);
}

CASE(netlink_port)
{
	struct sockaddr_nl before, after;
	socklen_t length = sizeof before;
	int one = netlink(NETLINK_ROUTE, 0), two = netlink(NETLINK_ROUTE, 0);
	must(getsockname(two, (void *)&before, &length));
	restored();
	must(getsockname(two, (void *)&after, &length));
	same(after.nl_pid, before.nl_pid);
	must(getsockname(one, (void *)&after, &length));
	same(after.nl_pid, getpid());
}

CASE(netlink_uevent)
{
	int fd = netlink(NETLINK_KOBJECT_UEVENT, 1);
	struct sockaddr_nl address;
	socklen_t length = sizeof address;
	restored();
	must(getsockname(fd, (void *)&address, &length));
	same(address.nl_groups, 1);
}

CASE(netlink_groups_many)
{
	uint32_t groups[4] = { 0 };
	socklen_t length = sizeof groups;
	int fd = netlink(NETLINK_ROUTE, 0);
	set(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_IPV4_IFADDR);
	set(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_NSID);
	restored();
	must(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &length));
	same(groups[0], 1 << (RTNLGRP_IPV4_IFADDR - 1) | 1 << (RTNLGRP_NSID - 1));
}

CASE(netlink_generic)
{
	int fd = netlink(NETLINK_GENERIC, 0);
	restored();
	same(option(fd, SOL_SOCKET, SO_PROTOCOL), NETLINK_GENERIC);
}

CASE(netlink_audit_and_others)
{
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT), diag = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG));
	restored();
	same(option(diag, SOL_SOCKET, SO_PROTOCOL), NETLINK_SOCK_DIAG);
	if (fd >= 0)
		same(option(fd, SOL_SOCKET, SO_PROTOCOL), NETLINK_AUDIT);
}

CASE(netlink_options)
{
	int fd = netlink(NETLINK_ROUTE, 0);
	set(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
	set(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
	set(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
	restored();
	same(option(fd, SOL_NETLINK, NETLINK_EXT_ACK), 1);
	same(option(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK), 1);
	same(option(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS), 1);
}

CASE(packet_all)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex("lo") };
	char text[2048];
	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (fd < 0)
		cannot("no packet sockets");
	must(bind(fd, (void *)&address, sizeof address));
	restored();
	struct sockaddr_in to = v4(9);
	int other = must(socket(AF_INET, SOCK_DGRAM, 0));
	must(sendto(other, "x", 1, 0, (void *)&to, sizeof to));
	holds(readable_soon(fd));
	holds(receive(fd, text, sizeof text) > 0);
}

CASE(packet_cooked_with_filter)
{
	struct sock_filter everything = { BPF_RET | BPF_K, 0, 0, 0xffff };
	struct sock_fprog program = { 1, &everything };
	int fd = socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ARP));
	if (fd < 0)
		cannot("no packet sockets");
	must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
	set(fd, SOL_PACKET, PACKET_AUXDATA, 1);
	restored();
	struct sockaddr_ll got;
	socklen_t length = sizeof got;
	must(getsockname(fd, (void *)&got, &length));
	same(got.sll_protocol, htons(ETH_P_ARP));
	same(option(fd, SOL_PACKET, PACKET_AUXDATA), 1);
}

REFUSED(packet_ring, "packet-ring")
{
	struct tpacket_req ring = { .tp_block_size = 4096, .tp_block_nr = 4, .tp_frame_size = 2048, .tp_frame_nr = 8 };
	int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring))
		cannot("no packet rings");
	restored();
}

REFUSED(vsock, "socket-family")
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd < 0)
		cannot("no vsock");
	restored();
}

REFUSED(alg, "socket-family")
{
	int fd = socket(AF_ALG, SOCK_SEQPACKET, 0);
	if (fd < 0)
		cannot("no AF_ALG");
	restored();
}

REFUSED(sctp, "socket-protocol")
{
	int fd = socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP);
	if (fd < 0)
		cannot("no SCTP");
	restored();
}
