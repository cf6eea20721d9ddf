/* Every way to a new program, with the environment kept, emptied, or with another LD_PRELOAD.
 * Each child is this program again with the argument "child NAME": it prints "NAME yes" if the library is loaded. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;
static char *nothing[] = {NULL};
static char *other[] = {"A=1", "LD_PRELOAD=", "B=2", NULL};
static char *twice[] = {"LD_PRELOAD=/a.so", "B=2", "LD_PRELOAD=libm.so.6", NULL};
static char **environments[] = {NULL, nothing, other, twice};
static const char *names[] = {"null", "empty", "other", "twice"};

static pid_t raw_fork(void)
{
	return syscall(SYS_fork);
}

static int child(const char *name)
{
	char line[512];
	int gates = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		gates += strstr(line, "/memfd:ckpt-gate") != NULL;
	fclose(maps);
	printf("%s %s\n", name, gates == 1 ? "yes" : "no");
	fflush(stdout);
	return 0;
}

#define IN(how, name, call)                                  \
	do {                                                 \
		pid_t pid = how();                           \
		if (pid == 0) {                              \
			call;                                \
			_exit(99);                           \
		}                                            \
		int status;                                  \
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status) \
			printf("%s failed\n", name);         \
	} while (0)

static void all(const char *which, char **environment)
{
	char name[64];
	pid_t pid;
#define NAME(way) (snprintf(name, sizeof name, "%s-%s", way, which), name)
	char *arguments[] = {self, "child", name, NULL};
	NAME("fork-execve");
	IN(fork, name, execve(self, arguments, environment));
	NAME("vfork-execve");
	IN(vfork, name, execve(self, arguments, environment));
	NAME("_Fork-execve");
	IN(_Fork, name, execve(self, arguments, environment));
	NAME("vfork-execle");
	IN(vfork, name, execle(self, self, "child", name, NULL, environment));
	NAME("fork-execvpe");
	IN(fork, name, execvpe(self, arguments, environment));
	NAME("fork-fexecve");
	IN(fork, name, fexecve(open(self, O_RDONLY | O_CLOEXEC), arguments, environment));
	NAME("fork-execveat");
	IN(fork, name, execveat(AT_FDCWD, self, arguments, environment, 0));
	NAME("fork-syscall-execve");
	IN(fork, name, syscall(SYS_execve, self, arguments, environment));
	NAME("fork-syscall-execveat");
	IN(fork, name, syscall(SYS_execveat, AT_FDCWD, self, arguments, environment, 0));
	NAME("posix_spawn");
	if (posix_spawn(&pid, self, NULL, NULL, arguments, environment) || waitpid(pid, NULL, 0) != pid)
		printf("%s failed\n", name);
	NAME("posix_spawnp");
	if (posix_spawnp(&pid, self, NULL, NULL, arguments, environment) || waitpid(pid, NULL, 0) != pid)
		printf("%s failed\n", name);

	environ = environment;
	NAME("fork-execv");
	IN(fork, name, execv(self, arguments));
	NAME("vfork-execvp");
	IN(vfork, name, execvp(self, arguments));
	NAME("vfork-execl");
	IN(vfork, name, execl(self, self, "child", name, NULL));
	NAME("fork-execlp");
	IN(fork, name, execlp(self, self, "child", name, "and", "more", "than", "fit", "in", "registers", NULL));
	char command[256];
	NAME("system");
	snprintf(command, sizeof command, "X='a b'; %s child %s; test \"$X\" = 'a b' && exit 3", self, name);
	if (WEXITSTATUS(system(command)) != 3)
		printf("%s failed\n", name);
	NAME("popen");
	snprintf(command, sizeof command, "%s child '%s'", self, name);
	FILE *pipe = popen(command, "r");
	if (!pipe || !fgets(command, sizeof command, pipe) || pclose(pipe))
		printf("%s failed\n", name);
	fputs(command, stdout);
}

int main(int count, char **arguments)
{
	self = arguments[0];
	if (count > 2 && !strcmp(arguments[1], "child"))
		return child(arguments[2]);
	setvbuf(stdout, NULL, _IONBF, 0);
	char **own = environ;
	for (int which = 0; which < 4; which++)
		all(names[which], environments[which]);
	all("own", own);
	environ = own;

	/* Very many arguments, and a raw fork that no hook sees. */
	int many = 20000;
	char **long_list = calloc(many + 4, sizeof *long_list);
	long_list[0] = self, long_list[1] = "child", long_list[2] = "many";
	for (int at = 3; at < many; at++)
		long_list[at] = "x";
	IN(vfork, "many", execve(self, long_list, nothing));
	IN(raw_fork, "raw", _exit(child("raw-fork")));
	return 0;
}
