/* Property: a program whose executable, library and data file were replaced or removed while it ran has the old ones, as after a
 * package upgrade; its memory is locked, guard pages of its threads' stacks too. */
#include "victim.h"
#include <pthread.h>
#include <sys/mman.h>

enum { PAGE = 4096, SIZE = 40 * PAGE };

static unsigned char *library, *data;
static unsigned long program;

/* FNV-1a of a whole file. */
static unsigned long sum(const char *path)
{
	unsigned long hash = 14695981039346656037ul;
	unsigned char bytes[65536];
	ssize_t length;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	while ((length = read(fd, bytes, sizeof bytes)) > 0)
		for (ssize_t i = 0; i < length; i++)
			hash = (hash ^ bytes[i]) * 1099511628211ul;
	close(fd);
	return hash;
}

static void copy(const char *from, const char *to)
{
	unsigned char bytes[65536];
	ssize_t length;
	int in = must(open(from, O_RDONLY | O_CLOEXEC));
	int out = must(open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755));
	while ((length = must(read(in, bytes, sizeof bytes))) > 0)
		must(write(out, bytes, length));
	must(close(in));
	must(close(out));
}

static unsigned char *mapped(const char *name, int flags, int protection)
{
	int fd = must(open(in_dir(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	for (int page = 0; page < SIZE / PAGE; page++) {
		unsigned char bytes[PAGE];
		memset(bytes, page + 1, sizeof bytes);
		must(write(fd, bytes, sizeof bytes));
	}
	void *place = mmap(NULL, SIZE, protection, flags, fd, 0);
	must(place == MAP_FAILED ? -1 : 0);
	must(close(fd));
	return place;
}

static void *wait_for_ever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void change(void)
{
	data[5 * PAGE] = (unsigned char)(generation + 1);
}

static void verify(void)
{
	char path[4096] = "", line[512];
	unsigned long locked = 0;
	expect(sum("/proc/self/exe") == program, "the executable is another one");
	expect(readlink("/proc/self/exe", path, sizeof path - 1) > 0 && strstr(path, "(deleted)"),
	       "the executable has a name: %s", path);
	for (int page = 0; page < SIZE / PAGE; page++) {
		expect(library[page * PAGE + 7] == page + 1, "page %d of the library differs", page);
		expect(data[page * PAGE + 7] == page + 1, "page %d of the data differs", page);
	}
	expect(data[5 * PAGE] == generation, "the removed file holds %d", data[5 * PAGE]);
	FILE *status = fopen("/proc/self/status", "re");
	while (status && fgets(line, sizeof line, status))
		if (sscanf(line, "VmLck: %lu", &locked) == 1)
			break;
	if (status)
		fclose(status);
	expect(locked > 1000, "only %lu kB are locked", locked);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	victim(argc, argv);
	if (argc == 2) {
		copy("/proc/self/exe", in_dir("program"));
		execl(in_dir("program"), "program", victim_dir, "copied", NULL);
		must(-1);
	}
	library = mapped("library", MAP_PRIVATE, PROT_READ | PROT_EXEC);
	data = mapped("data", MAP_SHARED, PROT_READ | PROT_WRITE);
	program = sum("/proc/self/exe");
	write_file("upgraded", "#!/bin/sh\n");
	must(rename(in_dir("upgraded"), in_dir("program")));
	write_file("upgraded", "something else\n");
	must(rename(in_dir("upgraded"), in_dir("library")));
	must(unlink(in_dir("data")));
	must(pthread_create(&thread, NULL, wait_for_ever, NULL) ? -1 : 0);
	must(mlockall(MCL_CURRENT | MCL_FUTURE));
	generation = -1;
	change();
	return serve(change, verify);
}
