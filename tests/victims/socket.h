/* Sockets of cases: options that are numbers, addresses of this machine. */
#ifndef SOCKET_H
#define SOCKET_H

#include "case.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

static inline int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof value;
	if (getsockopt(fd, level, name, &value, &length))
		return -errno;
	return value;
}

static inline void set(int fd, int level, int name, int value)
{
	must(setsockopt(fd, level, name, &value, sizeof value));
}

static inline struct sockaddr_in v4(int port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static inline struct sockaddr_in6 v6(int port)
{
	return (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT };
}

#endif
