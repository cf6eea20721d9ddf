/* Properties of processes and threads. */
#include "case.h"
#include <pthread.h>
#include <grp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/* What /proc tells of a task: the line of a file that begins with a word. */
static const char *line_of(int pid, const char *file, const char *word)
{
	static char line[4][256];
	static int next;
	char path[64], text[4096] = "", *at;
	next = (next + 1) % 4;
	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
		text[0] = 0;
	close(fd);
	at = strstr(text, word);
	snprintf(line[next], sizeof line[next], "%.*s", at ? (int)strcspn(at, "\n") : 0, at ? at : "");
	return line[next];
}

static char state_of(int pid)
{
	return line_of(pid, "status", "State:")[7];
}

/* A daemon that forked twice, and whose subreaper is not process 1. */
CASE(lost_session_below_a_subreaper)
{
	int told[2], status;
	pid_t orphan;
	must(pipe2(told, O_CLOEXEC));
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t leader = must(fork());
	if (!leader) {
		must(setsid());
		if (must(fork()))
			_exit(0);
		while (getppid() == getsid(0))
			usleep(1000);
		orphan = getpid();
		must(write(told[1], &orphan, sizeof orphan));
		for (;;)
			pause();
	}
	must(waitpid(leader, NULL, 0));
	must(read(told[0], &orphan, sizeof orphan));
	restored();
	same(getsid(orphan), leader);
	same(getpgid(orphan), leader);
	must(kill(orphan, SIGKILL));
	same(waitpid(orphan, &status, 0), orphan);
}

CASE(name_of_any_bytes)
{
	static const char odd[] = "x) R 1\n(\x01\xff";
	char name[32] = "";
	int status;
	must(prctl(PR_SET_NAME, odd));
	pid_t zombie = must(fork());
	if (!zombie)
		_exit(6);
	must(waitid(P_PID, zombie, &(siginfo_t){ 0 }, WEXITED | WNOWAIT));
	restored();
	must(prctl(PR_GET_NAME, name));
	holds(!strcmp(name, odd));
	same(waitpid(zombie, &status, 0), zombie);
	same(WEXITSTATUS(status), 6);
}

/* As many as there can be. */
CASE(groups_65536)
{
	static gid_t groups[65536], now[65536];
	for (int i = 0; i < 65536; i++)
		groups[i] = i + 7;
	must(setgroups(65536, groups));
	restored();
	same(getgroups(65536, now), 65536);
	holds(!memcmp(groups, now, sizeof now));
}

CASE(limit_of_pending_signals_below_what_is_pending)
{
	struct rlimit none = { 0, 0 }, now;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	for (int i = 0; i < 10; i++)
		must(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = i }));
	must(setrlimit(RLIMIT_SIGPENDING, &none));
	restored();
	must(getrlimit(RLIMIT_SIGPENDING, &now));
	same(now.rlim_cur, 0);
	same(now.rlim_max, 0);
	for (int i = 0; i < 10; i++) {
		siginfo_t info;
		same(sigtimedwait(&set, &info, &(struct timespec){ 0 }), SIGRTMIN + 1);
		same(info.si_value.sival_int, i);
	}
}

/* struct sched_attr, first version. */
struct scheduling {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

CASE(length_of_slice)
{
	struct scheduling wanted = { .size = 48, .policy = SCHED_BATCH, .runtime = 5000000 }, now = { 0 };
	must(syscall(SYS_sched_setattr, 0, &wanted, 0));
	must(syscall(SYS_sched_getattr, 0, &now, 48, 0));
	if (now.runtime != wanted.runtime)
		cannot("slices have no length");
	restored();
	must(syscall(SYS_sched_getattr, 0, &now, 48, 0));
	same(now.policy, SCHED_BATCH);
	same(now.runtime, wanted.runtime);
}

CASE(huge_pages_if_advised)
{
	if (prctl(PR_SET_THP_DISABLE, 1, 2 /* PR_THP_DISABLE_EXCEPT_ADVISED */, 0, 0))
		cannot("no PR_THP_DISABLE_EXCEPT_ADVISED");
	restored();
	same(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 3);
}

CASE(chooses_timer_ids)
{
	if (prctl(77 /* PR_TIMER_CREATE_RESTORE_IDS */, 1, 0, 0, 0))
		cannot("no PR_TIMER_CREATE_RESTORE_IDS");
	restored();
	same(prctl(77, 2, 0, 0, 0), 1);
}

/* thread group leaders that ended */

static int numbers[4];

static void await_end_of(int pid)
{
	while (state_of(pid) != 'Z')
		usleep(1000);
}

static void *after_main(void *unused)
{
	char before[256];
	await_end_of(getpid());
	numbers[0] = getpid(), numbers[1] = syscall(SYS_gettid), numbers[2] = getsid(0);
	strcpy(before, line_of(getpid(), "status", "Uid:"));
	restored();
	same(getpid(), numbers[0]);
	same(syscall(SYS_gettid), numbers[1]);
	same(getsid(0), numbers[2]);
	same(getppid(), at_once ? getppid() : 1);
	same(state_of(getpid()), 'Z');
	holds(strstr(line_of(getpid(), "status", "Name:"), "gone"));
	holds(!strcmp(line_of(getpid(), "status", "Uid:"), before));
	done();
	return unused;
}

/* The main process of the unit. */
CASE(leader_ended_main)
{
	pthread_t thread;
	must(pthread_create(&thread, NULL, after_main, NULL) ? -1 : 0);
	prctl(PR_SET_NAME, "gone");
	pthread_exit(NULL);
}

static int told, there[2], back[2];

/* A child whose leader ends by itself with status 7 (the last decides for all), and whose others do what `thread` does. */
static pid_t headless(void *(*thread)(void *), int threads)
{
	must(pipe2(there, 0));
	must(pipe2(back, 0));
	pid_t pid = must(fork());
	if (!pid) {
		pthread_t one;
		for (long i = 0; i < threads; i++)
			must(pthread_create(&one, NULL, thread, (void *)i) ? -1 : 0);
		syscall(SYS_exit, 7);
	}
	await_end_of(pid);
	return pid;
}

static void *end_when_asked(void *which)
{
	char byte;
	while (read(there[0], &byte, 1) != 1)
		;
	syscall(SYS_exit, 3);
	return which;
}

CASE(leader_ended_status)
{
	int status;
	pid_t pid = headless(end_when_asked, 3);
	restored();
	same(state_of(pid), 'Z');
	same(waitpid(pid, &status, WNOHANG), 0);
	put(there[1], "abc");
	same(waitpid(pid, &status, 0), pid);
	same(WIFEXITED(status), 1);
	same(WEXITSTATUS(status), 3);
}

static void *echo(void *unused)
{
	char byte;
	while (read(there[0], &byte, 1) == 1) {
		told = syscall(SYS_gettid);
		must(write(back[1], &told, sizeof told));
	}
	return unused;
}

static int asked(void)
{
	int said = -1;
	put(there[1], "?");
	must(read(back[0], &said, sizeof said));
	return said;
}

CASE(leader_ended_memory_and_files)
{
	int file = must(open(in_dir("data"), O_RDWR | O_CREAT, 0600));
	put(file, "hello");
	must(lseek(file, 1, SEEK_SET));
	pid_t pid = headless(echo, 1);
	int tid = asked();
	restored();
	same(asked(), tid);
	same(lseek(file, 0, SEEK_CUR), 1);
	same(kill(pid, 0), 0);
	same(kill(pid, SIGKILL), 0);
	int status;
	same(waitpid(pid, &status, 0), pid);
	same(WTERMSIG(status), SIGKILL);
}

static void *fork_and_wait(void *unused)
{
	int status = -1, none = 0;
	pid_t child = must(fork());
	if (!child) {
		char byte;
		int parent;
		must(write(back[1], &none, sizeof none));
		while (read(there[0], &byte, 1) != 1)
			;
		parent = getppid();
		must(write(back[1], &parent, sizeof parent));
		_exit(9);
	}
	pid_t got = waitpid(child, &status, 0);
	status = got == child ? WEXITSTATUS(status) : -1;
	must(write(back[1], &status, sizeof status));
	return unused;
}

CASE(leader_ended_children)
{
	int said = -1;
	pid_t pid = headless(fork_and_wait, 1);
	must(read(back[0], &said, sizeof said));
	restored();
	same(asked(), pid);
	must(read(back[0], &said, sizeof said));
	same(said, 9);
}

static void *fork_mourner(void *unused)
{
	int none = 0;
	await_end_of(getpid());
	if (!must(fork())) {
		char byte;
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigprocmask(SIG_BLOCK, &set, NULL);
		prctl(PR_SET_PDEATHSIG, SIGUSR2);
		must(write(back[1], &none, sizeof none));
		while (read(there[0], &byte, 1) != 1)
			;
		sigpending(&set);
		int pending = sigismember(&set, SIGUSR2);
		must(write(back[1], &pending, sizeof pending));
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		pending = sigwaitinfo(&set, NULL);
		must(write(back[1], &pending, sizeof pending));
		_exit(0);
	}
	for (;;)
		pause();
	return unused;
}

/* A child that another thread has made is not told of its parent's end by the leader's. */
CASE(leader_ended_not_mourned)
{
	int said = -1;
	pid_t pid = headless(fork_mourner, 1);
	must(read(back[0], &said, sizeof said));
	restored();
	same(asked(), 0);
	same(kill(pid, SIGKILL), 0);
	must(read(back[0], &said, sizeof said));
	same(said, SIGUSR2);
}

static void *take_signal(void *which)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	for (;;) {
		siginfo_t info;
		if (sigwaitinfo(&set, &info) == SIGUSR2)
			must(write(back[1], &info.si_value.sival_int, sizeof(int)));
	}
	return which;
}

CASE(leader_ended_signals)
{
	union sigval value = { .sival_int = 42 };
	sigset_t set;
	int said = -1;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	must(sigprocmask(SIG_BLOCK, &set, NULL));
	pid_t pid = headless(take_signal, 1);
	restored();
	must(sigqueue(pid, SIGUSR2, value));
	must(read(back[0], &said, sizeof said));
	same(said, 42);
}

/* Stopped by job control, too. */
CASE(leader_ended_stopped)
{
	int status;
	pid_t pid = headless(echo, 2);
	asked();
	must(kill(pid, SIGSTOP));
	same(waitpid(pid, &status, WUNTRACED), pid);
	restored();
	must(kill(pid, SIGCONT));
	holds(asked() > 0);
	same(state_of(pid), 'Z');
}

/* Fifty threads, of which the group is. */
CASE(leader_ended_many_threads)
{
	pid_t pid = headless(end_when_asked, 50);
	restored();
	int status = 0;
	for (int i = 0; i < 50; i++)
		put(there[1], "x");
	same(waitpid(pid, &status, 0), pid);
	same(WEXITSTATUS(status), 3);
}

/* what prctl(2) and its like keep */

#define GET_MDWE 66
#define SET_MDWE 65
#define GET_MEMORY_MERGE 68
#define SET_MEMORY_MERGE 67
#define GET_SPECULATION 52
#define SET_SPECULATION 53

CASE(deny_write_execute)
{
	if (prctl(SET_MDWE, 1, 0, 0, 0))
		cannot("no PR_SET_MDWE");
	restored();
	same(prctl(GET_MDWE, 0, 0, 0, 0), 1);
	holds(mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
}

CASE(deny_write_execute_not_inherited)
{
	if (prctl(SET_MDWE, 1 | 2, 0, 0, 0))
		cannot("no PR_MDWE_NO_INHERIT");
	restored();
	same(prctl(GET_MDWE, 0, 0, 0, 0), 3);
	pid_t pid = must(fork());
	if (!pid)
		_exit(prctl(GET_MDWE, 0, 0, 0, 0));
	int status;
	same(waitpid(pid, &status, 0), pid);
	same(WEXITSTATUS(status), 0);
}

static int merges(void)
{
	return prctl(GET_MEMORY_MERGE, 0, 0, 0, 0);
}

CASE(memory_merge)
{
	if (prctl(SET_MEMORY_MERGE, 1, 0, 0, 0))
		cannot("no PR_SET_MEMORY_MERGE");
	struct child child = spawn(NULL, merges);
	restored();
	same(merges(), 1);
	same(ask(child), 1);
}

#define MEMBARRIER_PRIVATE 8
#define MEMBARRIER_REGISTER_PRIVATE 16
#define MEMBARRIER_GLOBAL_EXPEDITED 2
#define MEMBARRIER_REGISTER_GLOBAL 4

CASE(membarrier_registered)
{
	if (syscall(SYS_membarrier, MEMBARRIER_REGISTER_PRIVATE, 0, 0))
		cannot("no membarrier");
	restored();
	same(syscall(SYS_membarrier, MEMBARRIER_PRIVATE, 0, 0), 0);
}

CASE(membarrier_registrations)
{
	if (syscall(SYS_membarrier, MEMBARRIER_REGISTER_GLOBAL, 0, 0) ||
	    syscall(SYS_membarrier, MEMBARRIER_REGISTER_PRIVATE, 0, 0))
		cannot("no membarrier");
	long before = syscall(SYS_membarrier, 512, 0, 0);
	restored();
	same(syscall(SYS_membarrier, 512, 0, 0), before);
}

static int speculation_of_thread = -1, speculation_turn[2];

static void *speculates_not(void *unused)
{
	char byte;
	prctl(SET_SPECULATION, 0, 4, 0, 0);
	must(write(back[1], "", 1));
	must(read(speculation_turn[0], &byte, 1));
	speculation_of_thread = prctl(GET_SPECULATION, 0, 0, 0, 0);
	must(write(back[1], "", 1));
	return unused;
}

CASE(speculation_of_one_thread)
{
	char byte;
	pthread_t thread;
	int own = prctl(GET_SPECULATION, 0, 0, 0, 0);
	if (own < 0 || !(own & 1))
		cannot("store bypass is not set by prctl here");
	must(pipe(back));
	must(pipe(speculation_turn));
	must(pthread_create(&thread, NULL, speculates_not, NULL) ? -1 : 0);
	must(read(back[0], &byte, 1));
	restored();
	put(speculation_turn[1], "?");
	must(read(back[0], &byte, 1));
	same(speculation_of_thread, 1 | 4);
	same(prctl(GET_SPECULATION, 0, 0, 0, 0), own);
}

CASE(memory_policy)
{
	unsigned long nodes = 1, got[16] = { 0 };
	int mode = -1;
	if (syscall(SYS_set_mempolicy, 2 /* MPOL_BIND */, &nodes, 65))
		cannot("no memory policies");
	restored();
	same(syscall(SYS_get_mempolicy, &mode, got, 1024, 0, 0), 0);
	same(mode, 2);
	same(got[0], 1);
}

CASE(io_flusher)
{
	if (prctl(57, 1, 0, 0, 0))
		cannot("no PR_SET_IO_FLUSHER");
	restored();
	same(prctl(58, 0, 0, 0, 0), 1);
}

static int autogroup_nice(void)
{
	char text[64] = "";
	int fd = open("/proc/self/autogroup", O_RDONLY | O_CLOEXEC), nice = -77;
	if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
		return -77;
	close(fd);
	sscanf(text, "/autogroup-%*d nice %d", &nice);
	return nice;
}

static void lead_session(void)
{
	must(setsid());
	int fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		put(fd, "7");
	close(fd);
}

CASE(autogroup)
{
	struct child child = spawn(lead_session, autogroup_nice);
	if (ask(child) != 7)
		cannot("no automatic groups");
	int own = autogroup_nice();
	restored();
	same(ask(child), 7);
	same(autogroup_nice(), own);
}

REFUSED(keyring_of_a_thread, "!keyring")
{
	if (syscall(SYS_keyctl, 0, -1, 1) < 0)
		cannot("no keyrings");
	restored();
}

REFUSED(keyring_of_a_process, "!keyring")
{
	if (syscall(SYS_add_key, "user", "ckpt-case", "x", 1, -2) < 0)
		cannot("no keyrings");
	restored();
}

REFUSED(segments_of_its_own, "!modify_ldt")
{
	struct {
		unsigned number, base, limit, bits;
	} one = { 0, 0x1000, 0xfffff, 1 | 1 << 4 | 1 << 6 };
	if (syscall(SYS_modify_ldt, 1, &one, sizeof one))
		cannot("no modify_ldt");
	restored();
}

/* cgroups that the service made (Delegate=) */

static char cgroup_before[512], cgroup_dir[1024];

static const char *own_cgroup(void)
{
	static char text[512];
	int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	close(fd);
	text[length > 0 ? length : 0] = 0;
	char *at = strstr(text, "0::");
	at = at ? at + 3 : text;
	at[strcspn(at, "\n")] = 0;
	return at;
}

static int move_below(const char *name)
{
	char path[1200];
	snprintf(cgroup_dir, sizeof cgroup_dir, "/sys/fs/cgroup%s/%s", own_cgroup(), name);
	if (mkdir(cgroup_dir, 0755) && errno != EEXIST)
		return -1;
	snprintf(path, sizeof path, "%s/cgroup.procs", cgroup_dir);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int moved = fd < 0 ? -1 : write(fd, "0", 1) == 1 ? 0 : -1;
	close(fd);
	return moved;
}

static void move_twice(void)
{
	if (!move_below("inner"))
		move_below("most");
	snprintf(cgroup_before, sizeof cgroup_before, "%s", own_cgroup());
}

static int is_there(void)
{
	const char *now = own_cgroup();
	return strcmp(now, cgroup_before) ? 1 : strstr(now, "/inner/most") ? 0 : 2;
}

CASE(cgroups_below)
{
	struct child child = spawn(move_twice, is_there);
	if (ask(child) == 2)
		cannot("no cgroups can be made here");
	snprintf(cgroup_before, sizeof cgroup_before, "%s", own_cgroup());
	restored();
	same(ask(child), 0);
	holds(!strcmp(own_cgroup(), cgroup_before));
	/* It can make more. */
	same(move_below("later"), 0);
}

REFUSED(cgroups_of_threads, "cgroup-threaded")
{
	char path[1200];
	snprintf(path, sizeof path, "/sys/fs/cgroup%s/threads", own_cgroup());
	if (mkdir(path, 0755))
		cannot("no cgroups can be made here");
	strcat(path, "/cgroup.type");
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "threaded", 8) != 8)
		cannot("no threaded cgroups");
	restored();
}

/* Syscall User Dispatch */

static volatile char selectors[2];
static volatile int dispatched[2], go_on;
static __thread int dispatches;

static void dispatch(int signal)
{
	(void)signal;
	selectors[dispatches] = 0;
	dispatched[dispatches]++;
}

static void dispatch_all(int thread)
{
	dispatches = thread;
	must(prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0L, 0L, &selectors[thread]));
}

static void *blocks_at_the_stop(void *unused)
{
	dispatch_all(1);
	selectors[1] = 1;
	while (!go_on)
		;
	syscall(SYS_getppid);
	selectors[1] = 0;
	return unused;
}

CASE(system_call_dispatch)
{
	pthread_t thread;
	signal(SIGSYS, dispatch);
	dispatch_all(0);
	must(pthread_create(&thread, NULL, blocks_at_the_stop, NULL) ? -1 : 0);
	while (!selectors[1])
		;
	restored();
	selectors[0] = 1;
	syscall(SYS_getppid);
	selectors[0] = 0;
	go_on = 1;
	pthread_join(thread, NULL);
	same(dispatched[0], 1);
	same(dispatched[1], 1);
}

static int let_go[2];

static void *waits_for_its_child(void *unused)
{
	pid_t child = vfork();
	if (!child) {
		char byte;
		read(let_go[0], &byte, 1);
		_exit(0);
	}
	must(waitpid(child, NULL, 0));
	return unused;
}

REFUSED(parent_in_vfork, "vfork")
{
	pthread_t thread;
	must(pipe(let_go));
	must(pthread_create(&thread, NULL, waits_for_its_child, NULL) ? -1 : 0);
	usleep(100000);
	restored();
	must(write(let_go[1], "", 1));
	pthread_join(thread, NULL);
}
