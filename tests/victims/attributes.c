/* Property: what /proc and prctl(2) keep of a process: limits, OOM score, core dump filter, personality, securebits, dumpable, i/o priority,
 * real-time policy. */
#include "victim.h"
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static char before[8192], after[8192];

static size_t slurp(const char *name, char *text, size_t size)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[length > 0 ? length : 0] = 0;
	return length > 0 ? length : 0;
}

static void describe(char *text, size_t size)
{
	static const char *const names[] = { "oom_score_adj", "coredump_filter", "personality", "limits", "timerslack_ns",
					     "loginuid", "comm", "cmdline" };
	size_t at = 0;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char path[64];
		snprintf(path, sizeof path, "/proc/self/%s", names[i]);
		at += snprintf(text + at, size - at, "\n%s: ", names[i]);
		at += slurp(path, text + at, size - at - 512);
	}
	struct sched_param param;
	sched_getparam(0, &param);
	snprintf(text + at, size - at,
		 "\ndumpable %d securebits %#x keepcaps %d ioprio %ld policy %d priority %d mce %d tsc %d thp %d mdwe %d\n",
		 prctl(PR_GET_DUMPABLE), prctl(PR_GET_SECUREBITS), prctl(PR_GET_KEEPCAPS),
		 (long)syscall(SYS_ioprio_get, 1, 0), sched_getscheduler(0), param.sched_priority,
		 prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), 0, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0),
		 prctl(66 /* PR_GET_MDWE */, 0, 0, 0, 0));
}

static void verify(void)
{
	memset(after, 0, sizeof after);
	describe(after, sizeof after);
	expect_same_text(before, after, sizeof before);
}

int main(int argc, char **argv)
{
	static const int resources[] = { RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_MEMLOCK, RLIMIT_NPROC, RLIMIT_SIGPENDING,
					 RLIMIT_STACK, RLIMIT_RTTIME, RLIMIT_MSGQUEUE };
	victim(argc, argv);
	for (size_t i = 0; i < sizeof resources / sizeof *resources; i++) {
		struct rlimit limit;
		must(getrlimit(resources[i], &limit));
		rlim_t soft = (rlim_t)1 << (resources[i] == RLIMIT_AS ? 40 : 20);
		limit.rlim_cur = limit.rlim_max < soft ? limit.rlim_max : soft + i * 4096;
		must(setrlimit(resources[i], &limit));
	}
	must(personality(ADDR_NO_RANDOMIZE | MMAP_PAGE_ZERO));
	must(prctl(PR_SET_SECUREBITS, 0x15 << 0 & 0x14));
	prctl(PR_SET_DUMPABLE, 0);
	prctl(PR_SET_TIMERSLACK, 123456);
	prctl(PR_MCE_KILL, 1, 1, 0, 0);
	syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 3);
	sched_setscheduler(0, SCHED_RR, &(struct sched_param){ .sched_priority = 3 });
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	must(write(fd, "345", 3));
	close(fd);
	fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
	must(write(fd, "0x7b", 4));
	close(fd);
	describe(before, sizeof before);
	return serve(NULL, verify);
}
