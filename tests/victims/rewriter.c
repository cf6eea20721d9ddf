/* Property: memory that is rewritten page after page, as fast as can be, is of one instant, shared memory too, whatever a fork would leave out of
 * it; and nobody ever has a child that it did not make.
 *
 *   rewriter DIR [MIB [PROCESSES]]   MIB in each process, two writers in each; PROCESSES besides the first
 */
#include "victim.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { PAGE = 4096, WORDS = PAGE / 8, WRITERS = 2, MOST = 16, ODD = 64 };

/* Of all processes. */
static struct shared {
	struct {
		_Atomic uint64_t pages; /* that the writer has rewritten */
	} writer[MOST * WRITERS];
	_Atomic int failed;
	char failure[256];
} *shared;

static long pages;
static int processes;
static pid_t child[MOST];

struct writer {
	int number;
	uint64_t rewritten; /* the same as shared->writer[number].pages, and so at each instant within one of it */
	uint64_t *part[3]; /* plain, MADV_DONTFORK, MADV_WIPEONFORK */
	long length[3];
};

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
	va_list arguments;
	if (!atomic_exchange(&shared->failed, 1)) {
		va_start(arguments, format);
		vsnprintf(shared->failure, sizeof shared->failure, format, arguments);
		va_end(arguments);
	}
	for (;;)
		pause();
}

static uint64_t *map(long count, int advice)
{
	void *place = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(place == MAP_FAILED ? -1 : 0);
	if (advice)
		must(madvise(place, count * PAGE, advice));
	memset(place, 0, count * PAGE);
	return place;
}

static void *write_on(void *argument)
{
	struct writer *self = argument;
	for (uint64_t pass = 0;; pass++)
		for (int part = 0; part < 3; part++)
			for (long n = 0; n < self->length[part]; n++) {
				uint64_t *page = self->part[part] + n * WORDS, told = shared->writer[self->number].pages;
				if (page[0] != pass || page[WORDS / 2] != ~pass || page[WORDS - 1] != pass)
					if (pass || page[0] || page[WORDS / 2] || page[WORDS - 1])
						fail("writer %d, part %d, page %ld: %lu %lu %lu in pass %lu", self->number, part, n,
						     page[0], ~page[WORDS / 2], page[WORDS - 1], pass);
				if (told != self->rewritten)
					fail("writer %d: shared memory tells %lu pages, its own %lu", self->number, told,
					     self->rewritten);
				page[0] = pass + 1;
				page[WORDS / 2] = ~(pass + 1);
				page[WORDS - 1] = pass + 1;
				shared->writer[self->number].pages = ++self->rewritten;
			}
	return NULL;
}

/* A child that ends is told to nobody else; none of ours ever does. */
static void *look_for_children(void *argument)
{
	int has_children = *(int *)argument;
	for (;;) {
		pid_t found = waitpid(-1, NULL, WNOHANG | (getenv("CKPT_VICTIM_MORTAL") ? 0 : __WALL));
		if (found > 0 || (found == 0 && !has_children))
			fail("process %d is a child", found);
		usleep(200);
	}
	return NULL;
}

static void live(int number, int *has_children)
{
	static struct writer writers[WRITERS];
	pthread_t thread;
	for (int n = 0; n < WRITERS; n++) {
		struct writer *writer = &writers[n];
		writer->number = number * WRITERS + n;
		writer->length[0] = pages / WRITERS;
		writer->length[1] = writer->length[2] = ODD;
		writer->part[0] = map(writer->length[0], 0);
		writer->part[1] = map(ODD, MADV_DONTFORK);
		writer->part[2] = map(ODD, MADV_WIPEONFORK);
		must(pthread_create(&thread, NULL, write_on, writer) ? -1 : 0);
	}
	must(pthread_create(&thread, NULL, look_for_children, has_children) ? -1 : 0);
}

/* Everybody still writes, and nobody has found anything. */
static void verify(void)
{
	uint64_t before[MOST * WRITERS];
	int writers = (processes + 1) * WRITERS;
	for (int n = 0; n < writers; n++)
		before[n] = shared->writer[n].pages;
	for (int n = 0; n < writers; n++)
		for (int turn = 0; shared->writer[n].pages < before[n] + 100 && !shared->failed; turn++) {
			expect(turn < 5000, "writer %d stands still", n);
			if (turn == 5000)
				return;
			usleep(1000);
		}
	expect(!shared->failed, "%s", shared->failure);
	for (int n = 0; n < processes; n++)
		expect(kill(child[n], 0) == 0, "process %d is gone", child[n]);
}

int main(int argc, char **argv)
{
	static int none, some;
	victim(argc, argv);
	pages = (argc > 2 ? atol(argv[2]) : 64) * 256;
	processes = argc > 3 ? atoi(argv[3]) : 0;
	some = processes > 0;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(shared == MAP_FAILED || processes >= MOST ? -1 : 0);
	for (int n = 0; n < processes; n++) {
		child[n] = must(fork());
		if (!child[n]) {
			live(n + 1, &none);
			for (;;)
				pause();
		}
	}
	live(0, &some);
	return serve(NULL, verify);
}
