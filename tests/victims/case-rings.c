/* Properties of io_uring(7), with the system calls alone: what a library keeps of a ring's counters is then what the kernel says. */
#include "case.h"
#include <linux/io_uring.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#define SQE128 (1U << 10)
#define CQE32 (1U << 11)
#define NO_SQARRAY (1U << 16)

struct ring {
	int fd;
	unsigned entries, mask, cq_entries, cq_mask, *head, *tail, *array, *cq_head, *cq_tail;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	/* As a library keeps them. */
	unsigned next;
};

static struct ring *setup(unsigned entries, unsigned flags)
{
	struct io_uring_params p = { .flags = flags };
	struct ring *r = calloc(1, sizeof *r);
	char *memory;
	size_t size;
	r->fd = syscall(SYS_io_uring_setup, entries, &p);
	if (r->fd < 0)
		cannot("no such io_uring");
	size = p.cq_off.cqes + p.cq_entries * sizeof *r->cqes;
	if (!(flags & NO_SQARRAY) && size < p.sq_off.array + p.sq_entries * 4)
		size = p.sq_off.array + p.sq_entries * 4;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	holds(memory != MAP_FAILED);
	size = p.sq_entries * (flags & SQE128 ? 128 : 64);
	r->sqes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	holds(r->sqes != MAP_FAILED);
	r->entries = p.sq_entries, r->cq_entries = p.cq_entries;
	r->mask = p.sq_entries - 1, r->cq_mask = p.cq_entries - 1;
	r->head = (unsigned *)(memory + p.sq_off.head), r->tail = (unsigned *)(memory + p.sq_off.tail);
	r->array = flags & NO_SQARRAY ? NULL : (unsigned *)(memory + p.sq_off.array);
	r->cq_head = (unsigned *)(memory + p.cq_off.head), r->cq_tail = (unsigned *)(memory + p.cq_off.tail);
	r->cqes = (struct io_uring_cqe *)(memory + p.cq_off.cqes);
	return r;
}

/* The next entry, zeroed, which fill() makes visible. */
static struct io_uring_sqe *entry(struct ring *r, int opcode, uint64_t data)
{
	struct io_uring_sqe *sqe = &r->sqes[r->next & r->mask];
	holds(r->next - __atomic_load_n(r->head, __ATOMIC_ACQUIRE) < r->entries);
	memset(sqe, 0, sizeof *sqe);
	sqe->opcode = opcode;
	sqe->fd = -1;
	sqe->user_data = data;
	if (r->array)
		r->array[r->next & r->mask] = r->next & r->mask;
	r->next++;
	return sqe;
}

static void fill(struct ring *r)
{
	__atomic_store_n(r->tail, r->next, __ATOMIC_RELEASE);
}

static int enter(struct ring *r, unsigned submit, unsigned wait)
{
	return syscall(SYS_io_uring_enter, r->fd, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

struct done {
	uint64_t user_data;
	int32_t res;
	uint32_t flags;
};

/* The next completion, which must be there. */
static struct done reap(struct ring *r)
{
	struct done cqe;
	unsigned head = *r->cq_head;
	holds(head != __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE));
	memcpy(&cqe, &r->cqes[head & r->cq_mask], sizeof cqe);
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	return cqe;
}

/* So many requests of no effect, one by one, each checked. */
static void nops(struct ring *r, unsigned count, uint64_t data)
{
	unsigned i;
	for (i = 0; i < count; i++) {
		entry(r, IORING_OP_NOP, data + i);
		fill(r);
		same(enter(r, 1, 1), 1);
		same(reap(r).user_data, data + i);
	}
}

static int file(const char *name)
{
	return must(open(in_dir(name), O_RDWR | O_CREAT | O_CLOEXEC, 0640));
}

/* A write and a read of a file, by the ring. */
static void used(struct ring *r)
{
	char out[16] = "by the ring", in[16] = "";
	int fd = file("used");
	struct io_uring_sqe *sqe = entry(r, IORING_OP_WRITE, 1000);
	sqe->fd = fd, sqe->addr = (uintptr_t)out, sqe->len = sizeof out;
	sqe->flags = IOSQE_IO_LINK;
	sqe = entry(r, IORING_OP_READ, 1001);
	sqe->fd = fd, sqe->addr = (uintptr_t)in, sqe->len = sizeof in;
	fill(r);
	same(enter(r, 2, 2), 2);
	same(reap(r).res, 16);
	same(reap(r).res, 16);
	holds(!strcmp(in, out));
	close(fd);
}

CASE(ring)
{
	struct ring *r = setup(8, 0);
	unsigned tail;
	nops(r, 1003, 7);
	tail = *r->tail;
	restored();
	same(*r->head, tail);
	same(*r->tail, tail);
	same(*r->cq_tail, 1003);
	nops(r, 100, 70000);
	used(r);
}

CASE(ring_never_used)
{
	struct ring *r = setup(8, 0);
	restored();
	nops(r, 20, 1);
	used(r);
}

CASE(ring_without_array)
{
	struct ring *r = setup(8, NO_SQARRAY);
	nops(r, 11, 1);
	restored();
	nops(r, 20, 1);
	used(r);
}

CASE(ring_large)
{
	struct ring *r = setup(4096, 0), *s = setup(4096, NO_SQARRAY);
	nops(r, 5000, 1);
	nops(s, 5000, 1);
	restored();
	nops(r, 5000, 1);
	nops(s, 5000, 1);
	used(r);
	used(s);
}

CASE(ring_completions_unread)
{
	struct ring *r = setup(8, 0);
	unsigned i;
	nops(r, 21, 1);
	for (i = 0; i < 13; i++) {
		entry(r, IORING_OP_NOP, 500 + i);
		fill(r);
		same(enter(r, 1, 0), 1);
	}
	restored();
	/* There is room for three more, and none of those that wait is lost. */
	for (; i < 16; i++) {
		entry(r, IORING_OP_NOP, 500 + i);
		fill(r);
		same(enter(r, 1, 0), 1);
	}
	for (i = 0; i < 16; i++)
		same(reap(r).user_data, 500 + i);
	same(*r->cq_head, *r->cq_tail);
	nops(r, 40, 1);
}

CASE(ring_entries_not_submitted)
{
	struct ring *r = setup(8, 0);
	char text[6] = "";
	int fd = file("f");
	struct io_uring_sqe *sqe;
	put(fd, "hello");
	nops(r, 6, 1);
	entry(r, IORING_OP_NOP, 60);
	sqe = entry(r, IORING_OP_READ, 61);
	sqe->fd = fd, sqe->addr = (uintptr_t)text, sqe->len = 5, sqe->off = 0;
	entry(r, IORING_OP_NOP, 62);
	fill(r);
	restored();
	same(enter(r, 3, 3), 3);
	same(reap(r).user_data, 60);
	holds(reap(r).user_data + reap(r).user_data == 61 + 62);
	holds(!strcmp(text, "hello"));
	nops(r, 20, 1);
}

static void *waits(void *ring)
{
	struct ring *r = ring;
	return (void *)(intptr_t)(syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 0 && reap(r).user_data == 77);
}

CASE(ring_waited_for)
{
	struct ring *r = setup(8, 0);
	pthread_t thread;
	void *good;
	nops(r, 5, 1);
	same(pthread_create(&thread, NULL, waits, r), 0);
	usleep(50000);
	restored();
	entry(r, IORING_OP_NOP, 77);
	fill(r);
	same(enter(r, 1, 0), 1);
	pthread_join(thread, &good);
	holds(good);
}

CASE(ring_waited_for_with_limit)
{
	struct ring *r = setup(8, 0);
	struct __kernel_timespec limit = { .tv_sec = 2 };
	struct io_uring_getevents_arg arg = { .ts = (uintptr_t)&limit };
	pid_t child;
	nops(r, 5, 1);
	child = must(fork());
	if (!child) {
		/* Its own mapping of the shared ring; only it waits. */
		int answer = syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
		_exit(answer == -1 && errno == ETIME ? 0 : 1);
	}
	usleep(100000);
	restored();
	int status;
	same(waitpid(child, &status, 0), child);
	same(status, 0);
}

CASE(ring_shared_by_fork)
{
	struct ring *r = setup(8, 0);
	int go[2], status;
	pid_t child;
	char c;
	nops(r, 9, 1);
	must(pipe(go));
	child = must(fork());
	if (!child) {
		close(go[1]);
		if (read(go[0], &c, 1) != 1)
			_exit(1);
		entry(r, IORING_OP_NOP, 4711);
		fill(r);
		_exit(enter(r, 1, 0) == 1 ? 0 : 2);
	}
	restored();
	must(write(go[1], "x", 1));
	same(waitpid(child, &status, 0), child);
	same(status, 0);
	same(reap(r).user_data, 4711);
	r->next++;
	nops(r, 30, 1);
}

CASE(ring_in_epoll)
{
	struct ring *r = setup(8, 0);
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 5 };
	int epoll = must(epoll_create1(0));
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, r->fd, &event));
	nops(r, 5, 1);
	restored();
	same(epoll_wait(epoll, &event, 1, 0), 0);
	entry(r, IORING_OP_NOP, 1);
	fill(r);
	same(enter(r, 1, 0), 1);
	same(epoll_wait(epoll, &event, 1, 1000), 1);
	same(event.data.u64, 5);
}

/* Requests that block are worked off by threads of the kernel, which are threads of this process for some seconds. */
CASE(ring_with_workers)
{
	struct ring *r = setup(8, 0);
	int fd = file("f"), i;
	for (i = 0; i < 4; i++) {
		struct io_uring_sqe *sqe = entry(r, IORING_OP_FALLOCATE, 1);
		sqe->fd = fd, sqe->off = i * 4096, sqe->addr = 4096;
	}
	fill(r);
	same(enter(r, 4, 4), 4);
	for (i = 0; i < 4; i++)
		same(reap(r).res, 0);
	restored();
	for (i = 0; i < 4; i++) {
		struct io_uring_sqe *sqe = entry(r, IORING_OP_FSYNC, 1);
		sqe->fd = fd, sqe->flags = IOSQE_ASYNC;
	}
	fill(r);
	same(enter(r, 4, 4), 4);
	for (i = 0; i < 4; i++)
		same(reap(r).res, 0);
}

#define RINGS 40

CASE(ring_many)
{
	struct ring *r[RINGS];
	int i;
	for (i = 0; i < RINGS; i++) {
		r[i] = setup(1 << i % 8, i % 3 ? 0 : IORING_SETUP_CLAMP);
		nops(r[i], 3 * i + 2, i);
	}
	restored();
	for (i = 0; i < RINGS; i++)
		nops(r[i], 300, i);
}

CASE(ring_mapping_kept_from_children)
{
	struct ring *r = setup(64, 0);
	must(madvise(r->sqes, 64 * sizeof *r->sqes, MADV_DONTFORK));
	nops(r, 9, 1);
	restored();
	nops(r, 9, 1);
	pid_t child = must(fork());
	int status;
	if (!child)
		_exit(mincore(r->sqes, 4096, (unsigned char[1]){ 0 }) == -1 && errno == ENOMEM ? 0 : 1);
	same(waitpid(child, &status, 0), child);
	same(status, 0);
}

#define DEPTH 16
#define BLOCK 65536
#define BLOCKS 64

static volatile int enough;
static unsigned long written;
/* Submits what is in the queue, and waits for a completion. */
static int submit(struct ring *r)
{
	fill(r);
	return enter(r, r->next - *r->head, 1) >= 0 || errno == EINTR;
}

static unsigned char stamp[BLOCKS], holds_block[1024], *buffers[DEPTH], *places;

/* Writes block after block past the page cache, as many at a time as there are buffers, until it is enough; remembers what must be there. */
static void *writes(void *ring)
{
	struct ring *r = ring;
	int fd = must(open(in_dir("blocks"), O_RDWR | O_CREAT | O_DIRECT, 0600)), busy = 0, i;
	unsigned char block_of[DEPTH], is_busy[DEPTH] = { 0 };
	unsigned long next = 0;
	for (i = 0; i < DEPTH; i++)
		buffers[i] = aligned_alloc(4096, BLOCK);
	while (busy || !enough) {
		for (i = 0; i < DEPTH && !enough; i++) {
			struct io_uring_sqe *sqe;
			if (is_busy[i])
				continue;
			sqe = entry(r, IORING_OP_WRITE, i);
			block_of[i] = next % BLOCKS;
			memset(buffers[i], next / BLOCKS, BLOCK);
			sqe->fd = fd, sqe->addr = (uintptr_t)buffers[i], sqe->len = BLOCK, sqe->off = (uint64_t)block_of[i] * BLOCK;
			is_busy[i] = 1, busy++, next++;
		}
		if (!submit(r))
			return NULL;
		while (*r->cq_head != __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
			struct done cqe = reap(r);
			if (cqe.res != BLOCK)
				return NULL;
			stamp[block_of[cqe.user_data]] = buffers[cqe.user_data][0];
			is_busy[cqe.user_data] = 0, busy--, written++;
		}
	}
	close(fd);
	return r;
}

CASE(ring_writes_under_way)
{
	struct ring *r = setup(64, 0);
	unsigned char *block = malloc(BLOCK);
	unsigned long before;
	pthread_t thread;
	void *good;
	int fd, i, at;
	same(pthread_create(&thread, NULL, writes, r), 0);
	while (__atomic_load_n(&written, __ATOMIC_RELAXED) < 4 * BLOCKS)
		usleep(1000);
	restored();
	before = __atomic_load_n(&written, __ATOMIC_RELAXED);
	while (__atomic_load_n(&written, __ATOMIC_RELAXED) < before + 2 * BLOCKS)
		usleep(1000);
	enough = 1;
	pthread_join(thread, &good);
	holds(good);
	fd = must(open(in_dir("blocks"), O_RDONLY));
	for (i = 0; i < BLOCKS; i++) {
		same(pread(fd, block, BLOCK, (off_t)i * BLOCK), BLOCK);
		for (at = 0; at < BLOCK; at++)
			same(block[at], stamp[i]);
	}
}

#define PLACES 1024

/* Reads blocks past the page cache into more memory than a checkpoint leaves for its window, many at a time; every place holds the block that
 * was read last, and nothing else writes there. */
static void *reads_blocks(void *ring)
{
	struct ring *r = ring;
	int fd = must(open(in_dir("blocks"), O_RDWR | O_CREAT | O_DIRECT, 0600)), busy = 0;
	unsigned long next = 0;
	unsigned char is_busy[PLACES] = { 0 };
	while (busy || !enough) {
		while (busy < DEPTH && !enough && !is_busy[next % PLACES]) {
			struct io_uring_sqe *sqe = entry(r, IORING_OP_READ, next);
			sqe->fd = fd, sqe->addr = (uintptr_t)(places + next % PLACES * BLOCK), sqe->len = BLOCK;
			sqe->off = (uint64_t)(next * 7 % BLOCKS) * BLOCK;
			holds_block[next % PLACES] = 0;
			is_busy[next % PLACES] = 1, busy++, next++;
		}
		if (!submit(r))
			return NULL;
		while (*r->cq_head != __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
			struct done cqe = reap(r);
			if (cqe.res != BLOCK)
				return NULL;
			holds_block[cqe.user_data % PLACES] = 1 + cqe.user_data * 7 % BLOCKS;
			is_busy[cqe.user_data % PLACES] = 0, busy--, written++;
		}
	}
	close(fd);
	return r;
}

CASE(ring_reads_under_way)
{
	struct ring *r = setup(64, 0);
	unsigned char *block = malloc(BLOCK);
	pthread_t thread;
	void *good;
	int fd = file("blocks"), i, at, wrong = 0;
	places = aligned_alloc(4096, (size_t)PLACES * BLOCK);
	for (i = 0; i < BLOCKS; i++) {
		memset(block, i + 1, BLOCK);
		same(write(fd, block, BLOCK), BLOCK);
	}
	fsync(fd);
	same(pthread_create(&thread, NULL, reads_blocks, r), 0);
	while (__atomic_load_n(&written, __ATOMIC_RELAXED) < 4 * PLACES)
		usleep(1000);
	restored();
	enough = 1;
	pthread_join(thread, &good);
	holds(good);
	for (i = 0; i < PLACES; i++) {
		for (at = 0; at < BLOCK && places[(size_t)i * BLOCK + at] == holds_block[i]; at++)
			;
		wrong += at < BLOCK;
	}
	same(wrong, 0);
}

/* What waits for longer than a checkpoint does. */

REFUSED(ring_polls, "io-uring")
{
	struct ring *r = setup(8, 0);
	struct io_uring_sqe *sqe = entry(r, IORING_OP_POLL_ADD, 1);
	sqe->fd = must(eventfd(0, 0)), sqe->poll32_events = POLLIN;
	fill(r);
	same(enter(r, 1, 0), 1);
	restored();
}

REFUSED(ring_reads_a_pipe, "io-uring")
{
	static char text[8];
	struct ring *r = setup(8, 0);
	int ends[2];
	must(pipe(ends));
	struct io_uring_sqe *sqe = entry(r, IORING_OP_READ, 1);
	sqe->fd = ends[0], sqe->addr = (uintptr_t)text, sqe->len = sizeof text;
	fill(r);
	same(enter(r, 1, 0), 1);
	restored();
}

REFUSED(ring_has_a_timeout, "!completed")
{
	static struct __kernel_timespec long_time = { .tv_sec = 1000 };
	struct ring *r = setup(8, 0);
	struct io_uring_sqe *sqe = entry(r, IORING_OP_TIMEOUT, 1);
	sqe->addr = (uintptr_t)&long_time, sqe->len = 1;
	fill(r);
	same(enter(r, 1, 0), 1);
	restored();
}

REFUSED(ring_polls_again_and_again, "io-uring")
{
	struct ring *r = setup(8, 0);
	struct io_uring_sqe *sqe = entry(r, IORING_OP_POLL_ADD, 1);
	int event = must(eventfd(0, 0));
	sqe->fd = event, sqe->poll32_events = POLLIN, sqe->len = IORING_POLL_ADD_MULTI;
	fill(r);
	same(enter(r, 1, 0), 1);
	same(eventfd_write(event, 1), 0);
	same(enter(r, 0, 1), 0);
	same(reap(r).user_data, 1);
	restored();
}

REFUSED(ring_without_completions, "io-uring")
{
	struct ring *r = setup(8, 0);
	entry(r, IORING_OP_NOP, 1)->flags = 1 << 6 /* IOSQE_CQE_SKIP_SUCCESS */;
	fill(r);
	same(enter(r, 1, 0), 1);
	restored();
}

REFUSED(ring_polled_by_the_kernel, "io-uring")
{
	setup(8, IORING_SETUP_SQPOLL);
	restored();
}

REFUSED(ring_of_one_thread, "io-uring")
{
	setup(8, IORING_SETUP_SINGLE_ISSUER);
	restored();
}

REFUSED(ring_not_enabled, "io-uring")
{
	setup(8, IORING_SETUP_R_DISABLED);
	restored();
}

REFUSED(ring_with_large_entries, "io-uring")
{
	setup(64, SQE128);
	restored();
}

REFUSED(ring_with_large_completions, "io-uring")
{
	setup(128, CQE32);
	restored();
}

static void registered(unsigned what, void *argument, unsigned count)
{
	struct ring *r = setup(8, 0);
	nops(r, 3, 1);
	if (syscall(SYS_io_uring_register, r->fd, what, argument, count) < 0)
		cannot("it cannot be registered");
	restored();
}

REFUSED(ring_with_files, "io-uring")
{
	registered(IORING_REGISTER_FILES, (int[1]){ file("f") }, 1);
}

REFUSED(ring_with_buffers, "io-uring")
{
	static char buffer[4096];
	registered(IORING_REGISTER_BUFFERS, &(struct iovec){ buffer, sizeof buffer }, 1);
}

REFUSED(ring_with_an_eventfd, "io-uring")
{
	registered(IORING_REGISTER_EVENTFD, (int[1]){ must(eventfd(0, 0)) }, 1);
}

REFUSED(ring_with_provided_buffers, "io-uring")
{
	uint64_t *argument = calloc(5, 8);
	argument[0] = (uintptr_t)aligned_alloc(4096, 4096);
	((uint32_t *)argument)[2] = 8;
	((uint16_t *)argument)[6] = 3;
	registered(22 /* IORING_REGISTER_PBUF_RING */, argument, 1);
}

REFUSED(ring_known_by_a_number, "!registered")
{
	struct ring *r = setup(8, 0);
	struct { uint32_t offset, resv; uint64_t data; } one = { ~0U, 0, r->fd };
	if (syscall(SYS_io_uring_register, r->fd, 20 /* IORING_REGISTER_RING_FDS */, &one, 1) < 0)
		cannot("it cannot be registered");
	restored();
}

REFUSED(ring_whose_descriptor_is_closed, "!io_uring")
{
	close(setup(8, 0)->fd);
	restored();
}
