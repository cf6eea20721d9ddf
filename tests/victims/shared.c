/* Property: shared memory stays shared between the same processes: anonymous, memfd, tmpfs file, System V. */
#include "victim.h"
#include <poll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { SIZE = 1 << 20, KINDS = 5 };

static const char *const names[KINDS] = { "anonymous", "memfd", "/dev/shm", "System V", "file" };
static unsigned char *memory[KINDS];
static int memory_fd, to_child[2], from_child[2], segment, semaphores;
static char shm_name[64];

static void change(void)
{
	for (int kind = 0; kind < KINDS; kind++)
		memset(memory[kind], 16 * (kind + 1) + (generation + 1) % 16, SIZE);
	must(semctl(semaphores, 1, SETVAL, 10 + generation + 1));
}

/* The child adds one to the byte at an offset, in each memory. */
static void child(void)
{
	for (;;) {
		int at;
		ssize_t length = read(to_child[0], &at, sizeof at);
		if (length == 0)
			_exit(0);
		if (length != sizeof at)
			continue;
		for (int kind = 0; kind < KINDS; kind++)
			memory[kind][at]++;
		must(write(from_child[1], "x", 1));
	}
}

static void verify(void)
{
	int at = 4096 * 17 + 5;
	char byte;
	struct shmid_ds status;
	struct pollfd ready = { .fd = from_child[0], .events = POLLIN };
	for (int kind = 0; kind < KINDS; kind++)
		for (int i = 0; i < SIZE; i += 511)
			expect(memory[kind][i] == (unsigned char)(16 * (kind + 1) + generation % 16),
			       "%s memory differs at %d: %d", names[kind], i, memory[kind][i]);
	must(write(to_child[1], &at, sizeof at));
	int answered = poll(&ready, 1, 5000) == 1;
	expect(answered, "the child does not answer");
	if (answered)
		must(read(from_child[0], &byte, 1));
	for (int kind = 0; kind < KINDS; kind++) {
		expect(memory[kind][at] == (unsigned char)(16 * (kind + 1) + generation % 16 + 1),
		       "%s memory is not shared any more", names[kind]);
		memory[kind][at]--;
	}
	expect(fcntl(memory_fd, F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SHRINK), "the memfd's seals are %x",
	       fcntl(memory_fd, F_GET_SEALS));
	expect(!shmctl(segment, IPC_STAT, &status) && status.shm_nattch == 2 && status.shm_segsz == SIZE,
	       "the segment is attached %lu times", (unsigned long)status.shm_nattch);
	expect(semctl(semaphores, 0, GETVAL) == 3 && semctl(semaphores, 1, GETVAL) == 10 + generation,
	       "the semaphores are %d and %d", semctl(semaphores, 0, GETVAL), semctl(semaphores, 1, GETVAL));
}

static unsigned char *share(int fd, int flags)
{
	void *place = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
	must(place == MAP_FAILED ? -1 : 0);
	return place;
}

int main(int argc, char **argv)
{
	victim(argc, argv);
	memory[0] = share(-1, MAP_ANONYMOUS);
	memory_fd = must(memfd_create("victim", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	must(ftruncate(memory_fd, SIZE));
	must(fcntl(memory_fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK));
	memory[1] = share(memory_fd, 0);
	snprintf(shm_name, sizeof shm_name, "/ckpt-victim-%d", getpid());
	int fd = must(shm_open(shm_name, O_RDWR | O_CREAT | O_EXCL, 0600));
	must(ftruncate(fd, SIZE));
	memory[2] = share(fd, 0);
	segment = must(shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600));
	memory[3] = shmat(segment, NULL, 0);
	must(memory[3] == (void *)-1 ? -1 : 0);
	fd = must(open(in_dir("shared"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
	must(ftruncate(fd, SIZE));
	memory[4] = share(fd, 0);
	close(fd);
	semaphores = must(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600));
	must(semctl(semaphores, 0, SETVAL, 3));
	must(pipe2(to_child, O_CLOEXEC));
	must(pipe2(from_child, O_CLOEXEC));
	generation = -1;
	change();
	if (!must(fork())) {
		close(to_child[1]);
		child();
	}
	close(to_child[0]);
	return serve(change, verify);
}
