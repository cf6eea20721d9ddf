/* Property: ten thousand mappings of every kind and advice behave after a restore as before it, not only their bytes. */
#include "victim.h"
#include <sys/mman.h>
#include <sys/prctl.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { PAGE = 4096, MANY = 10000 };

static unsigned char *many, *stack, *not_forked, *wiped, *reserved, *zero_device, *private_memfd, *guarded, *moved;
static int guards;

static unsigned char *map(void *at, size_t length, int protection, int flags, int fd)
{
	void *place = mmap(at, length, protection, flags, fd, 0);
	must(place == MAP_FAILED ? -1 : 0);
	return place;
}

static unsigned char *anonymous(size_t length, int flags)
{
	return map(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1);
}

static void change(void)
{
	for (int i = 0; i < MANY; i += 2)
		many[(size_t)i * PAGE + 3] = (unsigned char)(i / 2 + generation + 1);
	private_memfd[0] = (unsigned char)(generation + 1);
	zero_device[PAGE] = (unsigned char)(generation + 1);
}

/* Whether a child of fork(2) that touches an address ends as it should: by SIGSEGV, or with the byte as its exit status. */
static int child_sees(const unsigned char *address)
{
	int status;
	pid_t child = must(fork());
	if (!child) {
		signal(SIGSEGV, SIG_DFL);
		_exit(*(volatile const unsigned char *)address);
	}
	must(waitpid(child, &status, 0));
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void verify(void)
{
	char line[512];
	int lines = 0;
	for (int i = 0; i < MANY; i += 2) {
		expect(many[(size_t)i * PAGE + 3] == (unsigned char)(i / 2 + generation), "mapping %d differs", i);
		expect(many[(size_t)(i + 1) * PAGE + 3] == 1, "read-only mapping %d differs", i + 1);
	}
	FILE *maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof line, maps))
		lines++;
	if (maps)
		fclose(maps);
	expect(lines > MANY, "there are only %d mappings", lines);
	expect(child_sees(many + PAGE + 3) == 1, "a child does not see a read-only mapping");
	expect(child_sees(not_forked) == -SIGSEGV, "MADV_DONTFORK is lost");
	expect(wiped[5] == 5 && child_sees(wiped + 5) == 0, "MADV_WIPEONFORK is lost");
	expect(!guards || child_sees(guarded + 2 * PAGE) == -SIGSEGV, "a guard page is lost");
	expect(guarded[3 * PAGE] == 7, "the page behind the guard differs");
	stack[-3 * PAGE] = 9; /* it grows down by itself */
	expect(stack[-3 * PAGE] == 9 && stack[0] == 8, "the stack does not grow");
	must(munmap(stack - 3 * PAGE, 3 * PAGE));
	reserved[(1ul << 36) - 1] = 1;
	must(madvise(reserved + (1ul << 36) - PAGE, PAGE, MADV_DONTNEED));
	expect(reserved[1ul << 35] == 6, "the page in the middle of reserved memory differs");
	expect(zero_device[PAGE] == generation && zero_device[0] == 0, "private /dev/zero holds %d", zero_device[PAGE]);
	expect(private_memfd[0] == generation && private_memfd[PAGE] == 4, "private memfd holds %d", private_memfd[0]);
	expect(moved[0] == 11 && moved[9 * PAGE] == 12, "memory that mremap(2) moved differs");
	void *grown = mremap(moved, 10 * PAGE, 20 * PAGE, MREMAP_MAYMOVE);
	expect(grown != MAP_FAILED && ((unsigned char *)grown)[9 * PAGE] == 12, "shared memory cannot be moved");
	if (grown != MAP_FAILED)
		moved = mremap(grown, 20 * PAGE, 10 * PAGE, MREMAP_MAYMOVE);
	unsigned char *brk = sbrk(3 * PAGE);
	expect(brk != (void *)-1, "brk cannot grow");
	brk[0] = 1;
	sbrk(-3 * PAGE);
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	many = anonymous((size_t)MANY * PAGE, 0);
	for (int i = 1; i < MANY; i += 2) {
		many[(size_t)i * PAGE + 3] = 1;
		must(mprotect(many + (size_t)i * PAGE, PAGE, PROT_READ));
	}
	/* Far from everything, so that it has room to grow. */
	stack = map((void *)0x300000000000ul, PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1);
	stack[0] = 8;
	not_forked = anonymous(PAGE, 0);
	not_forked[0] = 1;
	must(madvise(not_forked, PAGE, MADV_DONTFORK));
	wiped = anonymous(PAGE, 0);
	wiped[5] = 5;
	must(madvise(wiped, PAGE, MADV_WIPEONFORK));
	guarded = anonymous(4 * PAGE, 0);
	guarded[3 * PAGE] = 7;
	guards = !madvise(guarded + 2 * PAGE, PAGE, MADV_GUARD_INSTALL);
	reserved = anonymous(1ul << 36, MAP_NORESERVE);
	reserved[1ul << 35] = 6;
	int fd = must(open("/dev/zero", O_RDWR | O_CLOEXEC));
	zero_device = map(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	must(close(fd));
	fd = must(memfd_create("below", MFD_CLOEXEC));
	must(ftruncate(fd, 2 * PAGE));
	must(pwrite(fd, "\4", 1, PAGE));
	private_memfd = map(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	must(close(fd));
	moved = map(NULL, 20 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	moved[5 * PAGE] = 11;
	moved[14 * PAGE] = 12;
	must(munmap(moved, 5 * PAGE));
	must(munmap(moved + 15 * PAGE, 5 * PAGE));
	moved = mremap(moved + 5 * PAGE, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE);
	generation = -1;
	change();
	return serve(change, verify);
}
