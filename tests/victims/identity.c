/* Property: what a process is: credentials, capabilities, limits, priority, affinity, name, directory, umask, prctl(2)s. */
#include "victim.h"
#include <grp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* All that /proc/self/status and the calls tell, in one text. */
static void describe(char *text, size_t size)
{
	static const char *const lines[] = { "Name:",   "Umask:",  "Uid:",	 "Gid:",    "Groups:",	"CapInh:",
					     "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:",
					     "SigIgn:", "SigCgt:", "Cpus_allowed:" };
	char line[512], directory[256] = "", command[256] = "";
	struct rlimit files, core;
	size_t at = 0;
	int deadly = 0, reaper = 0;
	FILE *status = fopen("/proc/self/status", "re");
	while (status && fgets(line, sizeof line, status))
		for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
			if (!strncmp(line, lines[i], strlen(lines[i])))
				at += snprintf(text + at, size - at, "%s", line);
	if (status)
		fclose(status);
	getrlimit(RLIMIT_NOFILE, &files);
	getrlimit(RLIMIT_CORE, &core);
	prctl(PR_GET_PDEATHSIG, &deadly);
	prctl(PR_GET_CHILD_SUBREAPER, &reaper);
	ssize_t got = readlink("/proc/self/cwd", directory, sizeof directory - 1);
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	got += read(fd, command, sizeof command - 1);
	close(fd);
	snprintf(text + at, size - at,
		 "nice %d policy %d files %ld/%ld core %ld dumpable %d death %d reaper %d slack %d cwd %s command %s %zd thp %d\n",
		 getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), (long)files.rlim_cur, (long)files.rlim_max,
		 (long)core.rlim_cur, prctl(PR_GET_DUMPABLE), deadly, reaper, prctl(PR_GET_TIMERSLACK), directory, command,
		 got, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
}

static char before[8192], after[8192];

static void verify(void)
{
	memset(after, 0, sizeof after);
	describe(after, sizeof after);
	expect_same_text(before, after, sizeof before);
	if (getuid())
		expect(setuid(0) == -1, "root can be had again");
}

int main(int argc, char **argv)
{
	cpu_set_t first;
	struct rlimit files;
	victim(argc, argv);
	must(mkdir(in_dir("place"), 0777) && errno != EEXIST ? -1 : 0);
	must(chdir(in_dir("place")));
	prctl(PR_SET_NAME, "a (victim) x");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_TIMERSLACK, 70000);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	must(sched_setaffinity(0, sizeof first, &first));
	must(setpriority(PRIO_PROCESS, 0, 7));
	must(sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 }));
	must(getrlimit(RLIMIT_NOFILE, &files));
	files.rlim_cur = 333;
	must(setrlimit(RLIMIT_NOFILE, &files));
	/* With "drop" it gives up root, but for one capability. */
	if (argc > 2 && !strcmp(argv[2], "drop")) {
		gid_t groups[] = { 4, 24 };
		must(setgroups(2, groups));
		must(setresgid(100, 100, 100));
		must(setresuid(65534, 65534, 65534));
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	}
	umask(027);
	describe(before, sizeof before);
	umask(0);
	umask(027);
	return serve(NULL, verify);
}
