/* Property: every kind of mapping has its content, its protection and its address. */
#include "victim.h"
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 512 };

static unsigned char initialised[3 * PAGE] = { 1, 2, 3 };
static unsigned char zeroed[64 * PAGE];
static unsigned char *heap, *anonymous, *read_only, *no_access, *private_file, *code, *sparse, *huge;

static unsigned char pattern(size_t at, int salt)
{
	return (unsigned char)(at * 2654435761u >> 13) ^ (unsigned char)(salt * 37 + 11);
}

static void fill(unsigned char *place, size_t length, int salt)
{
	for (size_t i = 0; i < length; i++)
		place[i] = pattern(i, salt);
}

static void compare(const char *name, const unsigned char *place, size_t length, int salt)
{
	for (size_t i = 0; i < length; i++)
		if (place[i] != pattern(i, salt)) {
			expect(0, "%s differs at %zu: %d, not %d", name, i, place[i], pattern(i, salt));
			return;
		}
}

static unsigned char *map(size_t length, int protection, int flags, int fd)
{
	void *place = mmap(NULL, length, protection, flags, fd, 0);
	must(place == MAP_FAILED ? -1 : 0);
	return place;
}

static void change(void)
{
	int next = generation + 1;
	fill(anonymous, PAGES * PAGE, next);
	fill(heap, PAGES * PAGE, next + 1);
	fill(zeroed, sizeof zeroed, next + 2);
	fill(initialised, sizeof initialised, next + 3);
	fill(private_file, PAGE, next + 4);
}

/* Protection of the mapping that holds an address, as /proc/self/maps tells it. */
static void protection(const char *name, const void *place, const char *wanted)
{
	char line[1024];
	FILE *maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof line, maps)) {
		unsigned long from, to;
		char have[5];
		if (sscanf(line, "%lx-%lx %4s", &from, &to, have) == 3 && from <= (unsigned long)place &&
		    (unsigned long)place < to) {
			expect(!strncmp(have, wanted, 4), "%s is %s, not %s", name, have, wanted);
			fclose(maps);
			return;
		}
	}
	expect(0, "%s is not mapped", name);
	if (maps)
		fclose(maps);
}

static void verify(void)
{
	static volatile unsigned char *before;
	unsigned char on_stack[PAGE];
	compare("anonymous memory", anonymous, PAGES * PAGE, generation);
	compare("heap", heap, PAGES * PAGE, generation + 1);
	compare("zeroed data", zeroed, sizeof zeroed, generation + 2);
	compare("initialised data", initialised, sizeof initialised, generation + 3);
	compare("private file, written page", private_file, PAGE, generation + 4);
	expect(private_file[PAGE] == 'x' && private_file[2 * PAGE - 1] == 'x', "private file, clean page differs");
	compare("read-only memory", read_only, 4 * PAGE, 77);
	compare("huge memory", huge, 4 * 1024 * 1024, 78);
	for (size_t i = 0; i < 256; i += 16) {
		expect(sparse[i * 16 * PAGE] == (unsigned char)i, "sparse memory differs at %zu", i);
		expect(sparse[(i * 16 + 5) * PAGE] == 0, "a hole of sparse memory is not zero");
	}
	protection("read-only memory", read_only, "r--p");
	protection("reserved memory", no_access, "---p");
	protection("code", code, "r-xp");
	expect(((int (*)(void))(uintptr_t)code)() == 42, "made code gives another answer");
	/* New memory can still be had, from the heap and from the kernel. */
	unsigned char *more = malloc(300000);
	expect(more != NULL, "malloc failed");
	memset(more, 1, 300000);
	free(more);
	expect(sbrk(0) != (void *)-1, "brk is lost");
	memset(on_stack, 1, sizeof on_stack);
	before = on_stack;
	expect(before[17] == 1, "the stack is not writable");
}

int main(int argc, char **argv)
{
	static const unsigned char answer[] = { 0xb8, 42, 0, 0, 0, 0xc3 }; /* mov $42, %eax; ret */
	victim(argc, argv);
	heap = malloc(PAGES * PAGE);
	anonymous = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	read_only = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	no_access = map(16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	code = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	sparse = map(4096 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	huge = map(4 * 1024 * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	madvise(huge, 4 * 1024 * 1024, MADV_HUGEPAGE);
	int fd = must(open(in_dir("mapped"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
	for (int i = 0; i < 4 * PAGE; i++)
		must(write(fd, "x", 1));
	private_file = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	close(fd);
	fill(read_only, 4 * PAGE, 77);
	fill(huge, 4 * 1024 * 1024, 78);
	must(mprotect(read_only, 4 * PAGE, PROT_READ));
	memcpy(code, answer, sizeof answer);
	must(mprotect(code, PAGE, PROT_READ | PROT_EXEC));
	for (size_t i = 0; i < 256; i++)
		sparse[i * 16 * PAGE] = (unsigned char)i;
	generation = -1;
	change();
	return serve(change, verify);
}
