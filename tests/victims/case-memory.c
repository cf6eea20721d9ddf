/* Properties of memory: mappings of every kind, their flags, sharing between processes. */
#include "case.h"
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <time.h>

#define PAGE 4096UL

static char *map(size_t size, int prot, int flags, int fd, off_t offset)
{
	char *at = mmap(NULL, size, prot, flags, fd, offset);
	must(at == MAP_FAILED ? -1 : 0);
	return at;
}

static char *anonymous(size_t size)
{
	return map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int file(const char *name, int flags)
{
	return must(open(in_dir(name), flags | O_CREAT | O_CLOEXEC, 0600));
}

/* A line of smaps of the mapping at an address, after its key. */
static int smaps(void *at, const char *key, char *value, size_t room)
{
	char line[4096], head[64];
	FILE *f = fopen("/proc/self/smaps", "r");
	int inside = 0, found = 0;
	snprintf(head, sizeof head, "%lx-", (unsigned long)at);
	while (f && fgets(line, sizeof line, f)) {
		if (!strncmp(line, head, strlen(head)))
			inside = 1;
		else if (inside && !strncmp(line, key, strlen(key))) {
			snprintf(value, room, "%s", line + strlen(key));
			found = 1;
			break;
		}
	}
	fclose(f);
	return found;
}

static int has_flag(void *at, const char *flag)
{
	char flags[256] = "";
	return smaps(at, "VmFlags:", flags, sizeof flags) && strstr(flags, flag) != NULL;
}

static int faults(void (*deed)(char *), char *at)
{
	int status;
	fflush(NULL);
	pid_t pid = fork();
	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		struct rlimit none = { 0, 0 };
		setrlimit(RLIMIT_CORE, &none);
		deed(at);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
}

static void read_it(char *at)
{
	*(volatile char *)at;
}

static void write_it(char *at)
{
	*(volatile char *)at = 1;
}

CASE(anonymous_private)
{
	char *at = anonymous(64 * PAGE);
	for (int i = 0; i < 64; i++)
		at[i * PAGE + i] = (char)i;
	restored();
	for (int i = 0; i < 64; i++)
		same(at[i * PAGE + i], i);
}

CASE(heap)
{
	char *one = malloc(100), *large = malloc(10 << 20);
	void *top = sbrk(0);
	memset(one, 'o', 100);
	memset(large, 'l', 10 << 20);
	restored();
	holds(sbrk(0) == top && one[99] == 'o' && large[(10 << 20) - 1] == 'l');
	free(large);
	large = malloc(20 << 20);
	memset(large, 1, 20 << 20);
	holds(sbrk(PAGE) == sbrk(0) - PAGE);
}

static int deep(int depth)
{
	volatile char room[1024];
	room[0] = (char)depth;
	return depth ? deep(depth - 1) + room[0] * 0 : 1;
}

CASE(stack_grows)
{
	restored();
	same(deep(4000), 1);
}

CASE(stack_guard)
{
	restored();
	char *low;
	struct rlimit limit;
	getrlimit(RLIMIT_STACK, &limit);
	low = (char *)&limit - limit.rlim_cur - (1 << 20);
	holds(faults(write_it, low));
}

CASE(grows_down_mapping)
{
	char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
	at[0] = 1;
	restored();
	holds(has_flag(at, "gd"));
	same(at[0], 1);
}

CASE(protections)
{
	char *at = anonymous(4 * PAGE);
	memset(at, 5, 4 * PAGE);
	must(mprotect(at + PAGE, PAGE, PROT_READ));
	must(mprotect(at + 2 * PAGE, PAGE, PROT_NONE));
	restored();
	same(at[PAGE], 5);
	holds(faults(write_it, at + PAGE));
	holds(faults(read_it, at + 2 * PAGE));
	must(mprotect(at + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE));
	same(at[2 * PAGE], 5);
}

CASE(executable)
{
	unsigned char code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
	char *at = anonymous(PAGE);
	memcpy(at, code, sizeof code);
	must(mprotect(at, PAGE, PROT_READ | PROT_EXEC));
	restored();
	same(((int (*)(void))(uintptr_t)at)(), 42);
}

CASE(zero_pages)
{
	char *at = anonymous(1 << 30);
	at[512 << 20] = 1;
	restored();
	same(at[512 << 20], 1);
	same(at[100 << 20], 0);
	char rss[64] = "";
	holds(smaps(at, "Rss:", rss, sizeof rss) && atol(rss) < 100000);
}

static char *shared;
static int shared_value(void)
{
	return shared[0];
}

CASE(shared_anonymous)
{
	shared = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared[0] = 3;
	struct child child = spawn(NULL, shared_value);
	restored();
	same(ask(child), 3);
	shared[0] = 4;
	same(ask(child), 4);
}

CASE(shared_anonymous_only_parent)
{
	shared = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared[0] = 3;
	restored();
	same(shared[0], 3);
	shared[0] = 5;
	struct child child = spawn(NULL, shared_value);
	same(ask(child), 5);
}

CASE(shared_dev_zero)
{
	int fd = must(open("/dev/zero", O_RDWR));
	shared = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	shared[0] = 3;
	struct child child = spawn(NULL, shared_value);
	restored();
	shared[0] = 6;
	same(ask(child), 6);
}

CASE(private_dev_zero)
{
	int fd = must(open("/dev/zero", O_RDWR));
	char *at = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	at[PAGE] = 9;
	restored();
	same(at[PAGE], 9);
	same(at[0], 0);
}

static void write_copy(void)
{
	shared[1] = 'c';
}

static int copy_value(void)
{
	return shared[1];
}

CASE(copy_on_write)
{
	shared = anonymous(16 * PAGE);
	memset(shared, 'p', 16 * PAGE);
	struct child child = spawn(write_copy, copy_value);
	restored();
	same(shared[1], 'p');
	same(ask(child), 'c');
	shared[1] = 'q';
	same(ask(child), 'c');
}

/* The physical page behind an address; root is told. */
static uint64_t frame(char *at)
{
	uint64_t entry = 0;
	(void)*(volatile char *)at;
	int fd = must(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
	must(pread(fd, &entry, sizeof entry, (uintptr_t)at / PAGE * sizeof entry));
	close(fd);
	return entry & ((1UL << 55) - 1);
}

enum { IN_COMMON = 64 };
static uint64_t *frames;

static int tell_frames(void)
{
	for (int i = 0; i < IN_COMMON; i++)
		frames[i] = frame(shared + i * PAGE);
	return shared[PAGE + 5];
}

static int grandchilds(void)
{
	static struct child child;
	if (!child.pid)
		child = spawn(write_copy, tell_frames);
	return ask(child);
}

static void fork_twice(void)
{
	shared[PAGE + 5] = 'd';
	grandchilds();
}

/* Of a parent, its child and that one's child, who each wrote a page. */
CASE(copy_on_write_keeps_pages_in_common)
{
	frames = (uint64_t *)map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared = anonymous(IN_COMMON * PAGE);
	madvise(shared, IN_COMMON * PAGE, MADV_NOHUGEPAGE);
	for (int i = 0; i < IN_COMMON; i++)
		memset(shared + i * PAGE, 'a' + i % 3, PAGE);
	struct child child = spawn(fork_twice, grandchilds);
	if (!frame(shared))
		cannot("physical pages are not told");
	shared[2 * PAGE] = 'p';
	restored();
	same(ask(child), 'd');
	for (int i = 0; i < IN_COMMON; i++)
		expect((frames[i] == frame(shared + i * PAGE)) == (i > 2), "page %d", i);
	same(shared[2 * PAGE], 'p');
	same(shared[PAGE + 5], 'b');
	same(shared[1], 'a');
	shared[9 * PAGE] = 'q';
	same(ask(child), 'd');
	holds(frames[9] != frame(shared + 9 * PAGE));
}

/* Heaps that grew after the fork, and memory that was given back by the one or the other. */
CASE(copy_on_write_of_heaps)
{
	char *heap = sbrk(64 * PAGE);
	shared = anonymous(32 * PAGE);
	memset(heap, 'h', 64 * PAGE);
	memset(shared, 's', 32 * PAGE);
	pid_t pid = must(fork());
	if (!pid) {
		char *more = sbrk(64 * PAGE);
		int wrong = 0;
		memset(more, 'm', 64 * PAGE);
		madvise(shared + 4 * PAGE, 4 * PAGE, MADV_DONTNEED);
		must(munmap(shared + 16 * PAGE, 4 * PAGE));
		must(mprotect(heap, 4 * PAGE, PROT_READ));
		sigset_t asked;
		sigemptyset(&asked);
		sigaddset(&asked, SIGUSR2);
		while (sigwaitinfo(&asked, NULL) != SIGUSR2)
			;
		for (size_t i = 0; i < 64 * PAGE; i++)
			wrong += heap[i] != 'h' || more[i] != 'm';
		for (size_t i = 0; i < 16 * PAGE; i++)
			wrong += shared[i] != (i / PAGE >= 4 && i / PAGE < 8 ? 0 : 's');
		_exit(wrong != 0 || sbrk(0) != more + 64 * PAGE);
	}
	madvise(shared + 24 * PAGE, 4 * PAGE, MADV_DONTNEED);
	usleep(100000);
	restored();
	int status;
	must(kill(pid, SIGUSR2));
	same(waitpid(pid, &status, 0), pid);
	same(status, 0);
	for (size_t i = 0; i < 32 * PAGE; i++)
		expect(shared[i] == (i / PAGE >= 24 && i / PAGE < 28 ? 0 : 's'), "byte %zu", i);
	same(sbrk(0), heap + 64 * PAGE);
}

CASE(file_private)
{
	int fd = file("f", O_RDWR);
	must(ftruncate(fd, 4 * PAGE));
	must(pwrite(fd, "file", 4, 0));
	must(pwrite(fd, "more", 4, PAGE));
	char *at = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	strcpy(at + PAGE, "mine");
	restored();
	holds(!strcmp(at, "file") && !strcmp(at + PAGE, "mine"));
}

CASE(file_shared)
{
	int fd = file("f", O_RDWR);
	must(ftruncate(fd, 4 * PAGE));
	char *at = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), text[8] = "";
	strcpy(at + PAGE, "shared");
	restored();
	holds(!strcmp(at + PAGE, "shared"));
	strcpy(at + PAGE, "again");
	must(pread(fd, text, 6, PAGE));
	holds(!strcmp(text, "again"));
}

CASE(file_shared_read_only)
{
	int fd = file("f", O_RDWR);
	must(pwrite(fd, "x", 1, PAGE));
	int read_only = must(open(in_dir("f"), O_RDONLY));
	char *at = map(2 * PAGE, PROT_READ, MAP_SHARED, read_only, 0);
	restored();
	same(at[PAGE], 'x');
	same(mprotect(at, PAGE, PROT_READ | PROT_WRITE), -1);
	must(pwrite(fd, "y", 1, PAGE));
	same(at[PAGE], 'y');
}

CASE(file_shared_protected)
{
	int fd = file("f", O_RDWR);
	must(ftruncate(fd, 2 * PAGE));
	char *at = map(2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	restored();
	same(mprotect(at, PAGE, PROT_READ | PROT_WRITE), 0);
	at[0] = 'w';
	char byte = 0;
	must(pread(fd, &byte, 1, 0));
	same(byte, 'w');
}

CASE(file_offset)
{
	int fd = file("f", O_RDWR);
	must(ftruncate(fd, 8 * PAGE));
	must(pwrite(fd, "five", 4, 5 * PAGE));
	char *at = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4 * PAGE);
	restored();
	holds(!strncmp(at + PAGE, "five", 4));
}

CASE(file_beyond_end)
{
	int fd = file("f", O_RDWR);
	must(pwrite(fd, "abc", 3, 0));
	char *at = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	strcpy(at + 100, "tail");
	restored();
	holds(!strncmp(at, "abc", 3) && !strcmp(at + 100, "tail"));
	holds(faults(read_it, at + 2 * PAGE));
}

CASE(file_deleted_private)
{
	int fd = file("f", O_RDWR);
	must(pwrite(fd, "gone", 5, 0));
	char *at = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	must(unlink(in_dir("f")));
	restored();
	holds(!strcmp(at, "gone"));
}

CASE(file_deleted_shared)
{
	int fd = file("f", O_RDWR);
	must(pwrite(fd, "gone", 5, 0));
	shared = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	must(unlink(in_dir("f")));
	struct child child = spawn(NULL, shared_value);
	restored();
	holds(!strcmp(shared, "gone"));
	shared[0] = 'x';
	same(ask(child), 'x');
}

CASE(file_replaced)
{
	int fd = file("f", O_RDWR);
	must(pwrite(fd, "old", 4, 0));
	char *at = map(PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	must(pwrite(file("g", O_RDWR), "new", 4, 0));
	must(rename(in_dir("g"), in_dir("f")));
	restored();
	holds(!strcmp(at, "old"));
}

CASE(file_in_run_shared)
{
	int fd = must(open("/run/case-mapped", O_RDWR | O_CREAT | O_TRUNC, 0600));
	must(ftruncate(fd, PAGE));
	char *at = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	strcpy(at, "tmpfs");
	restored();
	holds(!strcmp(at, "tmpfs"));
	unlink("/run/case-mapped");
}

CASE(file_in_shm_shared)
{
	int fd = must(shm_open("/case-mapped", O_RDWR | O_CREAT | O_TRUNC, 0600));
	must(ftruncate(fd, PAGE));
	char *at = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), text[8] = "";
	strcpy(at, "shm");
	restored();
	holds(!strcmp(at, "shm"));
	strcpy(at, "new");
	must(pread(fd, text, 4, 0));
	holds(!strcmp(text, "new"));
}

CASE(memfd_mapped)
{
	int fd = must(memfd_create("m", 0));
	must(ftruncate(fd, 4 * PAGE));
	shared = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	shared[0] = 1;
	struct child child = spawn(NULL, shared_value);
	restored();
	shared[0] = 2;
	same(ask(child), 2);
	char byte = 0;
	must(pread(fd, &byte, 1, 0));
	same(byte, 2);
}

CASE(memfd_mapped_and_closed)
{
	int fd = must(memfd_create("m", 0));
	must(ftruncate(fd, 4 * PAGE));
	char *one = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *two = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, PAGE);
	char *own = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, PAGE);
	close(fd);
	strcpy(own, "own");
	strcpy(one + PAGE + 100, "both");
	restored();
	holds(!strcmp(own, "own") && !strcmp(two + 100, "both"));
	strcpy(two, "two");
	holds(!strcmp(one + PAGE, "two"));
}

CASE(memfd_sealed_and_mapped)
{
	int fd = must(memfd_create("m", MFD_ALLOW_SEALING));
	must(ftruncate(fd, PAGE));
	must(pwrite(fd, "sealed", 7, 0));
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	char *at = map(PAGE, PROT_READ, MAP_SHARED, fd, 0);
	restored();
	holds(!strcmp(at, "sealed"));
	same(fcntl(fd, F_GET_SEALS), F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW);
}

CASE(memfd_seal_future_write)
{
	int fd = must(memfd_create("m", MFD_ALLOW_SEALING));
	must(ftruncate(fd, PAGE));
	char *at = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must(fcntl(fd, F_ADD_SEALS, 0x10 /* F_SEAL_FUTURE_WRITE */));
	strcpy(at, "a");
	restored();
	strcpy(at, "b");
	same(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, 1);
}

CASE(sysv_shared)
{
	int id = must(shmget(IPC_PRIVATE, 4 * PAGE, 0600));
	shared = shmat(id, NULL, 0);
	strcpy(shared, "segment");
	struct child child = spawn(NULL, shared_value);
	restored();
	holds(!strcmp(shared, "segment"));
	shared[0] = 'S';
	same(ask(child), 'S');
	struct shmid_ds status;
	must(shmctl(id, IPC_STAT, &status));
	same(status.shm_nattch, 2);
	must(shmdt(shared));
	must(shmctl(id, IPC_RMID, NULL));
}

CASE(sysv_shared_removed)
{
	int id = must(shmget(IPC_PRIVATE, 4 * PAGE, 0600));
	shared = shmat(id, NULL, 0);
	must(shmctl(id, IPC_RMID, NULL));
	strcpy(shared, "segment");
	restored();
	holds(!strcmp(shared, "segment"));
}

CASE(sysv_shared_with_key)
{
	key_t key = 0x4711beef;
	int old = shmget(key, 0, 0);
	if (old >= 0)
		shmctl(old, IPC_RMID, NULL);
	int id = must(shmget(key, 4 * PAGE, IPC_CREAT | 0640));
	char *at = shmat(id, NULL, 0), *read_only = shmat(id, NULL, SHM_RDONLY);
	strcpy(at, "key");
	restored();
	same(shmget(key, 0, 0), id);
	holds(!strcmp(read_only, "key"));
	holds(faults(write_it, read_only));
	must(shmctl(id, IPC_RMID, NULL));
}

CASE(locked)
{
	struct rlimit more = { RLIM_INFINITY, RLIM_INFINITY };
	setrlimit(RLIMIT_MEMLOCK, &more);
	char *at = anonymous(4 * PAGE);
	if (mlock(at, 4 * PAGE))
		cannot("no mlock");
	restored();
	holds(has_flag(at, "lo"));
}

CASE(locked_on_fault)
{
	char *at = anonymous(4 * PAGE);
	if (mlock2(at, 4 * PAGE, MLOCK_ONFAULT))
		cannot("no mlock2");
	restored();
	holds(has_flag(at, "lo"));
	char locked[64] = "";
	smaps(at, "Locked:", locked, sizeof locked);
	same(atoi(locked), 0);
}

CASE(locked_all)
{
	struct rlimit more = { RLIM_INFINITY, RLIM_INFINITY };
	setrlimit(RLIMIT_MEMLOCK, &more);
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		cannot("no mlockall");
	restored();
	holds(has_flag(anonymous(PAGE), "lo"));
	must(munlockall());
}

CASE(advice)
{
	struct { int advice; const char *flag; char *at; } all[] = {
		{ MADV_DONTFORK, "dc", 0 }, { MADV_WIPEONFORK, "wf", 0 }, { MADV_DONTDUMP, "dd", 0 },
		{ MADV_SEQUENTIAL, "sr", 0 }, { MADV_RANDOM, "rr", 0 }, { MADV_HUGEPAGE, "hg", 0 },
		{ MADV_NOHUGEPAGE, "nh", 0 }, { MADV_MERGEABLE, "mg", 0 },
	};
	int count = sizeof all / sizeof *all, done[8] = { 0 };
	for (int i = 0; i < count; i++) {
		all[i].at = anonymous(4 * PAGE) ;
		mmap(all[i].at, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		all[i].at += PAGE;
		memset(all[i].at, i, PAGE);
		done[i] = !madvise(all[i].at, PAGE, all[i].advice);
	}
	restored();
	for (int i = 0; i < count; i++)
		if (done[i]) {
			expect(has_flag(all[i].at, all[i].flag), "flag %s is lost", all[i].flag);
			same(all[i].at[5], i);
		}
}

CASE(freed_lazily)
{
	char *at = anonymous(16 * PAGE);
	memset(at, 1, 16 * PAGE);
	must(madvise(at, 16 * PAGE, MADV_FREE));
	at[0] = 7;
	restored();
	same(at[0], 7);
	holds(at[PAGE] == 0 || at[PAGE] == 1);
}

CASE(guard_regions)
{
	char *at = anonymous(8 * PAGE);
	memset(at, 4, 8 * PAGE);
	if (madvise(at + 2 * PAGE, PAGE, 102 /* MADV_GUARD_INSTALL */))
		cannot("no guard regions");
	restored();
	same(at[PAGE], 4);
	holds(faults(read_it, at + 2 * PAGE));
	must(madvise(at + 2 * PAGE, PAGE, 103));
	same(at[2 * PAGE], 0);
}

CASE(named_anonymous)
{
	char *at = anonymous(4 * PAGE), line[4096];
	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, 4 * PAGE, "the name"))
		cannot("no names of anonymous memory");
	at[0] = 1;
	restored();
	FILE *f = fopen("/proc/self/maps", "r");
	int found = 0;
	while (fgets(line, sizeof line, f))
		found |= strstr(line, "[anon:the name]") != NULL;
	holds(found);
}

CASE(huge_private)
{
	char *at = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (at == MAP_FAILED)
		cannot("no huge pages");
	strcpy(at + (2 << 20), "huge");
	restored();
	holds(!strcmp(at + (2 << 20), "huge") && has_flag(at, "ht"));
}

CASE(huge_shared)
{
	shared = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (shared == MAP_FAILED)
		cannot("no huge pages");
	shared[0] = 1;
	strcpy((char *)shared + (3 << 20), "in the second");
	struct child child = spawn(NULL, shared_value);
	restored();
	holds(!strcmp((char *)shared + (3 << 20), "in the second") && has_flag((char *)shared, "ht"));
	same(shared[1], 0);
	shared[0] = 2;
	same(ask(child), 2);
}

CASE(huge_memfd)
{
	char text[8] = "";
	struct stat st;
	int fd = syscall(SYS_memfd_create, "huge", 0x7 /* CLOEXEC, ALLOW_SEALING, HUGETLB */);
	if (fd < 0 || ftruncate(fd, 4 << 20))
		cannot("no huge pages");
	shared = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		cannot("no huge pages");
	shared[0] = 1;
	strcpy((char *)shared + (3 << 20), "second");
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	struct child child = spawn(NULL, shared_value);
	restored();
	holds(!strcmp((char *)shared + (3 << 20), "second") && has_flag((char *)shared, "ht"));
	same(pread(fd, text, 6, 3 << 20), 6);
	holds(!strcmp(text, "second"));
	same(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK);
	must(fstat(fd, &st));
	same(st.st_size, 4 << 20);
	same(st.st_blksize, 2 << 20);
	shared[0] = 2;
	same(ask(child), 2);
}

REFUSED(huge_segment, "hugetlb-shared")
{
	int id = shmget(IPC_PRIVATE, 2 << 20, IPC_CREAT | SHM_HUGETLB | 0600);
	if (id < 0)
		cannot("no huge pages");
	char *at = shmat(id, NULL, 0);
	must(shmctl(id, IPC_RMID, NULL));
	if (at == MAP_FAILED)
		cannot("no huge pages");
	restored();
}

CASE(sealed_mapping)
{
	char *at = anonymous(4 * PAGE);
	at[0] = 3;
	if (syscall(462 /* mseal */, at, 4 * PAGE, 0))
		cannot("no mseal");
	restored();
	same(at[0], 3);
	same(munmap(at, PAGE), -1);
}

CASE(droppable)
{
	char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, 0x08 | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		cannot("no MAP_DROPPABLE");
	restored();
	holds(has_flag(at, "dp"));
}

CASE(no_reserve)
{
	char *at = mmap(NULL, 1L << 40, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		cannot("no room");
	at[1L << 39] = 1;
	restored();
	same(at[1L << 39], 1);
	holds(has_flag(at, "nr"));
}

CASE(mappings_many)
{
	int count = 10000;
	char *at = anonymous(count * 2 * PAGE);
	for (int i = 0; i < count; i++) {
		must(mprotect(at + i * 2 * PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
		*(int *)(at + i * 2 * PAGE) = i;
	}
	restored();
	for (int i = 0; i < count; i++)
		same(*(int *)(at + i * 2 * PAGE), i);
}

CASE(moved_mapping)
{
	char *at = anonymous(4 * PAGE), *where = anonymous(16 * PAGE);
	strcpy(at, "moved");
	at = mremap(at, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, where);
	restored();
	holds(!strcmp(at, "moved"));
	at = mremap(at, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
	holds(!strcmp(at, "moved"));
}

CASE(first_page)
{
	char *at = mmap((void *)(16 * PAGE), PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (at == MAP_FAILED)
		cannot("no low addresses");
	at[0] = 1;
	restored();
	same(at[0], 1);
}

CASE(low_32_bits)
{
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	at[0] = 1;
	restored();
	same(at[0], 1);
}

CASE(vdso)
{
	struct timespec one, two;
	must(clock_gettime(CLOCK_MONOTONIC, &one));
	void *vdso = (void *)getauxval(AT_SYSINFO_EHDR);
	restored();
	must(clock_gettime(CLOCK_MONOTONIC, &two));
	holds(two.tv_sec >= one.tv_sec && vdso == (void *)getauxval(AT_SYSINFO_EHDR) && !memcmp(vdso, "\177ELF", 4));
}

CASE(huge_pages_disabled)
{
	must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	restored();
	same(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
}

CASE(arguments_and_environment)
{
	restored();
	char text[4096] = "";
	int fd = must(open("/proc/self/cmdline", O_RDONLY));
	must(read(fd, text, sizeof text - 1));
	holds(strstr(text, "case-memory") != NULL);
	holds(getenv("NOTIFY_SOCKET") || at_once);
	char link[4096] = "";
	must(readlink("/proc/self/exe", link, sizeof link - 1));
	holds(strstr(link, "case-memory") && !strstr(link, "deleted"));
}

REFUSED(protection_key, "protection-key")
{
	int key = syscall(SYS_pkey_alloc, 0, 0);
	char *at = anonymous(PAGE);
	if (key < 0 || syscall(SYS_pkey_mprotect, at, PAGE, PROT_READ | PROT_WRITE, key))
		cannot("no protection keys");
	restored();
}
