/* Memory that a restore brings late: a program that goes on reading, writing, moving, giving back and forking it from the first instant,
 * and knows of every page what must be there.
 *
 * A page is filled with one number, which a table tells (0: zeros). The table and the pages are both memory of the image.
 */
#include "victim.h"
#include <pthread.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define PAGES 8192UL /* 32 MiB an area */
#define AREAS 5

struct area {
	unsigned char *at;
	uint32_t *told; /* of each page: the number it is full of */
};

static struct area areas[AREAS];
static volatile int stop;
static pthread_t worker;
static uint32_t next = 1;
static volatile unsigned long steps;
static unsigned seed = 12345;
/* What the worker has found: being asked clears the victim's own. */
static char seen[sizeof victim_failure];

static unsigned draw(unsigned below)
{
	seed = seed * 1103515245u + 12345u;
	return (seed >> 8) % below;
}

static int page_is(const struct area *area, unsigned long page)
{
	const uint32_t *words = (const void *)(area->at + page * PAGE);
	for (unsigned long i = 0; i < PAGE / 4; i += 97)
		if (words[i] != area->told[page])
			return 0;
	return words[PAGE / 4 - 1] == area->told[page];
}

static void fill(struct area *area, unsigned long page)
{
	uint32_t *words = (void *)(area->at + page * PAGE);
	area->told[page] = next++;
	for (unsigned long i = 0; i < PAGE / 4; i++)
		words[i] = area->told[page];
}

static void check_all(const struct area *area, const char *who)
{
	for (unsigned long page = 0; page < PAGES; page++)
		expect(page_is(area, page), "%s: page %lu of %p is not %u but %u", who, page, (void *)area->at,
		       area->told[page], *(uint32_t *)(area->at + page * PAGE));
}

static void step(void)
{
	struct area *area = &areas[draw(AREAS)];
	unsigned long page = draw(PAGES - 64), count = 1 + draw(64);
	switch (draw(12)) {
	case 0: /* given back: zeros from now on */
		must(madvise(area->at + page * PAGE, count * PAGE, MADV_DONTNEED));
		memset(area->told + page, 0, count * sizeof *area->told);
		break;
	case 1: /* something new in its place; at once, for in a hole somebody else may map something */
		must(mmap(area->at + page * PAGE, count * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		memset(area->told + page, 0, count * sizeof *area->told);
		break;
	case 2: { /* moved away and back; one page, for what is several mappings Linux 6.17 moves by halves if it cannot move all */
		unsigned char *from = area->at + page * PAGE;
		unsigned char *there = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		const int how = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
		expect(mremap(from, PAGE, PAGE, how, there) == there, "mremap: %d", errno);
		expect(from[0] == 0 && from[PAGE - 1] == 0, "what was moved away is still there");
		must(mremap(there, PAGE, PAGE, how, from));
		must(munmap(there, PAGE));
		break;
	}
	case 3: /* split into mappings of different protection */
		must(mprotect(area->at + page * PAGE, count * PAGE, PROT_READ));
		must(mprotect(area->at + page * PAGE, count * PAGE, PROT_READ | PROT_WRITE));
		break;
	case 4: /* the kernel writes into it */
		if (draw(4) == 0) {
			int zero = must(open("/dev/zero", O_RDONLY));
			/* One that is stopped in the middle is short, with any other signal too. */
			for (unsigned long done = 0; done < count * PAGE;)
				done += must(read(zero, area->at + page * PAGE + done, count * PAGE - done));
			memset(area->told + page, 0, count * sizeof *area->told);
			must(close(zero));
		}
		break;
	case 5:
		if (draw(8) == 0) { /* a child has all of it, and gives back some */
			pid_t child = must(fork());
			if (child == 0) {
				madvise(area->at + page * PAGE, count * PAGE, MADV_DONTNEED);
				memset(area->told + page, 0, count * sizeof *area->told);
				for (unsigned long i = 0; i < PAGES; i += 1 + draw(20))
					expect(page_is(area, i), "page %lu of a child is not %u but %u", i, area->told[i],
					       *(uint32_t *)(area->at + i * PAGE));
				if (victim_failure[0])
					fprintf(stderr, "%s (given back: %lu, %lu)\n", victim_failure, page, count);
				_exit(victim_failure[0] != 0);
			}
			int status;
			must(waitpid(child, &status, 0));
			expect(status == 0, "a child ended with %x", status);
		}
		break;
	case 6:
	case 7:
	case 8:
		while (count--)
			fill(area, page + count);
		break;
	default:
		while (count--)
			expect(page_is(area, page + count), "page %lu of %p is not %u", page + count, (void *)area->at,
			       area->told[page + count]);
	}
}

static void *work(void *unused)
{
	(void)unused;
	while (!stop && !seen[0]) {
		step();
		steps++;
		memcpy(seen, victim_failure, sizeof seen);
	}
	return NULL;
}

static void go(void)
{
	stop = 0;
	must(pthread_create(&worker, NULL, work, NULL) == 0 ? 0 : -1);
}

static void halt(void)
{
	stop = 1;
	pthread_join(worker, NULL);
}

static void prepare(void)
{
	for (int i = 0; i < AREAS; i++) {
		areas[i].at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		areas[i].told = calloc(PAGES, sizeof *areas[i].told);
		must(areas[i].at == MAP_FAILED || areas[i].told == NULL ? -1 : 0);
		for (unsigned long page = 0; page < PAGES; page++)
			if (page % 5)
				fill(&areas[i], page);
	}
	go();
}

static void check(void)
{
	halt();
	expect(!seen[0], "%s", seen);
	for (int i = 0; i < AREAS; i++)
		check_all(&areas[i], "whole");
	expect(steps > 0, "it did nothing");
	go();
}

static void change(void)
{
	unsigned long before = steps;
	while (steps == before && !seen[0])
		usleep(100);
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	prepare();
	return serve(change, check);
}
