/* Property: unix sockets inside the group keep their peers, their queues and their names; listeners take new clients. */
#include "victim.h"
#include <poll.h>

static int stream[2], datagram[2], sequence[2], half[2], listener, abstract, named;
static char abstract_name[64];
static pid_t child;

static void put(int fd, const char *format)
{
	char text[64];
	snprintf(text, sizeof text, format, generation + 1);
	must(send(fd, text, strlen(text), MSG_NOSIGNAL));
}

static void drain(int fd)
{
	char text[256];
	while (recv(fd, text, sizeof text, MSG_DONTWAIT) > 0)
		;
}

static void change(void)
{
	drain(stream[1]);
	drain(datagram[1]);
	drain(sequence[1]);
	put(stream[0], "stream %d");
	put(datagram[0], "first %d");
	put(datagram[0], "second %d");
	put(sequence[0], "sequence %d");
}

static void waits(int fd, const char *format, int flags)
{
	char text[256] = "", wanted[64];
	snprintf(wanted, sizeof wanted, format, generation);
	ssize_t length = recv(fd, text, sizeof text - 1, MSG_DONTWAIT | flags);
	expect(length >= 0 && !strcmp(text, wanted), "'%s' waits where '%s' should (%zd)", text, wanted, length);
}

static void echoes(int fd, const char *name)
{
	char text[16] = "";
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	expect(send(fd, "ping", 4, MSG_NOSIGNAL) == 4, "%s: nothing can be sent: %s", name, strerror(errno));
	expect(poll(&ready, 1, 5000) == 1 && recv(fd, text, sizeof text, 0) == 4 && !memcmp(text, "ping", 4),
	       "%s does not echo", name);
}

static void connects(const char *name, const struct sockaddr_un *address, socklen_t length, int to)
{
	int client = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)), server = -1;
	int connected = connect(client, (const struct sockaddr *)address, length);
	expect(!connected, "%s: no new client: %s", name, strerror(errno));
	if (!connected)
		server = accept4(to, NULL, NULL, SOCK_CLOEXEC);
	expect(server >= 0, "%s: a client is not accepted", name);
	close(server);
	close(client);
}

static struct sockaddr_un path_address(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strncpy(address.sun_path, in_dir(name), sizeof address.sun_path - 1);
	return address;
}

static void verify(void)
{
	struct sockaddr_un path = path_address("listener"), name = { .sun_family = AF_UNIX }, to = path_address("named");
	char text[16] = "";
	int on = 0;
	socklen_t length = sizeof on;
	waits(stream[1], "stream %d", MSG_PEEK);
	waits(sequence[1], "sequence %d", MSG_PEEK);
	waits(datagram[1], "first %d", 0);
	waits(datagram[1], "second %d", 0);
	generation--;
	put(datagram[0], "first %d");
	put(datagram[0], "second %d");
	generation++;
	echoes(half[0], "the child's socket");
	strcpy(name.sun_path + 1, abstract_name);
	connects("the socket with a path", &path, sizeof path, listener);
	connects("the abstract socket", &name, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(abstract_name), abstract);
	int client = must(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	expect(sendto(client, "hello", 5, 0, (struct sockaddr *)&to, sizeof to) == 5, "no datagram to the named socket");
	expect(recv(named, text, sizeof text, MSG_DONTWAIT) == 5, "the named socket gets no datagram");
	close(client);
	expect(!getsockopt(named, SOL_SOCKET, SO_PASSCRED, &on, &length) && on, "SO_PASSCRED is lost");
	expect(fcntl(sequence[1], F_GETFL) & O_NONBLOCK, "O_NONBLOCK is lost");
}

int main(int argc, char **argv)
{
	struct sockaddr_un path, name = { .sun_family = AF_UNIX }, to;
	int on = 1;
	victim(argc, argv);
	path = path_address("listener");
	to = path_address("named");
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream));
	must(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, datagram));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sequence));
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, half));
	listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	unlink(path.sun_path);
	must(bind(listener, (struct sockaddr *)&path, sizeof path));
	must(listen(listener, 8));
	snprintf(abstract_name, sizeof abstract_name, "ckpt-victim-%d", getpid());
	strcpy(name.sun_path + 1, abstract_name);
	abstract = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	must(bind(abstract, (struct sockaddr *)&name, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(abstract_name)));
	must(listen(abstract, 8));
	named = must(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	unlink(to.sun_path);
	must(bind(named, (struct sockaddr *)&to, sizeof to));
	must(setsockopt(named, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	child = must(fork());
	if (!child) {
		char text[64];
		close(half[0]);
		for (;;) {
			ssize_t length = recv(half[1], text, sizeof text, 0);
			if (!length)
				_exit(0);
			if (length > 0)
				send(half[1], text, length, MSG_NOSIGNAL);
		}
	}
	close(half[1]);
	generation = -1;
	change();
	return serve(change, verify);
}
