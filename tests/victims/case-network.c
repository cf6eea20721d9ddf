/* Properties of sockets, continued: what waits in queues of datagrams, options that few programs set, connections to outside. */
#include "socket.h"
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>

static int udp4(int port)
{
	struct sockaddr_in address = v4(port);
	int fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	must(bind(fd, (void *)&address, sizeof address));
	return fd;
}

static int udp6(int port, int any)
{
	struct sockaddr_in6 address = v6(port);
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (any)
		address.sin6_addr = in6addr_any;
	if (fd < 0 || bind(fd, (void *)&address, sizeof address))
		cannot("no IPv6");
	return fd;
}

static void to4(int fd, int port, const char *text)
{
	struct sockaddr_in address = v4(port);
	must(sendto(fd, text, strlen(text), 0, (void *)&address, sizeof address));
}

/* The next datagram is this one, from this port of 127.0.0.1 or any. */
#define next_is(fd, text, port) next_datagram(__LINE__, fd, text, strlen(text), port)

static void next_datagram(int line, int fd, const char *text, size_t size, int port)
{
	static char got[70000];
	struct sockaddr_in from;
	socklen_t length = sizeof from;
	ssize_t n = recvfrom(fd, got, sizeof got, MSG_DONTWAIT, (void *)&from, &length);
	expect(n == (ssize_t)size && !memcmp(got, text, size), "line %d: %zd bytes '%.20s', not '%.20s'", line, n, n > 0 ? got : "", text);
	expect(!port || ntohs(from.sin_port) == port, "line %d: from port %d, not %d", line, ntohs(from.sin_port), port);
	if (port)
		expect(from.sin_addr.s_addr == htonl(INADDR_LOOPBACK), "line %d: from %s", line, inet_ntoa(from.sin_addr));
}

#define nothing_waits(fd) same(recv(fd, (char[1]){ 0 }, 1, MSG_DONTWAIT), -1)

CASE(udp_queue)
{
	int fd = udp4(7901), one = udp4(7902), two = udp4(7903);
	to4(one, 7901, "first");
	to4(two, 7901, "second");
	to4(one, 7901, "");
	to4(one, 7901, "third");
	to4(two, 7901, "");
	restored();
	next_is(fd, "first", 7902);
	next_is(fd, "second", 7903);
	next_is(fd, "", 7902);
	next_is(fd, "third", 7902);
	next_is(fd, "", 7903);
	nothing_waits(fd);
	to4(one, 7901, "new");
	next_is(fd, "new", 7902);
}

CASE(udp_queue_any)
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(7904) };
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), one = udp4(7905);
	must(bind(fd, (void *)&any, sizeof any));
	to4(one, 7904, "there");
	restored();
	next_is(fd, "there", 7905);
	nothing_waits(fd);
	to4(one, 7904, "new");
	next_is(fd, "new", 7905);
}

CASE(udp_queue_connected)
{
	int fd = udp4(7906), one = udp4(7907), other = udp4(7908);
	struct sockaddr_in peer = v4(7907);
	must(connect(fd, (void *)&peer, sizeof peer));
	to4(one, 7906, "there");
	to4(one, 7906, "again");
	restored();
	next_is(fd, "there", 7907);
	next_is(fd, "again", 7907);
	to4(other, 7906, "stranger");
	nothing_waits(fd);
	must(send(fd, "back", 4, 0));
	next_is(one, "back", 7906);
}

/* Both directions of a client that never called bind(2). */
CASE(udp_queue_of_client)
{
	int server = udp4(7909), client = must(socket(AF_INET, SOCK_DGRAM, 0));
	struct sockaddr_in at = v4(7909), from;
	socklen_t length = sizeof from;
	char text[16];
	must(connect(client, (void *)&at, sizeof at));
	must(send(client, "ask", 3, 0));
	must(recvfrom(server, text, sizeof text, MSG_PEEK, (void *)&from, &length));
	must(sendto(server, "tell", 4, 0, (void *)&from, length));
	restored();
	next_is(client, "tell", 7909);
	next_is(server, "ask", ntohs(from.sin_port));
}

CASE(udp_queue_sender_closed)
{
	int fd = udp4(7910), one = udp4(7911);
	to4(one, 7910, "last words");
	close(one);
	restored();
	next_is(fd, "last words", 7911);
}

CASE(udp_queue_v6)
{
	int fd = udp6(7912, 0), one = udp6(7913, 0);
	struct sockaddr_in6 to = v6(7912), from;
	socklen_t length = sizeof from;
	char text[16];
	must(sendto(one, "six", 3, 0, (void *)&to, sizeof to));
	must(sendto(one, "seven", 5, 0, (void *)&to, sizeof to));
	restored();
	same(recvfrom(fd, text, sizeof text, MSG_DONTWAIT, (void *)&from, &length), 3);
	same(ntohs(from.sin6_port), 7913);
	holds(IN6_IS_ADDR_LOOPBACK(&from.sin6_addr));
	same(recv(fd, text, sizeof text, MSG_DONTWAIT), 5);
	nothing_waits(fd);
}

/* A v6 socket with datagrams of both versions. */
CASE(udp_queue_mapped)
{
	int fd = udp6(7914, 1), six = udp6(7915, 0), four = udp4(7916);
	struct sockaddr_in6 to = v6(7914), from;
	socklen_t length = sizeof from;
	char text[16];
	must(sendto(six, "six", 3, 0, (void *)&to, sizeof to));
	to4(four, 7914, "four");
	restored();
	same(recvfrom(fd, text, sizeof text, MSG_DONTWAIT, (void *)&from, &length), 3);
	same(ntohs(from.sin6_port), 7915);
	same(recvfrom(fd, text, sizeof text, MSG_DONTWAIT, (void *)&from, &length), 4);
	same(ntohs(from.sin6_port), 7916);
	holds(IN6_IS_ADDR_V4MAPPED(&from.sin6_addr));
}

static int beside(struct msghdr *message, int level, int type)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
		if (c->cmsg_level == level && c->cmsg_type == type)
			return c->cmsg_len == CMSG_LEN(1) ? *CMSG_DATA(c) : *(int *)CMSG_DATA(c);
	return -1;
}

CASE(udp_queue_beside)
{
	int fd = udp4(7917), one = udp4(7918);
	char text[16], control[256];
	struct iovec iov = { text, sizeof text };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	set(fd, IPPROTO_IP, IP_PKTINFO, 1);
	set(fd, IPPROTO_IP, IP_RECVTTL, 1);
	set(fd, IPPROTO_IP, IP_RECVTOS, 1);
	set(fd, SOL_SOCKET, SO_TIMESTAMP, 1);
	set(one, IPPROTO_IP, IP_TTL, 33);
	set(one, IPPROTO_IP, IP_TOS, 0x20);
	to4(one, 7917, "with");
	restored();
	same(recvmsg(fd, &message, MSG_DONTWAIT), 4);
	same(beside(&message, IPPROTO_IP, IP_TTL), 33);
	same(beside(&message, IPPROTO_IP, IP_TOS), 0x20);
	holds(beside(&message, IPPROTO_IP, IP_PKTINFO) == 1);
	holds(beside(&message, SOL_SOCKET, SCM_TIMESTAMP) != -1);
}

CASE(udp_queue_reuse_port)
{
	struct sockaddr_in address = v4(7919);
	int two[2], one = udp4(7920), n;
	char text[16];
	for (n = 0; n < 2; n++) {
		two[n] = must(socket(AF_INET, SOCK_DGRAM, 0));
		set(two[n], SOL_SOCKET, SO_REUSEPORT, 1);
		must(bind(two[n], (void *)&address, sizeof address));
	}
	for (n = 0; n < 20; n++) {
		int from = must(socket(AF_INET, SOCK_DGRAM, 0));
		text[0] = 'a' + n;
		must(sendto(from, text, 1, 0, (void *)&address, sizeof address));
		close(from);
	}
	/* Which socket has which is known by a look at the first only; the sum and the order of each are what must stay. */
	char first[2] = { 0, 0 };
	for (n = 0; n < 2; n++)
		if (recv(two[n], text, 1, MSG_DONTWAIT | MSG_PEEK) == 1)
			first[n] = text[0];
	restored();
	int all = 0;
	for (n = 0; n < 2; n++) {
		char before = 0;
		while (recv(two[n], text, 1, MSG_DONTWAIT) == 1) {
			if (!before)
				same(text[0], first[n]);
			holds(text[0] > before);
			before = text[0];
			all++;
		}
		holds(before || !first[n]);
	}
	same(all, 20);
	to4(one, 7919, "n");
	same(recv(two[0], text, 1, MSG_DONTWAIT) == 1 || recv(two[1], text, 1, MSG_DONTWAIT) == 1, 1);
}

CASE(udp_queue_large)
{
	static char large[65507];
	int fd = udp4(7921), one = udp4(7922);
	struct sockaddr_in to = v4(7921);
	memset(large, 'l', sizeof large);
	set(one, SOL_SOCKET, SO_SNDBUF, 200000);
	set(fd, SOL_SOCKET, SO_RCVBUF, 400000);
	int size = option(fd, SOL_SOCKET, SO_RCVBUF);
	must(sendto(one, large, sizeof large, 0, (void *)&to, sizeof to));
	must(sendto(one, large, 1, 0, (void *)&to, sizeof to));
	restored();
	next_datagram(__LINE__, fd, large, sizeof large, 7922);
	next_datagram(__LINE__, fd, large, 1, 7922);
	same(option(fd, SOL_SOCKET, SO_RCVBUF), size);
}

CASE(udp_queue_many)
{
	int fd = udp4(7923), one = udp4(7924), n, all;
	char text[16];
	for (n = 0; n < 1000; n++) {
		snprintf(text, sizeof text, "%d", n);
		to4(one, 7923, text);
	}
	/* As many as fit into the buffer have come: the first ones. */
	restored();
	for (all = 0;; all++) {
		ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
		if (got < 0)
			break;
		text[got] = 0;
		same(atoi(text), all);
	}
	holds(all > 50);
}

/* From an address that is not of this machine. */
CASE(udp_queue_from_afar)
{
	struct {
		struct iphdr ip;
		struct udphdr udp;
		char text[4];
	} packet = { .ip = { .version = 4, .ihl = 5, .ttl = 9, .protocol = IPPROTO_UDP, .saddr = inet_addr("203.0.113.9"), .daddr = htonl(INADDR_LOOPBACK) },
		     .udp = { .source = htons(4242), .dest = htons(7925), .len = htons(12) },
		     .text = "afar" };
	struct sockaddr_in to = v4(0), from;
	socklen_t length = sizeof from;
	char text[16];
	int fd = udp4(7925), raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	if (raw < 0)
		cannot("no raw sockets");
	must(sendto(raw, &packet, 32, 0, (void *)&to, sizeof to));
	if (!readable_now(fd))
		cannot("packets of others do not arrive");
	restored();
	same(recvfrom(fd, text, sizeof text, MSG_DONTWAIT, (void *)&from, &length), 4);
	same(from.sin_addr.s_addr, packet.ip.saddr);
	same(ntohs(from.sin_port), 4242);
}

CASE(udp_queue_truncated)
{
	int fd = udp4(7926), one = udp4(7927);
	char text[4];
	set(fd, SOL_SOCKET, SO_PEEK_OFF, 3);
	to4(one, 7926, "longer than asked for");
	restored();
	same(option(fd, SOL_SOCKET, SO_PEEK_OFF), 3);
	same(recv(fd, text, sizeof text, MSG_DONTWAIT | MSG_PEEK), 4);
	holds(!memcmp(text, "ger ", 4));
	same(recv(fd, text, sizeof text, MSG_DONTWAIT | MSG_TRUNC), 21);
	nothing_waits(fd);
}

CASE(udp_queue_bound_to_device)
{
	int fd = must(socket(AF_INET, SOCK_DGRAM, 0)), one = udp4(7929);
	struct sockaddr_in address = v4(7928);
	char device[16] = "";
	socklen_t length = sizeof device;
	if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3))
		cannot("no SO_BINDTODEVICE");
	must(bind(fd, (void *)&address, sizeof address));
	to4(one, 7928, "by lo");
	restored();
	next_is(fd, "by lo", 7929);
	must(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, &length));
	holds(!strcmp(device, "lo"));
}

CASE(udp_queue_lite)
{
	struct sockaddr_in address = v4(7930);
	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), one = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
	char text[16];
	if (fd < 0)
		cannot("no UDP-Lite");
	must(bind(fd, (void *)&address, sizeof address));
	must(sendto(one, "light", 5, 0, (void *)&address, sizeof address));
	restored();
	same(recv(fd, text, sizeof text, MSG_DONTWAIT), 5);
}

CASE(udp_queue_gro)
{
	int fd = udp4(7931), one = udp4(7932);
	struct sockaddr_in to = v4(7931);
	char text[64];
	long all = 0, n;
	set(fd, IPPROTO_UDP, 104, 1);
	set(one, IPPROTO_UDP, 103, 4);
	must(connect(one, (void *)&to, sizeof to));
	must(send(one, "onestwosends", 12, 0));
	restored();
	while ((n = recv(fd, text + all, sizeof text - all, MSG_DONTWAIT)) > 0)
		all += n;
	same(all, 12);
	holds(!memcmp(text, "onestwosends", 12));
}

CASE(udp_queue_of_filtered)
{
	int fd = udp4(7933), one = udp4(7934);
	to4(one, 7933, "before");
	struct {
		unsigned short code;
		unsigned char jt, jf;
		unsigned int k;
	} nothing = { 6, 0, 0, 0 };
	struct {
		unsigned short len;
		void *filter;
	} program = { 1, &nothing };
	must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
	restored();
	next_is(fd, "before", 7934);
	to4(one, 7933, "after");
	usleep(10000);
	nothing_waits(fd);
}
