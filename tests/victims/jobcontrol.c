/* Property: stopped children stay stopped until they are continued, and their parent is told of what becomes of them. */
#include "victim.h"

static pid_t seen, unseen, running;

static pid_t child(void)
{
	pid_t pid = must(fork());
	if (!pid)
		for (;;)
			pause();
	return pid;
}

static char state(pid_t pid)
{
	char path[64], text[512] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return '-';
	ssize_t length = read(fd, text, sizeof text - 1);
	close(fd);
	char *end = length > 0 ? strrchr(text, ')') : NULL;
	return end ? end[2] : '?';
}

static void verify(void)
{
	int status;
	expect(state(seen) == 'T', "the child that was seen stopped is %c", state(seen));
	expect(state(unseen) == 'T', "the child that nobody saw stopped is %c", state(unseen));
	expect(state(running) == 'S', "the child that runs is %c", state(running));
	expect(waitpid(running, &status, WNOHANG | WUNTRACED) == 0, "the child that runs reports something");
	/* A stop that was told before may be told again. */
	int told = waitpid(seen, &status, WNOHANG | WUNTRACED);
	expect(told == 0 || (told == seen && WIFSTOPPED(status)), "it has ended");
	/* Continue, and stop again: both are told. */
	must(kill(unseen, SIGCONT));
	expect(waitpid(unseen, &status, WCONTINUED) == unseen && WIFCONTINUED(status), "it is not continued");
	must(kill(unseen, SIGSTOP));
	expect(waitpid(unseen, &status, WUNTRACED) == unseen && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP,
	       "it does not stop");
}

int main(int argc, char **argv)
{
	int status;
	victim(argc, argv);
	seen = child(), unseen = child(), running = child();
	must(kill(seen, SIGSTOP));
	must(kill(unseen, SIGSTOP));
	must(waitpid(seen, &status, WUNTRACED));
	while (state(unseen) != 'T' || state(running) != 'S')
		usleep(1000);
	must(waitpid(unseen, &status, WUNTRACED));
	return serve(NULL, verify);
}
