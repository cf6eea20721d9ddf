/* Property: a server's listening TCP and UDP sockets take clients again, with its count in memory; a client of before sees
 * the end of its connection as a reset.
 *
 * tcp DIR PORT [ADDRESS]: answers "COUNT\n" to each client on 127.0.0.1 and ADDRESS, [::1] if none is given, and counts.
 */
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>

static int four, six, udp;
static unsigned short port;
static struct in6_addr address6 = IN6ADDR_LOOPBACK_INIT;
static _Atomic int count;

static int bound(int family, int type)
{
	int on = 1, fd = must(socket(family, type | SOCK_CLOEXEC, 0));
	struct sockaddr_in a4 = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = address6 };
	must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	if (family == AF_INET6) {
		must(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
		/* Of a network namespace made just now even the loopback address is not there at once. */
		int tries = 2000, bound;
		while ((bound = bind(fd, (struct sockaddr *)&a6, sizeof a6)) && errno == EADDRNOTAVAIL && tries-- > 0)
			usleep(1000);
		must(bound);
	} else
		must(bind(fd, (struct sockaddr *)&a4, sizeof a4));
	if (type == SOCK_STREAM) {
		must(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
		must(listen(fd, 77));
	}
	return fd;
}

/* Serves for ever, blocked in accept; keeps the last client. */
static void *serve_clients(void *argument)
{
	int listener = *(int *)argument, held = -1;
	for (;;) {
		char text[32];
		int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0)
			continue;
		snprintf(text, sizeof text, "%d\n", ++count);
		send(client, text, strlen(text), MSG_NOSIGNAL);
		if (held >= 0)
			close(held);
		held = client;
	}
	return NULL;
}

static void asks(int family)
{
	char text[32] = "";
	int before = count, client = must(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
	struct sockaddr_in a4 = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = address6 };
	struct pollfd ready = { .fd = client, .events = POLLIN };
	int connected = family == AF_INET ? connect(client, (struct sockaddr *)&a4, sizeof a4)
					  : connect(client, (struct sockaddr *)&a6, sizeof a6);
	expect(!connected, "no connection: %s", strerror(errno));
	expect(poll(&ready, 1, 5000) == 1 && recv(client, text, sizeof text - 1, 0) > 0, "no answer");
	expect(atoi(text) == before + 1, "the answer is '%s' after %d", text, before);
	close(client);
}

static void verify(void)
{
	int on = 0;
	socklen_t length = sizeof on;
	char text[8] = "";
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	asks(AF_INET);
	asks(AF_INET6);
	int client = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	expect(sendto(client, "hello", 5, 0, (struct sockaddr *)&to, sizeof to) == 5, "no datagram can be sent");
	struct pollfd ready = { .fd = udp, .events = POLLIN };
	expect(poll(&ready, 1, 5000) == 1 && recv(udp, text, sizeof text, 0) == 5, "no datagram arrives");
	close(client);
	expect(!getsockopt(four, IPPROTO_TCP, TCP_NODELAY, &on, &length) && on, "TCP_NODELAY is lost");
	expect(!getsockopt(four, SOL_SOCKET, SO_REUSEADDR, &on, &length) && on, "SO_REUSEADDR is lost");
}

int main(int argc, char **argv)
{
	pthread_t ignored;
	victim(argc, argv);
	port = argc > 2 ? atoi(argv[2]) : 7777;
	if (argc > 3 && inet_pton(AF_INET6, argv[3], &address6) != 1)
		return 2;
	four = bound(AF_INET, SOCK_STREAM);
	six = bound(AF_INET6, SOCK_STREAM);
	udp = bound(AF_INET, SOCK_DGRAM);
	must(pthread_create(&ignored, NULL, serve_clients, &four) ? -1 : 0);
	must(pthread_create(&ignored, NULL, serve_clients, &six) ? -1 : 0);
	return serve(NULL, verify);
}
