/* Property: memory is what the program wrote, at any instant of a random walk over everything that changes memory.
 *
 * It walks without a pause: mmap, munmap, mremap, mprotect, madvise, brk, fork, exec, read(2) into mappings, huge pages, private file
 * mappings, shared memory, memfd, unlinked files. What it did last to each page it records in its own memory, and what it is about
 * to do: a checkpoint may come in the middle of it.
 */
#include "victim.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

enum { PAGE = 4096, WORDS = PAGE / 8, REGIONS = 24, MAX_PAGES = 2048, CHILDREN = 3, STRIPE = 16, FILE_PAGES = 32 };

enum kind { FREE, ANONYMOUS, PRIVATE_FILE, HUGE, BREAK };

/* A page holds: nothing (0, zeros or the file's content), the pattern of a version, or, after MADV_FREE, that or zeros. */
struct region {
	enum kind kind;
	int protection;
	size_t pages;
	unsigned char *base;
	uint32_t salt;
	uint32_t version[MAX_PAGES];
	unsigned char maybe[MAX_PAGES];
};

/* Shared by the whole family: each process has a stripe that only it writes. */
struct control {
	volatile int ask;
	volatile int answer[CHILDREN + 1];
	volatile int who[CHILDREN + 1];
	char failure[CHILDREN + 1][512];
};

static struct region regions[REGIONS];
static struct {
	struct region *region;
	size_t first, count;
	uint32_t version; /* 0: back to nothing */
} pending;
static uint32_t shared_version[STRIPE], memfd_version[STRIPE], file_version[STRIPE];
static int shared_pending = -1, memfd_pending = -1, file_pending = -1;
static uint32_t next_version = 1, next_salt = 1;
static uint64_t state;
static int self; /* 0: the parent */
static pid_t children[CHILDREN + 1];
static int control_fd, source_fd, memfd, unlinked_fd;
static struct control *control;
static uint64_t *shared; /* inherited, MAP_SHARED | MAP_ANONYMOUS; not by an exec */
static uint64_t *memfd_map;
static int answered;

static uint64_t draw(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static size_t below(size_t limit)
{
	return limit ? draw() % limit : 0;
}

static uint64_t word(uint32_t salt, size_t page, uint32_t version, size_t at)
{
	uint64_t x = ((uint64_t)salt << 40) ^ ((uint64_t)page << 20) ^ ((uint64_t)version << 3) ^ at;
	x *= 0x9e3779b97f4a7c15ull;
	return (x ^ x >> 29) | 1; /* never zero */
}

static uint64_t nothing(const struct region *region, size_t page, size_t at)
{
	return region->kind == PRIVATE_FILE ? word(77, page % FILE_PAGES, 1, at) : 0;
}

static void fill(uint64_t *into, uint32_t salt, size_t page, uint32_t version)
{
	for (size_t at = 0; at < WORDS; at++)
		into[at] = word(salt, page, version, at);
}

static int is_pending(const struct region *region, size_t page)
{
	return pending.region == region && page >= pending.first && page < pending.first + pending.count;
}

static void check_page(const struct region *region, size_t page)
{
	const uint64_t *have = (const uint64_t *)(region->base + page * PAGE);
	uint32_t version = region->version[page];
	int maybe = region->maybe[page], busy = is_pending(region, page);
	for (size_t at = 0; at < WORDS; at++) {
		uint64_t none = nothing(region, page, at);
		uint64_t expected = version ? word(region->salt, page, version, at) : none;
		int fine = have[at] == expected || (maybe && have[at] == none);
		if (busy)
			fine |= have[at] == (pending.version ? word(region->salt, page, pending.version, at) : none);
		expect(fine, "process %d kind %d page %zu of %zu at %p word %zu: %lx, not %lx (version %u%s%s)", self,
		       region->kind, page, region->pages, (void *)(have + at), at, have[at], expected, version,
		       maybe ? ", freed" : "", busy ? ", pending" : "");
		if (!fine)
			return;
	}
}

static void check_stripe(const char *name, const uint64_t *base, const uint32_t *versions, int busy)
{
	for (int page = 0; page < STRIPE; page++) {
		const uint64_t *have = base + ((size_t)self * STRIPE + page) * WORDS;
		if (page == busy)
			continue;
		for (size_t at = 0; at < WORDS; at++) {
			uint64_t expected = versions[page] ? word(900 + self, page, versions[page], at) : 0;
			expect(have[at] == expected, "process %d %s page %d word %zu: %lx, not %lx (version %u)", self, name,
			       page, at, have[at], expected, versions[page]);
		}
	}
}

static void check_all(void)
{
	static uint64_t content[(CHILDREN + 1) * STRIPE * WORDS];
	for (int i = 0; i < REGIONS; i++) {
		struct region *region = &regions[i];
		if (region->kind == FREE)
			continue;
		if (region->protection == PROT_NONE)
			must(mprotect(region->base, region->pages * PAGE, PROT_READ));
		for (size_t page = 0; page < region->pages; page++)
			check_page(region, page);
		if (region->protection == PROT_NONE)
			must(mprotect(region->base, region->pages * PAGE, PROT_NONE));
	}
	if (shared)
		check_stripe("shared", shared, shared_version, shared_pending);
	check_stripe("memfd", memfd_map, memfd_version, memfd_pending);
	must(pread(unlinked_fd, content, sizeof content, 0));
	check_stripe("file", content, file_version, file_pending);
}

static struct region *any(void)
{
	struct region *region = &regions[below(REGIONS)];
	return region->kind == FREE ? NULL : region;
}

static void begin(struct region *region, size_t first, size_t count, uint32_t version)
{
	pending.region = NULL;
	__asm__ volatile("" ::: "memory");
	pending.first = first;
	pending.count = count;
	pending.version = version;
	__asm__ volatile("" ::: "memory");
	pending.region = region;
	__asm__ volatile("" ::: "memory");
}

static void end(void)
{
	__asm__ volatile("" ::: "memory");
	for (size_t page = pending.first; page < pending.first + pending.count; page++) {
		pending.region->version[page] = pending.version;
		pending.region->maybe[page] = 0;
	}
	__asm__ volatile("" ::: "memory");
	pending.region = NULL;
}

/* By the program itself, by read(2), or by process_vm_writev(2). */
static void write_pages(struct region *region)
{
	static uint64_t buffer[WORDS];
	if (region->protection != (PROT_READ | PROT_WRITE))
		return;
	size_t first = below(region->pages), count = 1 + below(region->pages - first < 8 ? region->pages - first : 8);
	uint32_t version = next_version++;
	int way = below(4), pipes[2];
	begin(region, first, count, version);
	for (size_t page = first; page < first + count; page++) {
		unsigned char *place = region->base + page * PAGE;
		fill(way < 2 ? (uint64_t *)place : buffer, region->salt, page, version);
		if (way == 2) {
			must(pipe2(pipes, O_CLOEXEC));
			must(write(pipes[1], buffer, PAGE));
			must(read(pipes[0], place, PAGE));
			close(pipes[0]);
			close(pipes[1]);
		} else if (way == 3) {
			struct iovec from = { buffer, PAGE }, to = { place, PAGE };
			must(process_vm_writev(getpid(), &from, 1, &to, 1, 0));
		}
	}
	end();
}

static void make(void)
{
	struct region *region = &regions[below(REGIONS)];
	if (region->kind != FREE)
		return;
	enum kind kind = (enum kind[]){ ANONYMOUS, ANONYMOUS, PRIVATE_FILE, HUGE }[below(4)];
	size_t pages = kind == HUGE ? 1024 : kind == PRIVATE_FILE ? 1 + below(FILE_PAGES) : 1 + below(64);
	if (kind == HUGE && below(8))
		return;
	void *place = kind == PRIVATE_FILE
			      ? mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, source_fd, 0)
			      : mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(place == MAP_FAILED ? -1 : 0);
	if (kind == HUGE)
		madvise(place, pages * PAGE, MADV_HUGEPAGE);
	region->base = place;
	region->pages = pages;
	region->protection = PROT_READ | PROT_WRITE;
	region->salt = next_salt++;
	memset(region->version, 0, sizeof region->version);
	memset(region->maybe, 0, sizeof region->maybe);
	__asm__ volatile("" ::: "memory");
	region->kind = kind;
}

static void unmake(struct region *region)
{
	if (region->kind == BREAK)
		return;
	size_t keep = below(3) ? 0 : below(region->pages), all = region->pages;
	unsigned char *base = region->base;
	if (keep == 0)
		region->kind = FREE;
	else
		region->pages = keep;
	__asm__ volatile("" ::: "memory");
	must(munmap(base + keep * PAGE, (all - keep) * PAGE));
}

/* Growing adds pages of nothing; moving takes all along. The record of a region in motion is of neither place: it is taken away. */
static void move(struct region *region)
{
	enum kind kind = region->kind;
	size_t pages = region->pages + below(16);
	if (kind == BREAK || pages >= MAX_PAGES || (kind == PRIVATE_FILE && pages >= FILE_PAGES))
		return;
	region->kind = FREE;
	__asm__ volatile("" ::: "memory");
	void *place, *target = NULL;
	if (below(2)) {
		place = mremap(region->base, region->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
	} else {
		/* Growing, it is one mapping or nothing: without that, Linux 6.17 moves several, and can stop between two. */
		pages += pages == region->pages;
		target = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		must(target == MAP_FAILED ? -1 : 0);
		place = mremap(region->base, region->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	}
	if (place == MAP_FAILED) { /* EFAULT: the kernel keeps it as several mappings, and moves only one */
		must(errno == EFAULT ? 0 : -1);
		if (target)
			munmap(target, pages * PAGE);
		region->kind = kind;
		return;
	}
	for (size_t page = region->pages; page < pages; page++)
		region->version[page] = region->maybe[page] = 0;
	region->base = place;
	region->pages = pages;
	__asm__ volatile("" ::: "memory");
	region->kind = kind;
}

static void protect(struct region *region)
{
	int protection = (int[]){ PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE }[below(4)];
	if (region->kind == BREAK)
		return;
	size_t part = below(region->pages);
	must(mprotect(region->base + part * PAGE, (region->pages - part) * PAGE, protection)); /* in two pieces for a moment */
	must(mprotect(region->base, region->pages * PAGE, protection));
	region->protection = protection;
}

static void advise(struct region *region)
{
	size_t first = below(region->pages), count = 1 + below(region->pages - first);
	if (region->protection != (PROT_READ | PROT_WRITE))
		return;
	if (region->kind == PRIVATE_FILE || below(2)) {
		begin(region, first, count, 0);
		must(madvise(region->base + first * PAGE, count * PAGE, MADV_DONTNEED));
		end();
	} else {
		memset(region->maybe + first, 1, count);
		__asm__ volatile("" ::: "memory");
		must(madvise(region->base + first * PAGE, count * PAGE, MADV_FREE));
	}
}

/* Looked at only: the zero page, or the page of the file. */
static void look(struct region *region)
{
	if (region->protection != PROT_NONE)
		check_page(region, below(region->pages));
}

static void change_break(void)
{
	struct region *region = &regions[0];
	size_t pages = 1 + below(64);
	unsigned char *base = region->base;
	if (pages < region->pages)
		region->pages = pages;
	__asm__ volatile("" ::: "memory");
	must(syscall(SYS_brk, base + pages * PAGE) == (long)(base + pages * PAGE) ? 0 : -1);
	for (size_t page = region->pages; page < pages; page++)
		region->version[page] = region->maybe[page] = 0;
	__asm__ volatile("" ::: "memory");
	region->pages = pages;
}

static void write_shared(void)
{
	static uint64_t buffer[WORDS];
	int page = below(STRIPE), which = below(4);
	size_t place = (size_t)self * STRIPE + page;
	uint32_t version = next_version++;
	fill(buffer, 900 + self, page, version);
	if (which == 0 && shared) {
		shared_pending = page;
		__asm__ volatile("" ::: "memory");
		if (below(4)) {
			memcpy(shared + place * WORDS, buffer, PAGE);
		} else {
			must(madvise(shared + place * WORDS, PAGE, MADV_REMOVE));
			version = 0;
		}
		shared_version[page] = version;
		__asm__ volatile("" ::: "memory");
		shared_pending = -1;
	} else if (which == 1) {
		memfd_pending = page;
		__asm__ volatile("" ::: "memory");
		if (below(2))
			memcpy(memfd_map + place * WORDS, buffer, PAGE);
		else
			must(pwrite(memfd, buffer, PAGE, place * PAGE));
		memfd_version[page] = version;
		__asm__ volatile("" ::: "memory");
		memfd_pending = -1;
	} else if (which == 2) {
		file_pending = page;
		__asm__ volatile("" ::: "memory");
		must(pwrite(unlinked_fd, buffer, PAGE, place * PAGE));
		file_version[page] = version;
		__asm__ volatile("" ::: "memory");
		file_pending = -1;
	}
}

static void walk(char **argv) __attribute__((noreturn));

static void family(char **argv)
{
	int place = 1 + below(CHILDREN);
	if (self)
		return;
	if (children[place]) {
		pid_t pid = children[place];
		control->who[place] = 0;
		must(kill(pid, SIGKILL));
		must(waitpid(pid, NULL, 0));
		children[place] = 0;
		return;
	}
	int executes = below(2);
	uint64_t seed = draw();
	pid_t pid = must(fork());
	if (pid) {
		children[place] = pid;
		return;
	}
	self = place;
	state = seed;
	answered = control->ask;
	memset(children, 0, sizeof children);
	/* The stripes of this place are whatever the last one there left. */
	if (executes) {
		char text[5][32];
		snprintf(text[0], 32, "%d", place);
		snprintf(text[1], 32, "%d", control_fd);
		snprintf(text[2], 32, "%d", source_fd);
		snprintf(text[3], 32, "%d", memfd);
		snprintf(text[4], 32, "%d", unlinked_fd);
		execl("/proc/self/exe", argv[0], argv[1], text[0], text[1], text[2], text[3], text[4], (char *)NULL);
		_exit(9);
	}
	static const uint64_t zeros[WORDS];
	for (int page = 0; page < STRIPE; page++) {
		memcpy(shared ? shared + ((size_t)self * STRIPE + page) * WORDS : (uint64_t *)zeros, zeros, PAGE);
		memcpy(memfd_map + ((size_t)self * STRIPE + page) * WORDS, zeros, PAGE);
		must(pwrite(unlinked_fd, zeros, PAGE, ((size_t)self * STRIPE + page) * PAGE));
		shared_version[page] = memfd_version[page] = file_version[page] = 0;
	}
	shared_pending = memfd_pending = file_pending = -1;
	control->who[place] = getpid();
	walk(argv);
}

static void step(char **argv)
{
	struct region *region = any();
	switch (below(24)) {
	case 0:
	case 1:
		make();
		break;
	case 2:
		if (region)
			unmake(region);
		break;
	case 3:
		if (region)
			move(region);
		break;
	case 4:
		if (region)
			protect(region);
		break;
	case 5:
		if (region)
			advise(region);
		break;
	case 6:
		change_break();
		break;
	case 7:
		if (!below(64))
			family(argv);
		break;
	case 8:
	case 9:
		if (region)
			look(region);
		break;
	case 10:
	case 11:
	case 12:
		write_shared();
		break;
	default:
		if (region)
			write_pages(region);
	}
}

static void prepare(void)
{
	memfd_map = mmap(NULL, (CHILDREN + 1) * STRIPE * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, control_fd, 0);
	must(memfd_map == MAP_FAILED || control == MAP_FAILED ? -1 : 0);
	unsigned char *now = (unsigned char *)syscall(SYS_brk, 0);
	regions[0].base = (unsigned char *)(((uintptr_t)now + PAGE - 1) / PAGE * PAGE);
	must(syscall(SYS_brk, regions[0].base + PAGE) == (long)(regions[0].base + PAGE) ? 0 : -1);
	regions[0].pages = 1;
	regions[0].protection = PROT_READ | PROT_WRITE;
	regions[0].kind = BREAK;
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	state = ((uint64_t)time.tv_nsec * 0x9e3779b97f4a7c15ull ^ (uint64_t)getpid() << 32) | 1;
}

static void answer(void)
{
	victim_failure[0] = 0;
	check_all();
	snprintf(control->failure[self], sizeof control->failure[self], "%s", victim_failure);
	__sync_synchronize();
	control->answer[self] = answered;
}

/* A child walks until it is killed, and checks itself when the parent asks. */
static void walk(char **argv)
{
	for (;;) {
		step(argv);
		if (control->ask != answered) {
			answered = control->ask;
			answer();
		}
	}
}

static void ask_all(void)
{
	struct timespec begun, now;
	int ask = control->ask + 1, there[CHILDREN + 1];
	for (int place = 1; place <= CHILDREN; place++)
		there[place] = children[place] && control->who[place] == children[place];
	__sync_synchronize();
	answered = ask;
	control->ask = ask;
	answer();
	expect(!control->failure[0][0], "%s", control->failure[0]);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (int place = 1; place <= CHILDREN; place++) {
		while (there[place] && control->answer[place] != ask) {
			clock_gettime(CLOCK_MONOTONIC, &now);
			int status = 0;
			pid_t ended = waitpid(children[place], &status, WNOHANG);
			if (now.tv_sec > begun.tv_sec + 15 || ended) {
				expect(0, "process %d (pid %d) does not answer: %d, status %x", place, children[place], ended, status);
				return;
			}
			sched_yield();
		}
		if (there[place])
			expect(!control->failure[place][0], "%s", control->failure[place]);
	}
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	if (argc > 6) { /* executed by a child */
		self = atoi(argv[2]);
		control_fd = atoi(argv[3]);
		source_fd = atoi(argv[4]);
		memfd = atoi(argv[5]);
		unlinked_fd = atoi(argv[6]);
		prepare();
		static const uint64_t zeros[WORDS];
		for (int page = 0; page < STRIPE; page++) {
			memcpy(memfd_map + ((size_t)self * STRIPE + page) * WORDS, zeros, PAGE);
			must(pwrite(unlinked_fd, zeros, PAGE, ((size_t)self * STRIPE + page) * PAGE));
		}
		answered = control->ask;
		control->who[self] = getpid();
		walk(argv);
	}
	control_fd = must(memfd_create("control", 0));
	memfd = must(memfd_create("steps", 0));
	must(ftruncate(control_fd, sizeof *control));
	must(ftruncate(memfd, (CHILDREN + 1) * STRIPE * PAGE));
	source_fd = must(open(in_dir("source"), O_RDWR | O_CREAT | O_TRUNC, 0666));
	for (size_t page = 0; page < FILE_PAGES; page++) {
		uint64_t content[WORDS];
		for (size_t at = 0; at < WORDS; at++)
			content[at] = word(77, page, 1, at);
		must(write(source_fd, content, PAGE));
	}
	unlinked_fd = must(open(in_dir("gone"), O_RDWR | O_CREAT | O_TRUNC, 0666));
	must(unlink(in_dir("gone")));
	must(ftruncate(unlinked_fd, (CHILDREN + 1) * STRIPE * PAGE));
	shared = mmap(NULL, (CHILDREN + 1) * STRIPE * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(shared == MAP_FAILED ? -1 : 0);
	prepare();
	sigset_t asked;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigaddset(&asked, SIGUSR2);
	sigaddset(&asked, SIGTERM);
	set_generation(0);
	notify("READY=1");
	for (;;) {
		struct timespec at_once = { 0, 0 };
		switch (sigtimedwait(&asked, NULL, &at_once)) {
		case SIGTERM:
			return 0;
		case SIGUSR2:
			set_generation(generation + 1);
			break;
		case SIGUSR1:
			report_on(ask_all);
			break;
		default:
			for (int i = 0; i < 64; i++)
				step(argv);
		}
	}
}
