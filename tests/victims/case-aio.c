/* Properties of kernel AIO (io_setup(2)), with the system calls alone, and by the functions that libaio has. */
#include "case.h"
#include <dlfcn.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

/* The ring's head, as fs/aio.c has it and programs read it. */
struct ring {
	unsigned id, nr, head, tail, magic, compat, incompat, length;
	struct io_event events[];
};

static struct ring *ring_of(aio_context_t context)
{
	struct ring *ring = (struct ring *)context;
	same(ring->magic, 0xa10a10a1);
	return ring;
}

static aio_context_t setup(unsigned events)
{
	aio_context_t context = 0;
	if (syscall(SYS_io_setup, events, &context))
		cannot("no kernel AIO");
	ring_of(context);
	return context;
}

static int getevents(aio_context_t context, long least, long most, struct io_event *events)
{
	struct timespec none = { 0, 0 };
	return syscall(SYS_io_getevents, context, least, most, events, least ? NULL : &none);
}

static int file(const char *name, int flags)
{
	return must(open(in_dir(name), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0640));
}

static void submit(aio_context_t context, struct iocb *request)
{
	same(syscall(SYS_io_submit, context, 1, &request), 1);
}

static struct iocb of(int opcode, int fd, void *memory, size_t length, long offset, uint64_t data)
{
	return (struct iocb){ .aio_data = data, .aio_lio_opcode = opcode, .aio_fildes = fd,
			      .aio_buf = (uintptr_t)memory, .aio_nbytes = length, .aio_offset = offset };
}

/* So many writes of a word each, one by one, each checked. */
static void writes(aio_context_t context, int fd, unsigned count, uint64_t data)
{
	unsigned i;
	for (i = 0; i < count; i++) {
		uint64_t word = data + i;
		struct io_event event;
		struct iocb request = of(IOCB_CMD_PWRITE, fd, &word, sizeof word, i * sizeof word, data + i);
		submit(context, &request);
		same(getevents(context, 1, 1, &event), 1);
		same(event.data, data + i);
		same(event.obj, (uintptr_t)&request);
		same(event.res, sizeof word);
	}
}

/* A context that was in use: the ring counts on from where it was, for the kernel and for who reads it. */
CASE(context)
{
	aio_context_t context = setup(8);
	int fd = file("words", 0);
	writes(context, fd, 1003, 7);
	struct ring *ring = ring_of(context), before = *ring;
	struct io_event slots[4];
	memcpy(slots, ring->events, sizeof slots);
	restored();
	same(ring_of(context)->tail, before.tail);
	same(ring->head, before.head);
	same(ring->nr, before.nr);
	holds(!memcmp(slots, ring->events, sizeof slots));
	writes(context, fd, 500, 70000);
	same(syscall(SYS_io_destroy, context), 0);
	same(syscall(SYS_io_getevents, context, 0, 0, NULL, NULL), -1);
}

CASE(context_never_used)
{
	aio_context_t context = setup(128);
	restored();
	writes(context, file("words", 0), 600, 1);
	same(syscall(SYS_io_destroy, context), 0);
}

static void unread(unsigned used, unsigned left)
{
	aio_context_t context = setup(32);
	int fd = file("words", 0);
	static uint64_t words[64];
	static struct iocb requests[64];
	unsigned i;
	writes(context, fd, used, 5);
	for (i = 0; i < left; i++) {
		words[i] = 1000 + i;
		requests[i] = of(IOCB_CMD_PWRITE, fd, &words[i], 8, i * 8, 900 + i);
		if (i % 5 == 0)
			requests[i] = of(IOCB_CMD_PREAD, file("empty", 0), &words[i], 8, 0, 900 + i);
		if (i % 5 == 1)
			requests[i] = of(IOCB_CMD_FSYNC, fd, NULL, 0, 0, 900 + i);
		submit(context, &requests[i]);
	}
	/* fsync is done by a thread of the kernel: wait for all of them, without taking any. */
	struct ring *ring = ring_of(context);
	for (i = 0; (ring->tail + ring->nr - ring->head) % ring->nr < left && i < 5000; i++)
		usleep(1000);
	struct io_event before[64], after[64];
	for (i = 0; i < left; i++)
		before[i] = ring->events[(ring->head + i) % ring->nr];
	restored();
	same((ring->tail + ring->nr - ring->head) % ring->nr, left);
	same(getevents(context, 0, 64, after), left);
	holds(!memcmp(before, after, left * sizeof *after));
	same(getevents(context, 0, 64, after), 0);
	writes(context, fd, 500, 70000);
	/* As many as ever can be under way, or unread, at once. */
	for (i = 0; i < 32; i++) {
		requests[i] = of(IOCB_CMD_PREAD, fd, &words[i], 8, i * 8, i);
		submit(context, &requests[i]);
	}
	same(getevents(context, 32, 64, after), 32);
	same(syscall(SYS_io_destroy, context), 0);
}

CASE(unread_events)
{
	unread(3, 20);
}

CASE(unread_events_across_the_end)
{
	aio_context_t probe = setup(32);
	unsigned room = ring_of(probe)->nr;
	same(syscall(SYS_io_destroy, probe), 0);
	unread(3 * room - 5, 20);
}

/* Many contexts, some of which ended, others between: each is its own. */
CASE(contexts)
{
	aio_context_t all[12];
	int fd = file("words", 0), i;
	for (i = 0; i < 12; i++)
		all[i] = setup(1 << i % 8);
	for (i = 0; i < 12; i += 3)
		same(syscall(SYS_io_destroy, all[i]), 0);
	for (i = 0; i < 12; i++)
		if (i % 3)
			writes(all[i], fd, 10 * i, i);
	restored();
	for (i = 0; i < 12; i++) {
		if (!(i % 3))
			continue;
		same(ring_of(all[i])->tail, 10 * i % ring_of(all[i])->nr);
		writes(all[i], fd, 300, i * 1000);
		same(syscall(SYS_io_destroy, all[i]), 0);
	}
	writes(setup(4), fd, 10, 1);
}

static aio_context_t awaited;
static struct io_event came;

static void *waits(void *unused)
{
	(void)unused;
	return (void *)(long)syscall(SYS_io_getevents, awaited, 1, 1, &came, NULL);
}

/* A thread waits in io_getevents(2), and goes on waiting. */
CASE(waiting_for_events)
{
	pthread_t thread;
	void *got;
	int fd = file("words", 0);
	uint64_t word = 5;
	struct iocb request = of(IOCB_CMD_PWRITE, fd, &word, sizeof word, 0, 4711);
	awaited = setup(4);
	must(pthread_create(&thread, NULL, waits, NULL));
	usleep(50000);
	restored();
	submit(awaited, &request);
	must(pthread_join(thread, &got));
	same(got, 1);
	same(came.data, 4711);
}

/* And one with a limit, to its end. */
CASE(waiting_with_a_limit)
{
	aio_context_t context = setup(4);
	struct timespec limit = { 1, 500000000 }, begun, ended;
	struct io_event event;
	pid_t pid = must(fork());
	if (!pid) {
		context = setup(4);
		must(clock_gettime(CLOCK_MONOTONIC, &begun));
		int got = syscall(SYS_io_getevents, context, 1, 1, &event, &limit);
		must(clock_gettime(CLOCK_MONOTONIC, &ended));
		double took = ended.tv_sec - begun.tv_sec + (ended.tv_nsec - begun.tv_nsec) / 1e9;
		_exit(got ? 100 + errno : took < 1.4 ? 1 : 0);
	}
	usleep(100000);
	same(syscall(SYS_io_destroy, context), 0);
	int status;
	restored();
	must(waitpid(pid, &status, 0));
	same(status, 0);
}

/* Completions are told by an eventfd. */
CASE(told_by_an_eventfd)
{
	aio_context_t context = setup(8);
	int fd = file("words", 0), events = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	uint64_t word = 5, count;
	struct io_event event;
	struct iocb request = of(IOCB_CMD_PWRITE, fd, &word, sizeof word, 0, 1);
	request.aio_flags = IOCB_FLAG_RESFD;
	request.aio_resfd = events;
	submit(context, &request);
	submit(context, &request);
	restored();
	same(read(events, &count, sizeof count), sizeof count);
	same(count, 2);
	same(getevents(context, 2, 2, &event) >= 1, 1);
	submit(context, &request);
	same(read(events, &count, sizeof count), sizeof count);
	same(count, 1);
}

static volatile int enough;
static unsigned long written;
static char *blocks;

/* Writes block after block, past the page cache, several at once. */
static void *directly(void *context_of)
{
	enum { BLOCK = 4096, DEPTH = 8 };
	aio_context_t context = (aio_context_t)context_of;
	int fd = file("blocks", O_DIRECT), busy = 0, i;
	struct iocb requests[DEPTH];
	char is_busy[DEPTH] = { 0 };
	while (busy || !enough) {
		for (i = 0; i < DEPTH && !enough; i++) {
			if (is_busy[i])
				continue;
			unsigned long number = written++;
			memset(blocks + i * BLOCK, 0, BLOCK);
			memcpy(blocks + i * BLOCK, &number, sizeof number);
			requests[i] = of(IOCB_CMD_PWRITE, fd, blocks + i * BLOCK, BLOCK, number % 512 * BLOCK, i);
			submit(context, &requests[i]);
			is_busy[i] = 1, busy++;
		}
		struct io_event events[DEPTH];
		int got = getevents(context, 1, DEPTH, events);
		holds(got >= 1);
		for (i = 0; i < got; i++) {
			same(events[i].res, BLOCK);
			is_busy[events[i].data] = 0, busy--;
		}
	}
	for (unsigned long n = written > 512 ? written - 512 : 0; n < written; n++) {
		unsigned long number;
		same(pread(fd, blocks, BLOCK, n % 512 * BLOCK), BLOCK);
		memcpy(&number, blocks, sizeof number);
		same(number, n);
	}
	return NULL;
}

/* Requests are under way at any moment; a checkpoint waits for those that have begun, and each is made once. */
CASE(written_without_pause)
{
	pthread_t thread;
	blocks = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(pthread_create(&thread, NULL, directly, (void *)setup(32)));
	usleep(200000);
	restored();
	usleep(200000);
	enough = 1;
	must(pthread_join(thread, NULL));
	holds(written > 10);
}

/* Read past the page cache into memory that an incremental rests on. */
CASE(read_past_the_cache)
{
	aio_context_t context = setup(4);
	char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = file("blocks", O_DIRECT), i;
	struct io_event event;
	memset(memory, 'a', 1 << 20);
	same(pwrite(fd, memory, 1 << 20, 0), 1 << 20);
	memset(memory, 0, 1 << 20);
	struct iocb request = of(IOCB_CMD_PREAD, fd, memory, 1 << 20, 0, 0);
	submit(context, &request);
	same(getevents(context, 1, 1, &event), 1);
	same(event.res, 1 << 20);
	restored();
	for (i = 0; i < 1 << 20; i++)
		if (memory[i] != 'a')
			break;
	same(i, 1 << 20);
}

/* By libaio's functions, which the library stands before, loaded or not. */
CASE(by_functions)
{
	int (*begin)(int, aio_context_t *) = dlsym(RTLD_DEFAULT, "io_queue_init");
	int (*give)(aio_context_t, long, struct iocb **) = dlsym(RTLD_DEFAULT, "io_submit");
	int (*end)(aio_context_t) = dlsym(RTLD_DEFAULT, "io_queue_release");
	aio_context_t context = 1;
	uint64_t word = 3;
	struct io_event event;
	if (!begin || !give || !end)
		cannot("without the preload library");
	same(begin(0, &context), -EINVAL);
	same(begin(16, &context), 0);
	struct iocb request = of(IOCB_CMD_PWRITE, file("words", 0), &word, sizeof word, 0, 1), *requests = &request;
	same(give(context, 1, &requests), 1);
	requests = NULL;
	errno = 0;
	same(give(context, 1, &requests), -EFAULT);
	same(errno, 0);
	restored();
	requests = &request;
	same(getevents(context, 1, 1, &event), 1);
	same(give(context, 1, &requests), 1);
	same(getevents(context, 1, 1, &event), 1);
	same(end(context), 0);
	same(give(context, 1, &requests), -EINVAL);
}

/* A request that waits for what may never come. */
REFUSED(under_way, "!aio")
{
	aio_context_t context = setup(4);
	int ends[2];
	must(pipe2(ends, O_CLOEXEC));
	struct iocb request = of(IOCB_CMD_POLL, ends[0], (void *)POLLIN, 0, 0, 0);
	submit(context, &request);
	restored();
}

static aio_context_t of_parent;

static int without_context(void)
{
	struct iocb request = of(IOCB_CMD_PWRITE, 1, "", 0, 0, 0), *requests = &request;
	struct ring *ring = ring_of(of_parent);
	if (syscall(SYS_io_submit, of_parent, 1, &requests) != -1 || errno != EINVAL)
		return -1;
	return ring->tail;
}

/* A child has the memory of its parent's ring, and not its context. */
CASE(inherited)
{
	of_parent = setup(4);
	int fd = file("words", 0);
	writes(of_parent, fd, 3, 1);
	struct child child = spawn(NULL, without_context);
	same(ask(child), 3);
	restored();
	same(ask(child), 3);
	writes(of_parent, fd, 300, 1);
	kill(child.pid, SIGKILL);
}

/* A context whose making nobody saw. */
REFUSED(unseen, "aio")
{
	aio_context_t context = 0;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(SYS_io_setup), "D"(4), "S"(&context) : "rcx", "r11", "memory");
	same(result, 0);
	restored();
}
