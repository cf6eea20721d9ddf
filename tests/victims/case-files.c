/* Properties of open files: regular files, directories, devices, pipes, and the small descriptors of the kernel. */
#include "case.h"
#include <dirent.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/statfs.h>
#include <sys/timerfd.h>
#include <sys/xattr.h>
#include <sys/uio.h>

static int file(const char *name, int flags)
{
	return must(open(in_dir(name), flags | O_CREAT | O_CLOEXEC, 0640));
}

CASE(file_offset)
{
	int fd = file("f", O_RDWR);
	put(fd, "0123456789");
	must(lseek(fd, 4, SEEK_SET));
	restored();
	reads(fd, "456789");
}

CASE(file_offset_past_end)
{
	int fd = file("f", O_RDWR);
	must(lseek(fd, 5000000000, SEEK_SET));
	restored();
	same(lseek(fd, 0, SEEK_CUR), 5000000000);
}

CASE(file_append)
{
	int fd = file("f", O_WRONLY | O_APPEND);
	put(fd, "one");
	restored();
	holds(fcntl(fd, F_GETFL) & O_APPEND);
	put(fd, "two");
	same(lseek(fd, 0, SEEK_END), 6);
}

CASE(file_flags)
{
	int direct = open(in_dir("f"), O_RDWR | O_CREAT | O_DIRECT, 0600);
	int sync = file("g", O_RDWR | O_SYNC), dsync = file("g", O_RDWR | O_DSYNC), noatime = file("g", O_RDONLY | O_NOATIME);
	int nonblock = file("g", O_RDONLY | O_NONBLOCK), async = file("g", O_RDONLY);
	int a[6] = { direct, sync, dsync, noatime, nonblock, async }, flags[6], i;
	for (i = 0; i < 6; i++)
		flags[i] = a[i] < 0 ? 0 : fcntl(a[i], F_GETFL);
	restored();
	for (i = 0; i < 6; i++)
		if (a[i] >= 0)
			expect(fcntl(a[i], F_GETFL) == flags[i], "flags of %d are %o, not %o", i, fcntl(a[i], F_GETFL), flags[i]);
}

CASE(file_read_only)
{
	put(file("f", O_WRONLY), "text");
	int fd = open(in_dir("f"), O_RDONLY | O_CLOEXEC);
	restored();
	same(write(fd, "x", 1), -1);
	reads(fd, "text");
}

CASE(file_write_only)
{
	int fd = file("f", O_WRONLY);
	char byte;
	restored();
	same(read(fd, &byte, 1), -1);
	put(fd, "x");
}

CASE(file_mode_000)
{
	int fd = file("f", O_RDWR);
	put(fd, "x");
	must(fchmod(fd, 0));
	restored();
	char byte;
	same(pread(fd, &byte, 1, 0), 1);
}

CASE(path_file)
{
	char byte;
	put(file("f", O_WRONLY), "text");
	int fd = must(open(in_dir("f"), O_PATH | O_CLOEXEC));
	restored();
	struct stat one, two;
	same(read(fd, &byte, 1), -1);
	same(errno, EBADF);
	must(fstat(fd, &one));
	must(stat(in_dir("f"), &two));
	same(one.st_ino, two.st_ino);
	holds(fcntl(fd, F_GETFL) & O_PATH);
}

CASE(path_directory)
{
	int fd = must(open(victim_dir, O_PATH | O_DIRECTORY | O_CLOEXEC));
	restored();
	int inside = openat(fd, "generation", O_RDONLY);
	holds(inside >= 0);
}

CASE(path_symlink)
{
	char text[64] = "";
	symlink("where/it/leads", in_dir("link"));
	int fd = must(open(in_dir("link"), O_PATH | O_NOFOLLOW | O_CLOEXEC));
	restored();
	same(readlinkat(fd, "", text, sizeof text), 14);
}

CASE(path_unlinked)
{
	struct stat status;
	put(file("f", O_WRONLY), "text");
	int fd = must(open(in_dir("f"), O_PATH | O_CLOEXEC));
	must(unlink(in_dir("f")));
	restored();
	must(fstat(fd, &status));
	same(status.st_nlink, 0);
	same(status.st_size, 4);
}

CASE(path_socket)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct stat status;
	strcpy(address.sun_path, in_dir("s"));
	int s = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	must(bind(s, (void *)&address, sizeof address));
	int fd = must(open(address.sun_path, O_PATH | O_CLOEXEC));
	restored();
	must(fstat(fd, &status));
	holds(S_ISSOCK(status.st_mode));
}

CASE(path_fifo)
{
	struct stat status;
	must(mkfifo(in_dir("p"), 0600));
	int fd = must(open(in_dir("p"), O_PATH | O_CLOEXEC));
	restored();
	must(fstat(fd, &status));
	holds(S_ISFIFO(status.st_mode));
}

CASE(tmpfile_linked_later)
{
	char name[64];
	struct stat status;
	int fd = must(open(victim_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	put(fd, "nameless");
	restored();
	must(fstat(fd, &status));
	same(status.st_size, 8);
	same(status.st_nlink, 0);
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	same(linkat(AT_FDCWD, name, AT_FDCWD, in_dir("now-named"), AT_SYMLINK_FOLLOW), 0);
	same(access(in_dir("now-named"), F_OK), 0);
}

CASE(tmpfile_with_attributes)
{
	char value[8];
	struct stat now;
	int fd = must(open(victim_dir, O_TMPFILE | O_RDWR, 0640));
	must(fsetxattr(fd, "user.colour", "red", 3, 0));
	must(fchmod(fd, 0751));
	must(ftruncate(fd, 12345));
	restored();
	same(fgetxattr(fd, "user.colour", value, sizeof value), 3);
	holds(!memcmp(value, "red", 3));
	must(fstat(fd, &now));
	same(now.st_mode & 07777, 0751);
	same(now.st_size, 12345);
	same(now.st_nlink, 0);
}

/* Of the unit's own: TemporaryFileSystem=/mnt, with something mounted in it. */
CASE(temporary_file_system)
{
	char text[8] = "";
	struct statfs system;
	must(statfs("/mnt", &system));
	if (system.f_type != 0x01021994) { /* TMPFS_MAGIC */
		cannot("/mnt is no temporary file system");
		return;
	}
	must(mkdir("/mnt/deep/own", 0710));
	int fd = must(open("/mnt/deep/own/file", O_RDWR | O_CREAT, 0640));
	put(fd, "one two");
	must(lseek(fd, 4, SEEK_SET));
	int closed = must(open("/mnt/closed", O_WRONLY | O_CREAT, 0600));
	put(closed, "kept");
	close(closed);
	restored();
	reads(fd, "two");
	closed = must(open("/mnt/closed", O_RDONLY));
	reads(closed, "kept");
	struct stat now, by_name;
	must(stat("/mnt/deep/own", &now));
	same(now.st_mode & 07777, 0710);
	must(fstat(fd, &now));
	must(stat("/mnt/deep/own/file", &by_name));
	same(now.st_ino, by_name.st_ino);
	must(access("/mnt/deep/usr/bin", F_OK));
	same(readlink("/mnt/deep/usr", text, sizeof text), -1);
}

CASE(unlinked)
{
	int fd = file("f", O_RDWR);
	put(fd, "gone but open");
	must(unlink(in_dir("f")));
	must(lseek(fd, 5, SEEK_SET));
	restored();
	reads(fd, "but open");
	same(access(in_dir("f"), F_OK), -1);
}

CASE(unlinked_twice_open)
{
	int one = file("f", O_RDWR), two = file("f", O_RDONLY);
	put(one, "shared");
	must(unlink(in_dir("f")));
	restored();
	reads(two, "shared");
	put(one, "more");
	reads(two, "more");
}

CASE(unlinked_read_only)
{
	put(file("f", O_WRONLY), "text");
	int fd = must(open(in_dir("f"), O_RDONLY));
	must(unlink(in_dir("f")));
	restored();
	reads(fd, "text");
	same(write(fd, "x", 1), -1);
}

CASE(unlinked_with_holes)
{
	struct stat status;
	char byte = 0;
	int fd = file("f", O_RDWR);
	must(pwrite(fd, "x", 1, 100 << 20));
	must(unlink(in_dir("f")));
	restored();
	must(fstat(fd, &status));
	same(status.st_size, (100 << 20) + 1);
	holds(status.st_blocks < 1000);
	same(pread(fd, &byte, 1, 100 << 20), 1);
	same(byte, 'x');
}

CASE(unlinked_in_tmp)
{
	char name[] = "/tmp/case-XXXXXX";
	int fd = must(mkstemp(name));
	put(fd, "temporary");
	must(unlink(name));
	must(lseek(fd, 0, SEEK_SET));
	restored();
	reads(fd, "temporary");
}

CASE(tmpfile_of_stdio)
{
	char text[32] = "";
	FILE *f = tmpfile();
	fprintf(f, "hello");
	fflush(f);
	restored();
	rewind(f);
	holds(fgets(text, sizeof text, f) && !strcmp(text, "hello"));
}

CASE(file_in_tmp)
{
	char name[] = "/tmp/case-XXXXXX";
	int fd = must(mkstemp(name));
	put(fd, "temporary");
	must(lseek(fd, 4, SEEK_SET));
	restored();
	reads(fd, "orary");
}

CASE(file_in_shm)
{
	int fd = must(shm_open("/case-file", O_RDWR | O_CREAT, 0600));
	put(fd, "in memory");
	must(lseek(fd, 3, SEEK_SET));
	restored();
	reads(fd, "memory");
}

CASE(shm_unlinked)
{
	int fd = must(shm_open("/case-unlinked", O_RDWR | O_CREAT, 0600));
	put(fd, "in memory");
	must(shm_unlink("/case-unlinked"));
	must(lseek(fd, 3, SEEK_SET));
	restored();
	reads(fd, "memory");
}

CASE(file_in_run)
{
	int fd = must(open("/run/case-file", O_RDWR | O_CREAT | O_TRUNC, 0600));
	put(fd, "run");
	must(lseek(fd, 1, SEEK_SET));
	restored();
	reads(fd, "un");
	unlink("/run/case-file");
}

CASE(renamed)
{
	struct stat one, two;
	int fd = file("old", O_RDWR);
	must(rename(in_dir("old"), in_dir("new")));
	restored();
	must(fstat(fd, &one));
	must(stat(in_dir("new"), &two));
	same(one.st_ino, two.st_ino);
}

CASE(replaced_by_another)
{
	struct stat one, two;
	int old = file("f", O_RDWR);
	put(old, "old");
	put(file("g", O_WRONLY), "new");
	must(rename(in_dir("g"), in_dir("f")));
	must(lseek(old, 0, SEEK_SET));
	restored();
	reads(old, "old");
	must(fstat(old, &one));
	must(stat(in_dir("f"), &two));
	holds(one.st_ino != two.st_ino);
}

CASE(hard_link_left)
{
	struct stat one, two;
	int fd = file("f", O_RDWR);
	must(link(in_dir("f"), in_dir("g")));
	must(unlink(in_dir("f")));
	restored();
	must(fstat(fd, &one));
	must(stat(in_dir("g"), &two));
	same(one.st_ino, two.st_ino);
	same(one.st_nlink, 1);
}

CASE(hard_links_both_open)
{
	struct stat one, two;
	int f = file("f", O_RDWR);
	must(link(in_dir("f"), in_dir("g")));
	int g = file("g", O_RDWR);
	restored();
	must(fstat(f, &one));
	must(fstat(g, &two));
	same(one.st_ino, two.st_ino);
	put(f, "through f");
	reads(g, "through f");
}

CASE(name_ends_in_deleted)
{
	struct stat one, two;
	int fd = file("f (deleted)", O_RDWR);
	put(fd, "x");
	restored();
	must(fstat(fd, &one));
	must(stat(in_dir("f (deleted)"), &two));
	same(one.st_ino, two.st_ino);
}

CASE(strange_names)
{
	int one = file("a\nb\\c \001\xff", O_RDWR);
	put(one, "x");
	restored();
	same(lseek(one, 0, SEEK_CUR), 1);
}

CASE(directory)
{
	int fd = must(open(victim_dir, O_RDONLY | O_DIRECTORY));
	restored();
	same(faccessat(fd, "generation", F_OK, 0), 0);
}

CASE(directory_offset)
{
	char seen[200][256];
	int count = 0, again = 0;
	struct dirent *entry;
	char name[32];
	for (int i = 0; i < 150; i++) {
		snprintf(name, sizeof name, "entry-%d", i);
		close(file(name, O_WRONLY));
	}
	DIR *list = opendir(victim_dir);
	for (int i = 0; i < 50 && (entry = readdir(list)); i++)
		snprintf(seen[count++], 256, "%s", entry->d_name);
	restored();
	while ((entry = readdir(list)))
		for (int i = 0; i < count; i++)
			again += !strcmp(seen[i], entry->d_name);
	same(again, 0);
}

CASE(directory_offset_raw)
{
	char name[32], buffer[1024];
	int all = 0, n;
	for (int i = 0; i < 150; i++) {
		snprintf(name, sizeof name, "entry-%d", i);
		close(file(name, O_WRONLY));
	}
	int fd = must(open(victim_dir, O_RDONLY | O_DIRECTORY));
	for (int i = 0; i < 2; i++)
		for (n = must(syscall(SYS_getdents64, fd, buffer, sizeof buffer)), n = n; n > 0;) {
			for (int at = 0; at < n; at += *(unsigned short *)(buffer + at + 16))
				all += !strncmp(buffer + at + 19, "entry-", 6);
			break;
		}
	restored();
	while ((n = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
		for (int at = 0; at < n; at += *(unsigned short *)(buffer + at + 16))
			all += !strncmp(buffer + at + 19, "entry-", 6);
	same(all, 150);
}

CASE(directory_deleted)
{
	struct stat status;
	must(mkdir(in_dir("d"), 0700));
	int fd = must(open(in_dir("d"), O_RDONLY | O_DIRECTORY));
	must(rmdir(in_dir("d")));
	restored();
	must(fstat(fd, &status));
	holds(S_ISDIR(status.st_mode) && openat(fd, "x", O_CREAT | O_RDWR, 0600) == -1);
}

CASE(directory_of_working_deleted)
{
	char text[4096];
	must(mkdir(in_dir("d"), 0700));
	must(chdir(in_dir("d")));
	must(rmdir(in_dir("d")));
	restored();
	same(getcwd(text, sizeof text) == NULL ? errno : 0, ENOENT);
}

CASE(directory_renamed)
{
	must(mkdir(in_dir("d"), 0700));
	int fd = must(open(in_dir("d"), O_RDONLY | O_DIRECTORY));
	must(rename(in_dir("d"), in_dir("e")));
	close(must(openat(fd, "x", O_CREAT | O_RDWR, 0600)));
	restored();
	same(faccessat(fd, "x", F_OK, 0), 0);
	same(access(in_dir("e/x"), F_OK), 0);
}

CASE(device_null)
{
	int fd = must(open("/dev/null", O_RDWR));
	char byte;
	restored();
	same(write(fd, "x", 1), 1);
	same(read(fd, &byte, 1), 0);
}

CASE(device_zero)
{
	int fd = must(open("/dev/zero", O_RDWR));
	char byte = 1;
	restored();
	same(read(fd, &byte, 1), 1);
	same(byte, 0);
}

CASE(device_full)
{
	int fd = must(open("/dev/full", O_RDWR));
	restored();
	same(write(fd, "x", 1), -1);
	same(errno, ENOSPC);
}

CASE(device_random)
{
	int fd = must(open("/dev/random", O_RDONLY)), two = must(open("/dev/urandom", O_RDONLY));
	char bytes[64];
	restored();
	same(read(fd, bytes, 8), 8);
	same(read(two, bytes, 8), 8);
}

CASE(device_kmsg_write)
{
	int fd = open("/dev/kmsg", O_WRONLY);
	if (fd < 0)
		cannot("no /dev/kmsg");
	restored();
	holds(fcntl(fd, F_GETFL) >= 0);
}

CASE(device_node_made)
{
	if (mknod(in_dir("null"), S_IFCHR | 0600, makedev(1, 3)))
		cannot("no mknod");
	int fd = open(in_dir("null"), O_RDWR);
	if (fd < 0)
		cannot("devices of this file system cannot be opened");
	restored();
	same(write(fd, "x", 1), 1);
}

REFUSED(device_loop_control, "device")
{
	int fd = open("/dev/loop-control", O_RDWR);
	if (fd < 0)
		cannot("no loop-control");
	restored();
}

REFUSED(device_fuse, "device")
{
	int fd = open("/dev/fuse", O_RDWR);
	if (fd < 0)
		cannot("no fuse");
	restored();
}

CASE(descriptors_closed)
{
	close(0);
	restored();
	same(fcntl(0, F_GETFD), -1);
}

CASE(descriptor_numbers)
{
	struct rlimit limit;
	must(getrlimit(RLIMIT_NOFILE, &limit));
	/* A restore needs numbers above all of these, and has no more than a host without CAP_SYS_RESOURCE allows. */
	limit.rlim_cur = limit.rlim_max < 60000 ? limit.rlim_max * 3 / 4 : 60000;
	must(setrlimit(RLIMIT_NOFILE, &limit));
	int fd = file("f", O_RDWR), top = (int)limit.rlim_cur - 1;
	must(dup2(fd, 100));
	must(dup2(fd, 1023));
	must(dup2(fd, 1024));
	must(dup2(fd, top));
	put(fd, "abc");
	restored();
	same(lseek(top, 0, SEEK_CUR), 3);
	same(lseek(1024, 0, SEEK_CUR), 3);
	same(fcntl(101, F_GETFD), -1);
}

CASE(descriptors_many)
{
	struct rlimit limit;
	int count = 3000, i;
	must(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = limit.rlim_max;
	must(setrlimit(RLIMIT_NOFILE, &limit));
	int *fds = calloc(count, sizeof *fds);
	char name[32];
	for (i = 0; i < count; i++) {
		snprintf(name, sizeof name, "f%d", i % 100);
		fds[i] = file(name, O_RDWR);
		must(lseek(fds[i], i, SEEK_SET));
	}
	restored();
	for (i = 0; i < count; i++)
		same(lseek(fds[i], 0, SEEK_CUR), i);
}

CASE(close_on_exec)
{
	int fd = file("f", O_RDWR), kept = must(dup(fd));
	restored();
	same(fcntl(fd, F_GETFD), FD_CLOEXEC);
	same(fcntl(kept, F_GETFD), 0);
}

CASE(dup_shares_offset)
{
	int fd = file("f", O_RDWR), twin = must(dup(fd)), own = file("f", O_RDWR);
	put(fd, "12345");
	restored();
	same(lseek(twin, 0, SEEK_CUR), 5);
	same(lseek(own, 0, SEEK_CUR), 0);
	must(lseek(fd, 2, SEEK_SET));
	same(lseek(twin, 0, SEEK_CUR), 2);
}

static int shared_fd;
static int own_offset(void)
{
	return (int)lseek(shared_fd, 0, SEEK_CUR);
}

CASE(fork_shares_offset)
{
	shared_fd = file("f", O_RDWR);
	put(shared_fd, "12345");
	struct child child = spawn(NULL, own_offset);
	restored();
	must(lseek(shared_fd, 3, SEEK_SET));
	same(ask(child), 3);
}

static void send_fd(int socket, int fd)
{
	char byte = 'f', control[CMSG_SPACE(sizeof fd)] = "";
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(head), &fd, sizeof fd);
	must(sendmsg(socket, &message, 0));
}

static int receive_fd(int socket)
{
	char byte, control[CMSG_SPACE(sizeof(int))] = "";
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	int fd = -1;
	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
		return -1;
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	if (head && head->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(head), sizeof fd);
	return fd;
}

static int passing[2];
static void take_fd(void)
{
	shared_fd = receive_fd(passing[1]);
}

CASE(passed_descriptor_is_shared)
{
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, passing));
	int fd = file("f", O_RDWR);
	put(fd, "1234");
	send_fd(passing[0], fd);
	struct child child = spawn(take_fd, own_offset);
	restored();
	same(ask(child), 4);
	must(lseek(fd, 1, SEEK_SET));
	same(ask(child), 1);
}

CASE(descriptor_in_flight)
{
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, passing));
	int fd = file("f", O_RDWR);
	put(fd, "in flight");
	send_fd(passing[0], fd);
	restored();
	int got = receive_fd(passing[1]);
	same(lseek(got, 0, SEEK_CUR), 9);
	must(lseek(fd, 2, SEEK_SET));
	same(lseek(got, 0, SEEK_CUR), 2);
}

CASE(descriptor_only_in_flight)
{
	int ends[2];
	must(pipe(ends));
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, passing));
	send_fd(passing[0], ends[1]);
	close(ends[1]);
	restored();
	holds(!readable_now(ends[0]));
	int got = receive_fd(passing[1]);
	put(got, "through");
	reads(ends[0], "through");
}

CASE(socket_in_flight_in_itself)
{
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, passing));
	send_fd(passing[0], passing[1]);
	restored();
	int got = receive_fd(passing[1]);
	put(passing[0], "loop");
	reads(got, "loop");
}

CASE(sockets_in_flight_nested)
{
	int inner[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, passing));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
	int fd = file("f", O_RDWR);
	put(fd, "deep");
	send_fd(inner[0], fd);
	send_fd(passing[0], inner[1]);
	close(fd);
	close(inner[1]);
	restored();
	int got = receive_fd(passing[1]), deep = receive_fd(got);
	same(lseek(deep, 0, SEEK_CUR), 4);
}

static volatile sig_atomic_t signalled;
static volatile int signalled_fd;
static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)context;
	signalled = number;
	signalled_fd = info->si_fd;
}

static void handle(int number)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	must(sigaction(number, &action, NULL));
}

CASE(owner_and_signal)
{
	int ends[2], number = SIGRTMIN + 3;
	handle(number);
	must(pipe(ends));
	must(fcntl(ends[0], F_SETOWN, getpid()));
	must(fcntl(ends[0], F_SETSIG, number));
	must(fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	restored();
	same(fcntl(ends[0], F_GETOWN), getpid());
	same(fcntl(ends[0], F_GETSIG), number);
	holds(fcntl(ends[0], F_GETFL) & O_ASYNC);
	put(ends[1], "x");
	for (int i = 0; i < 100 && !signalled; i++)
		usleep(10000);
	same(signalled, number);
	same(signalled_fd, ends[0]);
}

CASE(owner_group)
{
	int ends[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	must(fcntl(ends[0], F_SETOWN, -getpgrp()));
	restored();
	same(fcntl(ends[0], F_GETOWN), -getpgrp());
}

CASE(owner_thread)
{
	struct { int type; pid_t pid; } owner = { 0, gettid() }, got = { -1, -1 };
	int ends[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	must(fcntl(ends[0], 15 /* F_SETOWN_EX */, &owner));
	restored();
	must(fcntl(ends[0], 16, &got));
	same(got.type, 0);
	same(got.pid, gettid());
}

static short type_seen;
static int lock_fd;
static int posix_lock_seen(void)
{
	struct flock lock = { .l_type = type_seen, .l_start = 10, .l_len = 5 };
	int fd = open(in_dir("locked"), O_RDWR);
	if (fcntl(fd, F_GETLK, &lock))
		return -1;
	close(fd);
	return lock.l_type == F_UNLCK ? 0 : (int)lock.l_pid;
}

CASE(posix_lock_write)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 10, .l_len = 5 };
	lock_fd = file("locked", O_RDWR);
	must(fcntl(lock_fd, F_SETLK, &lock));
	type_seen = F_RDLCK;
	struct child child = spawn(NULL, posix_lock_seen);
	restored();
	same(ask(child), getpid());
	lock.l_type = F_UNLCK;
	must(fcntl(lock_fd, F_SETLK, &lock));
	same(ask(child), 0);
}

CASE(posix_lock_read)
{
	struct flock lock = { .l_type = F_RDLCK, .l_start = 10 };
	lock_fd = file("locked", O_RDWR);
	must(fcntl(lock_fd, F_SETLK, &lock));
	type_seen = F_WRLCK;
	struct child child = spawn(NULL, posix_lock_seen);
	restored();
	same(ask(child), getpid());
}

static void lock_as_child(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 10, .l_len = 2 };
	must(fcntl(lock_fd, F_SETLK, &lock));
}

CASE(posix_lock_of_child)
{
	lock_fd = file("locked", O_RDWR);
	struct child child = spawn(lock_as_child, NULL);
	type_seen = F_WRLCK;
	restored();
	same(posix_lock_seen(), child.pid);
}

CASE(posix_locks_many)
{
	lock_fd = file("locked", O_RDWR);
	for (int i = 0; i < 50; i++) {
		struct flock lock = { .l_type = i % 2 ? F_WRLCK : F_RDLCK, .l_start = i * 10, .l_len = 5 };
		must(fcntl(lock_fd, F_SETLK, &lock));
	}
	type_seen = F_WRLCK;
	struct child child = spawn(NULL, posix_lock_seen);
	restored();
	same(ask(child), getpid());
}

CASE(ofd_lock)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 7, .l_len = 3 }, other = { .l_type = F_WRLCK, .l_start = 8, .l_len = 1 };
	int fd = file("f", O_RDWR), two = file("f", O_RDWR);
	must(fcntl(fd, F_OFD_SETLK, &lock));
	restored();
	must(fcntl(two, F_OFD_GETLK, &other));
	same(other.l_type, F_WRLCK);
	same(other.l_start, 7);
	same(other.l_len, 3);
	close(fd);
	other = (struct flock){ .l_type = F_WRLCK, .l_start = 8, .l_len = 1 };
	must(fcntl(two, F_OFD_GETLK, &other));
	same(other.l_type, F_UNLCK);
}

CASE(flock_exclusive)
{
	int fd = file("f", O_RDWR), two = file("f", O_RDWR);
	must(flock(fd, LOCK_EX));
	restored();
	same(flock(two, LOCK_SH | LOCK_NB), -1);
	must(flock(fd, LOCK_UN));
	same(flock(two, LOCK_EX | LOCK_NB), 0);
}

CASE(flock_shared)
{
	int fd = file("f", O_RDWR), two = file("f", O_RDWR);
	must(flock(fd, LOCK_SH));
	restored();
	same(flock(two, LOCK_SH | LOCK_NB), 0);
	same(flock(two, LOCK_EX | LOCK_NB), -1);
}

CASE(flock_of_read_only)
{
	int fd = file("f", O_RDWR), two = must(open(in_dir("f"), O_RDONLY));
	must(flock(two, LOCK_EX));
	restored();
	same(flock(fd, LOCK_SH | LOCK_NB), -1);
}

CASE(flock_of_directory)
{
	int fd = must(open(victim_dir, O_RDONLY)), two = must(open(victim_dir, O_RDONLY));
	must(flock(fd, LOCK_EX));
	restored();
	same(flock(two, LOCK_SH | LOCK_NB), -1);
}

REFUSED(flock_of_fifo, "file-lock")
{
	must(mkfifo(in_dir("fifo"), 0600));
	int fd = must(open(in_dir("fifo"), O_RDWR));
	must(flock(fd, LOCK_EX));
	restored();
}

REFUSED(ofd_lock_of_memfd, "file-lock")
{
	int fd = must(memfd_create("locked", 0));
	struct flock lock = { .l_type = F_WRLCK, .l_len = 1 };
	must(fcntl(fd, F_OFD_SETLK, &lock));
	restored();
}

CASE(posix_lock_of_memfd)
{
	int fd = must(memfd_create("locked", 0));
	struct flock lock = { .l_type = F_WRLCK, .l_len = 1 }, told = { .l_type = F_WRLCK };
	must(fcntl(fd, F_SETLK, &lock));
	restored();
	must(fcntl(fd, F_OFD_GETLK, &told));
	same(told.l_type, F_WRLCK);
}

CASE(lease_read)
{
	close(file("f", O_RDWR));
	int fd = must(open(in_dir("f"), O_RDONLY));
	must(fcntl(fd, F_SETLEASE, F_RDLCK));
	restored();
	same(fcntl(fd, F_GETLEASE), F_RDLCK);
}

CASE(lease_write)
{
	int fd = file("f", O_RDWR);
	must(fcntl(fd, F_SETLEASE, F_WRLCK));
	restored();
	same(fcntl(fd, F_GETLEASE), F_WRLCK);
}

static int open_the_leased(void)
{
	return open(in_dir("f"), O_WRONLY | O_NONBLOCK) == -1 ? errno : 0;
}

CASE(lease_breaks)
{
	handle(SIGIO);
	close(file("f", O_RDWR));
	int fd = must(open(in_dir("f"), O_RDONLY));
	must(fcntl(fd, F_SETLEASE, F_RDLCK));
	struct child child = spawn(NULL, open_the_leased);
	restored();
	same(ask(child), EWOULDBLOCK);
	same(signalled, SIGIO);
	must(fcntl(fd, F_SETLEASE, F_UNLCK));
}

CASE(dnotify)
{
	handle(SIGIO);
	int fd = must(open(victim_dir, O_RDONLY));
	must(fcntl(fd, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
	restored();
	close(file("new", O_RDWR));
	same(signalled, SIGIO);
}

/* pipes */

CASE(pipe_content)
{
	int ends[2];
	must(pipe(ends));
	put(ends[1], "waits here");
	restored();
	reads(ends[0], "waits here");
	put(ends[1], "more");
	reads(ends[0], "more");
}

CASE(pipe_full)
{
	int ends[2], all = 0, n;
	static char block[4096];
	must(pipe2(ends, O_NONBLOCK));
	memset(block, 'b', sizeof block);
	while ((n = write(ends[1], block, sizeof block)) > 0)
		all += n;
	restored();
	same(write(ends[1], block, 1), -1);
	same(errno, EAGAIN);
	while ((n = read(ends[0], block, sizeof block)) > 0)
		all -= n;
	same(all, 0);
}

CASE(pipe_full_of_small_writes)
{
	int ends[2], all = 0, got = 0;
	char byte;
	must(pipe2(ends, O_NONBLOCK));
	while (write(ends[1], "x", 1) == 1)
		all++;
	restored();
	while (read(ends[0], &byte, 1) == 1)
		got++;
	same(got, all);
}

CASE(pipe_size)
{
	int ends[2];
	must(pipe(ends));
	must(fcntl(ends[0], F_SETPIPE_SZ, 1 << 18));
	restored();
	same(fcntl(ends[1], F_GETPIPE_SZ), 1 << 18);
}

CASE(pipe_size_smallest)
{
	int ends[2];
	must(pipe(ends));
	put(ends[1], "in one page");
	must(fcntl(ends[0], F_SETPIPE_SZ, 4096));
	restored();
	same(fcntl(ends[1], F_GETPIPE_SZ), 4096);
	reads(ends[0], "in one page");
}

CASE(pipe_packets)
{
	int ends[2];
	must(pipe2(ends, O_DIRECT));
	put(ends[1], "first");
	put(ends[1], "second");
	restored();
	reads(ends[0], "first");
	reads(ends[0], "second");
	put(ends[1], "third");
	put(ends[1], "fourth");
	reads(ends[0], "third");
}

CASE(pipe_without_writer)
{
	int ends[2];
	char byte;
	must(pipe(ends));
	put(ends[1], "rest");
	close(ends[1]);
	restored();
	reads(ends[0], "rest");
	same(read(ends[0], &byte, 1), 0);
}

CASE(pipe_without_reader)
{
	int ends[2];
	must(pipe(ends));
	close(ends[0]);
	restored();
	same(write(ends[1], "x", 1), -1);
	same(errno, EPIPE);
}

CASE(pipe_nonblock_on_one_end)
{
	int ends[2];
	must(pipe(ends));
	must(fcntl(ends[0], F_SETFL, O_NONBLOCK));
	restored();
	holds(fcntl(ends[0], F_GETFL) & O_NONBLOCK);
	holds(!(fcntl(ends[1], F_GETFL) & O_NONBLOCK));
}

CASE(pipe_reopened)
{
	int ends[2];
	char name[64];
	must(pipe(ends));
	snprintf(name, sizeof name, "/proc/self/fd/%d", ends[1]);
	int both = must(open(name, O_RDWR)), other = must(open(name, O_WRONLY | O_NONBLOCK));
	restored();
	put(other, "x");
	reads(both, "x");
}

/* What F_GETFL and F_GETFD tell of descriptors of all sorts. */
CASE(status_flags)
{
	enum { MOST = 64 };
	int all[MOST], before[MOST][2], count = 0, ends[2];
	char name[64];
#define HAS(fd) (all[count++] = must(fd))
	int plain[] = { O_RDONLY, O_WRONLY | O_APPEND, O_RDWR | O_NONBLOCK, O_RDONLY | O_NOFOLLOW, O_WRONLY | O_DSYNC,
			O_RDWR | O_SYNC | O_CLOEXEC, O_RDONLY | O_NOATIME, O_PATH, O_PATH | O_NOFOLLOW, O_RDONLY | O_TRUNC | O_CREAT };
	write_file("plain", "text");
	for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
		HAS(open(in_dir("plain"), plain[i], 0600));
	HAS(open(in_dir(""), O_RDONLY | O_DIRECTORY));
	HAS(open(in_dir(""), O_PATH | O_DIRECTORY | O_CLOEXEC));
	HAS(open("/dev/null", O_RDWR));
	HAS(open("/proc/self/status", O_RDONLY));
	must(mkfifo(in_dir("fifo"), 0600));
	HAS(open(in_dir("fifo"), O_RDWR | O_NONBLOCK));
	HAS(open(in_dir("fifo"), O_RDONLY));
	for (int flags = 0; flags < 4; flags++) {
		must(pipe2(ends, (flags & 1 ? O_NONBLOCK : 0) | (flags & 2 ? O_DIRECT | O_CLOEXEC : 0)));
		HAS(ends[0]);
		HAS(ends[1]);
	}
	snprintf(name, sizeof name, "/proc/self/fd/%d", ends[0]);
	HAS(open(name, O_RDONLY | O_NONBLOCK));
	HAS(fcntl(ends[1], F_DUPFD_CLOEXEC, 0));
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends));
	HAS(ends[0]);
	HAS(ends[1]);
	HAS(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	HAS(eventfd(0, EFD_NONBLOCK));
	HAS(memfd_create("m", 0));
	HAS(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK));
	for (int i = 0; i < count; i++) {
		before[i][0] = fcntl(all[i], F_GETFL);
		before[i][1] = fcntl(all[i], F_GETFD);
	}
	restored();
	for (int i = 0; i < count; i++) {
		expect(fcntl(all[i], F_GETFL) == before[i][0], "F_GETFL of the %dth is %o, was %o", i, fcntl(all[i], F_GETFL), before[i][0]);
		expect(fcntl(all[i], F_GETFD) == before[i][1], "F_GETFD of the %dth is %x, was %x", i, fcntl(all[i], F_GETFD), before[i][1]);
	}
}

static int echo_fd[2];
static int echo_some(void)
{
	char buffer[64];
	ssize_t n = read(echo_fd[0], buffer, sizeof buffer);
	return (int)n;
}

CASE(pipe_to_child)
{
	must(pipe(echo_fd));
	struct child child = spawn(NULL, echo_some);
	put(echo_fd[1], "five.");
	restored();
	same(ask(child), 5);
}

CASE(fifo_content)
{
	must(mkfifo(in_dir("p"), 0600));
	int fd = must(open(in_dir("p"), O_RDWR | O_CLOEXEC));
	put(fd, "in the fifo");
	restored();
	reads(fd, "in the fifo");
	int other = must(open(in_dir("p"), O_WRONLY | O_NONBLOCK));
	put(other, "new");
	reads(fd, "new");
}

CASE(fifo_reader_only)
{
	must(mkfifo(in_dir("p"), 0600));
	int fd = must(open(in_dir("p"), O_RDONLY | O_NONBLOCK));
	char byte;
	restored();
	same(read(fd, &byte, 1), 0);
	int other = must(open(in_dir("p"), O_WRONLY | O_NONBLOCK));
	put(other, "new");
	reads(fd, "new");
}

static short told(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };
	must(poll(&one, 1, 0));
	return one.revents;
}

/* Who polls a FIFO sleeps until the first writer, and is told each time when the last one has gone. */
CASE(fifo_before_its_first_writer)
{
	must(mkfifo(in_dir("p"), 0600));
	int had = must(open(in_dir("p"), O_RDONLY | O_NONBLOCK));
	close(must(open(in_dir("p"), O_WRONLY | O_NONBLOCK)));
	int never = must(open(in_dir("p"), O_RDONLY | O_NONBLOCK));
	must(mkfifo(in_dir("q"), 0600));
	int unlinked = must(open(in_dir("q"), O_RDONLY | O_NONBLOCK));
	must(unlink(in_dir("q")));
	restored();
	same(told(had), POLLHUP);
	same(told(never), 0);
	same(told(unlinked), 0);
	int writer = must(open(in_dir("p"), O_WRONLY | O_NONBLOCK));
	put(writer, "new");
	reads(never, "new");
	same(told(had), 0);
	close(writer);
	same(told(never), POLLHUP);
}

CASE(fifo_unlinked)
{
	must(mkfifo(in_dir("p"), 0600));
	int in = must(open(in_dir("p"), O_RDONLY | O_NONBLOCK)), out = must(open(in_dir("p"), O_WRONLY));
	put(out, "gone");
	must(unlink(in_dir("p")));
	restored();
	reads(in, "gone");
	close(out);
	char byte;
	same(read(in, &byte, 1), 0);
}

CASE(fifo_in_run)
{
	unlink("/run/case-fifo");
	must(mkfifo("/run/case-fifo", 0600));
	int fd = must(open("/run/case-fifo", O_RDWR));
	put(fd, "x");
	restored();
	reads(fd, "x");
}

/* eventfd, epoll, timerfd, signalfd, inotify, fanotify */

CASE(eventfd_count)
{
	int fd = must(eventfd(41, EFD_CLOEXEC));
	uint64_t value = 1;
	must(write(fd, &value, 8));
	restored();
	same(read(fd, &value, 8), 8);
	same(value, 42);
}

CASE(eventfd_semaphore)
{
	int fd = must(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
	uint64_t value = 0;
	restored();
	for (int i = 0; i < 3; i++) {
		same(read(fd, &value, 8), 8);
		same(value, 1);
	}
	same(read(fd, &value, 8), -1);
}

CASE(eventfd_largest)
{
	int fd = must(eventfd(0, EFD_NONBLOCK));
	uint64_t value = 0xfffffffffffffffe, one = 1;
	must(write(fd, &value, 8));
	restored();
	same(write(fd, &one, 8), -1);
	same(read(fd, &value, 8), 8);
	same(value, 0xfffffffffffffffe);
}

static int epoll_with(int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { .events = events, .data.u64 = data };
	int epoll = must(epoll_create1(EPOLL_CLOEXEC));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	return epoll;
}

CASE(epoll_level)
{
	int fd = must(eventfd(0, 0));
	int epoll = epoll_with(fd, EPOLLIN, 0x1122334455667788);
	struct epoll_event got;
	restored();
	same(epoll_wait(epoll, &got, 1, 0), 0);
	uint64_t one = 1;
	must(write(fd, &one, 8));
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(got.data.u64, 0x1122334455667788);
	same(got.events, EPOLLIN);
}

CASE(epoll_edge)
{
	int fd = must(eventfd(0, 0));
	int epoll = epoll_with(fd, EPOLLIN | EPOLLET, 5);
	struct epoll_event got;
	uint64_t one = 1;
	restored();
	must(write(fd, &one, 8));
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(epoll_wait(epoll, &got, 1, 0), 0);
	must(write(fd, &one, 8));
	same(epoll_wait(epoll, &got, 1, 0), 1);
}

CASE(epoll_edge_waiting)
{
	int fd = must(eventfd(1, 0));
	int epoll = epoll_with(fd, EPOLLIN | EPOLLET, 5);
	struct epoll_event got;
	restored();
	same(epoll_wait(epoll, &got, 1, 0), 1);
}

CASE(epoll_one_shot_fired)
{
	int fd = must(eventfd(1, 0));
	int epoll = epoll_with(fd, EPOLLIN | EPOLLONESHOT, 5);
	struct epoll_event got, again = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 6 };
	same(epoll_wait(epoll, &got, 1, 0), 1);
	restored();
	same(epoll_wait(epoll, &got, 1, 0), 0);
	must(epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &again));
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(got.data.u64, 6);
}

CASE(epoll_one_shot_fired_and_empty)
{
	int fd = must(eventfd(1, 0));
	int epoll = epoll_with(fd, EPOLLIN | EPOLLONESHOT, 5);
	struct epoll_event got;
	uint64_t value;
	same(epoll_wait(epoll, &got, 1, 0), 1);
	must(read(fd, &value, 8));
	restored();
	value = 1;
	must(write(fd, &value, 8));
	same(epoll_wait(epoll, &got, 1, 0), 0);
}

CASE(epoll_one_shot_armed)
{
	int fd = must(eventfd(0, 0));
	int epoll = epoll_with(fd, EPOLLIN | EPOLLONESHOT, 5);
	struct epoll_event got;
	uint64_t one = 1;
	restored();
	must(write(fd, &one, 8));
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(epoll_wait(epoll, &got, 1, 0), 0);
}

CASE(epoll_nested)
{
	int fd = must(eventfd(0, 0));
	int inner = epoll_with(fd, EPOLLIN, 1), outer = epoll_with(inner, EPOLLIN, 2);
	int third = epoll_with(outer, EPOLLIN, 3);
	struct epoll_event got;
	uint64_t one = 1;
	restored();
	same(epoll_wait(third, &got, 1, 0), 0);
	must(write(fd, &one, 8));
	same(epoll_wait(third, &got, 1, 0), 1);
	same(got.data.u64, 3);
	same(epoll_wait(outer, &got, 1, 0), 1);
	same(got.data.u64, 2);
}

CASE(epoll_of_closed_number)
{
	int fd = must(eventfd(0, 0)), twin = must(dup(fd));
	int epoll = epoll_with(fd, EPOLLIN, 9);
	struct epoll_event got;
	uint64_t one = 1;
	close(fd);
	restored();
	must(write(twin, &one, 8));
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(got.data.u64, 9);
}

CASE(epoll_of_reused_number)
{
	int fd = must(eventfd(0, 0)), twin = must(dup(fd));
	int epoll = epoll_with(fd, EPOLLIN, 9);
	struct epoll_event got, event = { .events = EPOLLIN, .data.u64 = 10 };
	uint64_t one = 1;
	must(dup2(must(eventfd(0, 0)), fd));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	restored();
	must(write(twin, &one, 8));
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(got.data.u64, 9);
}

CASE(epoll_of_many_kinds)
{
	int ends[2], pair[2];
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	must(pipe(ends));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int epoll = must(epoll_create1(0)), timer = must(timerfd_create(CLOCK_MONOTONIC, 0)), inotify = must(inotify_init1(0));
	int signals = must(signalfd(-1, &set, 0)), pidfd = must(syscall(SYS_pidfd_open, getpid(), 0));
	int all[] = { ends[0], ends[1], pair[0], timer, inotify, signals, pidfd }, ready = 0;
	struct epoll_event got[16];
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP, .data.u32 = i };
		must(epoll_ctl(epoll, EPOLL_CTL_ADD, all[i], &event));
	}
	must(inotify_add_watch(inotify, victim_dir, IN_CREATE));
	restored();
	struct itimerspec soon = { .it_value.tv_nsec = 1 };
	must(timerfd_settime(timer, 0, &soon, NULL));
	close(file("new", O_RDWR));
	put(ends[1], "x");
	put(pair[1], "x");
	usleep(10000);
	int n = epoll_wait(epoll, got, 16, 0);
	for (int i = 0; i < n; i++)
		ready |= 1 << got[i].data.u32;
	same(ready, 0x1f);
}

static int epoll_shared, event_shared;
static int epoll_seen(void)
{
	struct epoll_event got;
	return epoll_wait(epoll_shared, &got, 1, 0);
}

CASE(epoll_shared_with_child)
{
	event_shared = must(eventfd(0, 0));
	epoll_shared = epoll_with(event_shared, EPOLLIN, 1);
	struct child child = spawn(NULL, epoll_seen);
	uint64_t one = 1;
	restored();
	same(ask(child), 0);
	must(write(event_shared, &one, 8));
	same(ask(child), 1);
}

CASE(epoll_exclusive)
{
	int fd = must(eventfd(0, 0));
	int epoll = epoll_with(fd, EPOLLIN | EPOLLEXCLUSIVE, 1);
	struct epoll_event got;
	uint64_t one = 1;
	restored();
	must(write(fd, &one, 8));
	same(epoll_wait(epoll, &got, 1, 0), 1);
}

CASE(epoll_hang_up_only)
{
	int ends[2];
	must(pipe(ends));
	int epoll = epoll_with(ends[0], 0, 1);
	struct epoll_event got;
	restored();
	same(epoll_wait(epoll, &got, 1, 0), 0);
	close(ends[1]);
	same(epoll_wait(epoll, &got, 1, 0), 1);
	same(got.events, EPOLLHUP);
}

CASE(timerfd_ticks)
{
	int fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	struct itimerspec spec = { .it_value.tv_nsec = 1000000, .it_interval.tv_sec = 1000 };
	must(timerfd_settime(fd, 0, &spec, NULL));
	usleep(20000);
	uint64_t ticks = 0;
	restored();
	same(read(fd, &ticks, 8), 8);
	same(ticks, 1);
	must(timerfd_gettime(fd, &spec));
	same(spec.it_interval.tv_sec, 1000);
	holds(spec.it_value.tv_sec > 900);
}

CASE(timerfd_clocks)
{
	int clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME }, fds[3];
	struct itimerspec spec = { .it_value.tv_sec = 5000 }, got;
	for (int i = 0; i < 3; i++) {
		fds[i] = must(timerfd_create(clocks[i], TFD_CLOEXEC));
		must(timerfd_settime(fds[i], 0, &spec, NULL));
	}
	restored();
	for (int i = 0; i < 3; i++) {
		must(timerfd_gettime(fds[i], &got));
		expect(got.it_value.tv_sec > 4900 && got.it_value.tv_sec <= 5000, "clock %d: %ld s left", i, (long)got.it_value.tv_sec);
	}
}

CASE(timerfd_disarmed)
{
	int fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	struct itimerspec got;
	uint64_t ticks;
	restored();
	must(timerfd_gettime(fd, &got));
	same(got.it_value.tv_sec + got.it_value.tv_nsec, 0);
	same(read(fd, &ticks, 8), -1);
}

CASE(signalfd_pending)
{
	sigset_t set;
	struct signalfd_siginfo info;
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGRTMIN + 1);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	int fd = must(signalfd(-1, &set, SFD_NONBLOCK));
	must(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 77 }));
	restored();
	same(read(fd, &info, sizeof info), sizeof info);
	same(info.ssi_signo, SIGRTMIN + 1);
	same(info.ssi_int, 77);
	must(kill(getpid(), SIGHUP));
	same(read(fd, &info, sizeof info), sizeof info);
	same(info.ssi_signo, SIGHUP);
}

CASE(inotify_watches)
{
	char buffer[1024];
	int fd = must(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	must(mkdir(in_dir("a"), 0700));
	must(mkdir(in_dir("b"), 0700));
	int a = must(inotify_add_watch(fd, in_dir("a"), IN_CREATE)), b = must(inotify_add_watch(fd, in_dir("b"), IN_CREATE));
	must(inotify_rm_watch(fd, a));
	must(read(fd, buffer, sizeof buffer));
	int c = must(inotify_add_watch(fd, victim_dir, IN_DELETE | IN_ONLYDIR));
	restored();
	close(file("b/new", O_RDWR));
	struct inotify_event *event = (void *)buffer;
	holds(read(fd, buffer, sizeof buffer) > 0);
	same(event->wd, b);
	same(event->mask, IN_CREATE);
	holds(!strcmp(event->name, "new"));
	close(file("x", O_RDWR));
	must(unlink(in_dir("x")));
	holds(read(fd, buffer, sizeof buffer) > 0);
	same(event->wd, c);
}

CASE(inotify_next_watch)
{
	int fd = must(inotify_init1(0));
	must(inotify_add_watch(fd, victim_dir, IN_CREATE));
	must(mkdir(in_dir("a"), 0700));
	restored();
	same(inotify_add_watch(fd, in_dir("a"), IN_CREATE), 2);
}

CASE(inotify_one_shot)
{
	char buffer[1024];
	int fd = must(inotify_init1(IN_NONBLOCK));
	must(inotify_add_watch(fd, victim_dir, IN_DELETE | IN_ONESHOT));
	restored();
	close(file("x", O_RDWR));
	must(unlink(in_dir("x")));
	holds(read(fd, buffer, sizeof buffer) > 0);
	close(file("x", O_RDWR));
	must(unlink(in_dir("x")));
	same(read(fd, buffer, sizeof buffer), -1);
}

CASE(inotify_no_restore_events)
{
	char buffer[4096];
	int fd = must(inotify_init1(IN_NONBLOCK));
	close(file("quiet", O_RDWR));
	must(mkdir(in_dir("q"), 0700));
	int held = file("q/x", O_RDWR);
	must(inotify_add_watch(fd, in_dir("quiet"), IN_ALL_EVENTS));
	must(inotify_add_watch(fd, in_dir("q"), IN_ALL_EVENTS));
	restored();
	same(read(fd, buffer, sizeof buffer), -1);
	holds(held >= 0);
}

CASE(inotify_outside_subvolume)
{
	char buffer[1024];
	int fd = must(inotify_init1(IN_NONBLOCK));
	must(inotify_add_watch(fd, "/etc", IN_ATTRIB));
	must(inotify_add_watch(fd, "/tmp", IN_CREATE));
	restored();
	char name[] = "/tmp/case-XXXXXX";
	must(mkstemp(name));
	holds(read(fd, buffer, sizeof buffer) > 0);
	unlink(name);
}

REFUSED(inotify_of_removed_file, "inotify-watch")
{
	char buffer[1024];
	int fd = must(inotify_init1(IN_NONBLOCK));
	int open_one = file("x", O_RDWR);
	must(inotify_add_watch(fd, in_dir("x"), IN_CLOSE_WRITE | IN_MODIFY));
	must(unlink(in_dir("x")));
	while (read(fd, buffer, sizeof buffer) > 0)
		;
	restored();
	put(open_one, "x");
	holds(read(fd, buffer, sizeof buffer) > 0);
}

CASE(inotify_of_moved_file)
{
	char buffer[1024];
	int fd = must(inotify_init1(IN_NONBLOCK));
	close(file("x", O_RDWR));
	must(inotify_add_watch(fd, in_dir("x"), IN_MODIFY));
	must(rename(in_dir("x"), in_dir("y")));
	restored();
	put(file("y", O_WRONLY), "changed");
	holds(read(fd, buffer, sizeof buffer) > 0);
}

static int fanotify_says(int fd, uint64_t mask, const char *name)
{
	char buffer[4096], link[300], path[64];
	ssize_t got;
	int said = 0;
	while ((got = read(fd, buffer, sizeof buffer)) > 0) {
		struct fanotify_event_metadata *event = (void *)buffer;
		for (; FAN_EVENT_OK(event, got); event = FAN_EVENT_NEXT(event, got)) {
			snprintf(path, sizeof path, "/proc/self/fd/%d", event->fd);
			ssize_t len = readlink(path, link, sizeof link - 1);
			link[len < 0 ? 0 : len] = 0;
			said += event->mask & mask && len > 0 && !strcmp(strrchr(link, '/') + 1, name);
			close(event->fd);
		}
	}
	return said;
}

CASE(fanotify_ignored_file)
{
	int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);
	if (fd < 0)
		cannot("no fanotify");
	close(file("a", O_RDWR));
	must(fanotify_mark(fd, FAN_MARK_ADD, FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD, AT_FDCWD, victim_dir));
	must(fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_CLOSE_WRITE,
			   AT_FDCWD, in_dir("a")));
	restored();
	fanotify_says(fd, 0, "");
	close(file("a", O_RDWR));
	close(file("b", O_RDWR));
	same(fanotify_says(fd, FAN_CLOSE_WRITE, "b"), 1);
	close(file("a", O_RDWR));
	same(fanotify_says(fd, FAN_CLOSE_WRITE, "a"), 0);
	must(fanotify_mark(fd, FAN_MARK_REMOVE, FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD, AT_FDCWD, victim_dir));
	close(file("b", O_RDWR));
	same(fanotify_says(fd, FAN_CLOSE_WRITE, "b"), 0);
}

CASE(fanotify_mount_mark)
{
	int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		cannot("no fanotify");
	must(fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, AT_FDCWD, victim_dir));
	restored();
	fanotify_says(fd, 0, "");
	close(file("m", O_RDWR));
	same(fanotify_says(fd, FAN_CLOSE_WRITE, "m"), 1);
	same(fcntl(fd, F_GETFD), FD_CLOEXEC);
}

REFUSED(fanotify_permission, "fanotify")
{
	int fd = fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK, O_RDONLY);
	if (fd < 0)
		cannot("no fanotify");
	restored();
}

CASE(fanotify_inode_mark)
{
	char buffer[1024];
	int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_REPORT_FID, O_RDONLY);
	if (fd < 0)
		cannot("no fanotify");
	if (fanotify_mark(fd, FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR, AT_FDCWD, victim_dir))
		cannot("no fanotify on this file system");
	while (read(fd, buffer, sizeof buffer) > 0)
		;
	restored();
	while (read(fd, buffer, sizeof buffer) > 0)
		;
	close(file("new", O_RDWR));
	holds(read(fd, buffer, sizeof buffer) > 0);
}

/* pidfd and /proc */

CASE(pidfd_self)
{
	int fd = must(syscall(SYS_pidfd_open, getpid(), 0));
	restored();
	same(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), 0);
}

/* PIDFD_THREAD. */
CASE(pidfd_of_a_thread)
{
	int fd = syscall(SYS_pidfd_open, getpid(), O_EXCL);
	if (fd < 0)
		cannot("no PIDFD_THREAD");
	restored();
	holds(fcntl(fd, F_GETFL) & O_EXCL);
	same(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), 0);
}

CASE(pidfd_child)
{
	struct child child = spawn(NULL, NULL);
	int fd = must(syscall(SYS_pidfd_open, child.pid, 0));
	restored();
	holds(!readable_now(fd));
	must(syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0));
	holds(readable_soon(fd));
	siginfo_t info;
	same(waitid(P_PIDFD, fd, &info, WEXITED), 0);
	same(info.si_pid, child.pid);
}

CASE(pidfd_zombie)
{
	pid_t pid = must(fork());
	if (!pid)
		_exit(3);
	int fd = must(syscall(SYS_pidfd_open, pid, 0));
	holds(readable_soon(fd));
	siginfo_t info;
	restored();
	holds(readable_now(fd));
	same(waitid(P_PIDFD, fd, &info, WEXITED), 0);
	same(info.si_status, 3);
}

CASE(pidfd_reaped)
{
	pid_t pid = must(fork());
	if (!pid)
		_exit(3);
	int fd = must(syscall(SYS_pidfd_open, pid, 0));
	must(waitpid(pid, NULL, 0));
	restored();
	holds(readable_now(fd));
	same(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), -1);
	same(errno, ESRCH);
}

CASE(proc_self_status)
{
	char text[4096] = "";
	int fd = must(open("/proc/self/status", O_RDONLY));
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0);
	holds(strstr(text, "Name:\tcase-files"));
}

CASE(proc_self_maps)
{
	char text[64] = "";
	int fd = must(open("/proc/self/maps", O_RDONLY));
	restored();
	holds(read(fd, text, sizeof text - 1) > 0);
}

CASE(proc_self_maps_half_read)
{
	char text[64] = "";
	int fd = must(open("/proc/self/maps", O_RDONLY));
	must(read(fd, text, 40));
	off_t at = lseek(fd, 0, SEEK_CUR);
	restored();
	same(lseek(fd, 0, SEEK_CUR), at);
	holds(read(fd, text, sizeof text - 1) > 0);
}

CASE(proc_meminfo)
{
	char text[64] = "";
	int fd = must(open("/proc/meminfo", O_RDONLY));
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0 && !strncmp(text, "MemTotal", 8));
}

CASE(proc_stat)
{
	char text[64] = "";
	int fd = must(open("/proc/stat", O_RDONLY));
	must(read(fd, text, 10));
	restored();
	must(lseek(fd, 0, SEEK_SET));
	holds(read(fd, text, sizeof text - 1) > 0);
}

CASE(proc_self_fd_directory)
{
	int fd = must(open("/proc/self/fd", O_RDONLY | O_DIRECTORY));
	restored();
	char text[16], where[64];
	snprintf(text, sizeof text, "%d", fd);
	holds(readlinkat(fd, text, where, sizeof where) > 0);
}

CASE(proc_self_directory)
{
	int fd = must(open("/proc/self", O_PATH | O_DIRECTORY)), mem = must(openat(fd, "mem", O_RDWR));
	int value = 4711, got = 0;
	restored();
	same(pread(mem, &got, sizeof got, (off_t)&value), sizeof got);
	same(got, 4711);
	same(faccessat(fd, "status", F_OK, 0), 0);
}

CASE(proc_directory)
{
	int fd = must(open("/proc", O_RDONLY | O_DIRECTORY));
	restored();
	same(faccessat(fd, "self/status", F_OK, 0), 0);
}

CASE(proc_of_child)
{
	struct child child = spawn(NULL, NULL);
	char name[64], text[512] = "";
	snprintf(name, sizeof name, "/proc/%d/stat", child.pid);
	int fd = must(open(name, O_RDONLY));
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0);
	same(atoi(text), child.pid);
}

CASE(proc_of_thread)
{
	char name[64], text[512] = "";
	snprintf(name, sizeof name, "/proc/self/task/%d/comm", gettid());
	int fd = must(open(name, O_RDWR));
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0);
}

CASE(proc_of_init)
{
	char text[512] = "";
	int fd = must(open("/proc/1/stat", O_RDONLY));
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0);
	same(atoi(text), 1);
}

REFUSED(proc_of_reaped_child, "proc-file")
{
	pid_t pid = must(fork());
	char name[64], byte;
	if (!pid)
		for (;;)
			pause();
	snprintf(name, sizeof name, "/proc/%d/stat", pid);
	int fd = must(open(name, O_RDONLY));
	must(kill(pid, SIGKILL));
	must(waitpid(pid, NULL, 0));
	restored();
	holds(fd >= 0 && (read(fd, &byte, 1) == -1 || at_once));
}

CASE(proc_net)
{
	char text[512] = "";
	int fd = must(open("/proc/net/tcp", O_RDONLY)), dev = must(open("/proc/self/net/dev", O_RDONLY));
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0);
	holds(pread(dev, text, sizeof text - 1, 0) > 0);
}

CASE(proc_sys)
{
	char text[64] = "";
	int fd = must(open("/proc/sys/kernel/ostype", O_RDONLY));
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0 && !strncmp(text, "Linux", 5));
}

CASE(sys_file)
{
	char text[64] = "";
	int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
	if (fd < 0)
		cannot("no transparent huge pages");
	restored();
	holds(pread(fd, text, sizeof text - 1, 0) > 0);
}

CASE(cgroup_file)
{
	char line[4096] = "", name[8192], text[64];
	FILE *f = fopen("/proc/self/cgroup", "r");
	while (fgets(line, sizeof line, f) && strncmp(line, "0::", 3))
		;
	line[strcspn(line, "\n")] = 0;
	snprintf(name, sizeof name, "/sys/fs/cgroup%s/cgroup.events", line + 3);
	int fd = open(name, O_RDONLY);
	if (fd < 0)
		cannot("no cgroup of version 2");
	restored();
	holds(pread(fd, text, sizeof text, 0) > 0);
}

CASE(namespace_own)
{
	char one[64] = "", two[64] = "", name[64];
	int fd = must(open("/proc/self/ns/mnt", O_RDONLY));
	restored();
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	must(readlink(name, one, sizeof one));
	must(readlink("/proc/self/ns/mnt", two, sizeof two));
	holds(!strcmp(one, two));
}

CASE(namespace_net_and_user)
{
	char one[64] = "", two[64] = "", name[64];
	int net = must(open("/proc/self/ns/net", O_RDONLY)), user = must(open("/proc/self/ns/user", O_RDONLY));
	int pid = must(open("/proc/self/ns/pid", O_RDONLY));
	restored();
	snprintf(name, sizeof name, "/proc/self/fd/%d", net);
	must(readlink(name, one, sizeof one));
	must(readlink("/proc/self/ns/net", two, sizeof two));
	holds(!strcmp(one, two));
	holds(user >= 0 && pid >= 0);
}

/* memfd, AIO, and what cannot be */

CASE(memfd)
{
	int fd = must(memfd_create("a name", MFD_CLOEXEC));
	put(fd, "in memory");
	must(lseek(fd, 3, SEEK_SET));
	restored();
	reads(fd, "memory");
	char name[64], link[64] = "";
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	must(readlink(name, link, sizeof link));
	holds(!strcmp(link, "/memfd:a name (deleted)"));
}

CASE(memfd_sealed)
{
	int fd = must(memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING)), all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
	put(fd, "fixed");
	must(fcntl(fd, F_ADD_SEALS, all));
	restored();
	same(fcntl(fd, F_GET_SEALS), all);
	same(write(fd, "x", 1), -1);
	must(lseek(fd, 0, SEEK_SET));
	reads(fd, "fixed");
}

CASE(memfd_without_sealing)
{
	int fd = must(memfd_create("plain", 0));
	restored();
	same(fcntl(fd, F_GET_SEALS), F_SEAL_SEAL);
	same(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), -1);
}

CASE(memfd_read_only_twin)
{
	char name[64], byte;
	int fd = must(memfd_create("twin", 0));
	put(fd, "twin");
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	int twin = must(open(name, O_RDONLY));
	restored();
	same(write(twin, "x", 1), -1);
	same(read(twin, &byte, 1), 1);
	put(fd, "more");
	char text[9] = "";
	same(pread(twin, text, 8, 0), 8);
	holds(!strcmp(text, "twinmore"));
}

CASE(memfd_sparse)
{
	struct stat status;
	int fd = must(memfd_create("sparse", 0));
	must(pwrite(fd, "x", 1, 1L << 32));
	restored();
	must(fstat(fd, &status));
	same(status.st_size, (1L << 32) + 1);
	holds(status.st_blocks < 100);
}

CASE(memfd_executed)
{
	int fd = must(memfd_create("exec-me", 0)), self = must(open("/bin/true", O_RDONLY));
	struct stat status;
	must(fstat(self, &status));
	must(sendfile(fd, self, NULL, status.st_size));
	must(fchmod(fd, 0700));
	restored();
	pid_t pid = fork();
	int result = -1;
	if (!pid) {
		char *arguments[] = { "true", NULL };
		fexecve(fd, arguments, environ);
		_exit(errno);
	}
	must(waitpid(pid, &result, 0));
	same(result, 0);
}

CASE(memfd_huge_not_mapped)
{
	int fd = memfd_create("huge", MFD_HUGETLB);
	struct stat st;
	if (fd < 0)
		cannot("no huge pages");
	restored();
	must(fstat(fd, &st));
	same(st.st_size, 0);
	same(st.st_blksize, 2 << 20);
}

CASE(memfd_huge)
{
	int fd = memfd_create("huge", MFD_HUGETLB);
	if (fd < 0)
		cannot("no huge pages");
	must(ftruncate(fd, 2 << 20));
	char *at = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		cannot("no huge pages reserved");
	strcpy(at, "huge");
	restored();
	holds(!strcmp(at, "huge"));
}

#define READERS 8
#define PLACES 1024
#define BLOCK 65536
#define BLOCKS 64

static unsigned char *places, holds_block[PLACES];
static volatile int enough_read;
static unsigned long blocks_read;

/* Reads past the page cache into places of its own; every place holds the block that was read last, and nothing else writes there. */
static void *reads_directly(void *number)
{
	unsigned long next, me = (uintptr_t)number;
	int fd = must(open(in_dir("blocks"), O_RDONLY | O_DIRECT));
	for (next = me; !enough_read; next += READERS) {
		unsigned long place = next % PLACES, block = next * 7 % BLOCKS;
		if (pread(fd, places + place * BLOCK, BLOCK, block * BLOCK) != BLOCK)
			return NULL;
		holds_block[place] = block + 1;
		__atomic_fetch_add(&blocks_read, 1, __ATOMIC_RELAXED);
	}
	close(fd);
	return number;
}

CASE(direct_reads_under_way)
{
	unsigned char *block = malloc(BLOCK);
	pthread_t threads[READERS];
	void *good;
	int fd = file("blocks", O_RDWR), i, at, wrong = 0;
	places = aligned_alloc(4096, (size_t)PLACES * BLOCK);
	for (i = 0; i < BLOCKS; i++) {
		memset(block, i + 1, BLOCK);
		same(write(fd, block, BLOCK), BLOCK);
	}
	fsync(fd);
	for (i = 0; i < READERS; i++)
		same(pthread_create(&threads[i], NULL, reads_directly, (void *)(uintptr_t)(i + READERS)), 0);
	while (__atomic_load_n(&blocks_read, __ATOMIC_RELAXED) < 4 * PLACES)
		usleep(1000);
	restored();
	enough_read = 1;
	for (i = 0; i < READERS; i++) {
		pthread_join(threads[i], &good);
		holds(good);
	}
	for (i = 0; i < PLACES; i++) {
		for (at = 0; at < BLOCK && places[(size_t)i * BLOCK + at] == holds_block[i]; at++)
			;
		wrong += at < BLOCK;
	}
	same(wrong, 0);
}

REFUSED(userfaultfd, "userfaultfd")
{
	int fd = syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */);
	if (fd < 0)
		cannot("no userfaultfd");
	restored();
}

REFUSED(perf_event, "perf-event")
{
	struct { uint32_t type, size; uint64_t config, rest[20]; } attributes = { .type = 1, .size = 112 };
	int fd = syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
	if (fd < 0)
		cannot("no perf events");
	restored();
}

REFUSED(bpf_map, "bpf")
{
	struct { uint32_t type, key, value, entries; uint64_t rest[10]; } attributes = { 2, 4, 8, 1, { 0 } };
	int fd = syscall(SYS_bpf, 0, &attributes, sizeof attributes);
	if (fd < 0)
		cannot("no bpf");
	restored();
}

REFUSED(secret_memory, "secret-memory")
{
	int fd = syscall(SYS_memfd_secret, 0);
	if (fd < 0)
		cannot("no memfd_secret");
	restored();
}

REFUSED(mount_object, "mount-object")
{
	int fd = syscall(SYS_fsopen, "tmpfs", 0);
	if (fd < 0)
		cannot("no fsopen");
	restored();
}

REFUSED(detached_mount, "path-unreachable")
{
	int fd = syscall(SYS_open_tree, AT_FDCWD, victim_dir, 1 /* OPEN_TREE_CLONE */);
	if (fd < 0)
		cannot("no open_tree");
	restored();
}

REFUSED(landlock_ruleset, "landlock")
{
	uint64_t attributes[1] = { 1 };
	int fd = syscall(444, attributes, sizeof attributes, 0);
	if (fd < 0)
		cannot("no landlock");
	restored();
}
