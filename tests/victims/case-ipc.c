/* Properties of System V IPC and POSIX message queues. */
#include "case.h"
#include <mqueue.h>
#include <pthread.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

/* System V */

CASE(sysv_semaphores)
{
	int id = must(semget(IPC_PRIVATE, 3, 0600));
	must(semctl(id, 0, SETVAL, 4));
	must(semctl(id, 2, SETVAL, 7));
	restored();
	same(semctl(id, 0, GETVAL), 4);
	same(semctl(id, 1, GETVAL), 0);
	same(semctl(id, 2, GETVAL), 7);
	must(semctl(id, 0, IPC_RMID));
}

CASE(sysv_semaphore_waiter)
{
	int id = must(semget(IPC_PRIVATE, 1, 0600)), status;
	struct sembuf down = { 0, -1, 0 };
	pid_t pid = must(fork());
	if (!pid) {
		int result = semop(id, &down, 1);
		_exit(result ? errno : 0);
	}
	usleep(50000);
	restored();
	must(semctl(id, 0, SETVAL, 1));
	must(waitpid(pid, &status, 0));
	same(status, 0);
	must(semctl(id, 0, IPC_RMID));
}

/* SEM_UNDO: 0 is undone by +3, 1 by -2 */
static int undo_set;
static void hold_semaphores(void)
{
	struct sembuf down = { 0, -3, SEM_UNDO }, up = { 1, 2, SEM_UNDO };
	must(semop(undo_set, &down, 1));
	must(semop(undo_set, &up, 1));
}

static void *idles(void *nothing)
{
	pause();
	return nothing;
}

static void semaphores_undone(int threads)
{
	pthread_t thread;
	int status;
	undo_set = must(semget(IPC_PRIVATE, 3, 0600));
	for (int i = 0; i < 3; i++)
		must(semctl(undo_set, i, SETVAL, 10));
	if (threads)
		must(pthread_create(&thread, NULL, idles, NULL));
	struct child child = spawn(hold_semaphores, NULL), idle = spawn(NULL, NULL);
	restored();
	same(semctl(undo_set, 0, GETVAL), 7);
	same(semctl(undo_set, 1, GETVAL), 12);
	kill(idle.pid, SIGKILL);
	must(waitpid(idle.pid, &status, 0));
	same(semctl(undo_set, 0, GETVAL), 7);
	kill(child.pid, SIGKILL);
	must(waitpid(child.pid, &status, 0));
	same(semctl(undo_set, 0, GETVAL), 10);
	same(semctl(undo_set, 1, GETVAL), 10);
	same(semctl(undo_set, 2, GETVAL), 10);
	must(semctl(undo_set, 0, IPC_RMID));
}

CASE(sysv_semaphores_undone)
{
	semaphores_undone(0);
}

CASE(sysv_semaphores_undone_of_many)
{
	semaphores_undone(1);
}

CASE(sysv_semaphores_undone_extremes)
{
	int id = must(semget(IPC_PRIVATE, 4, 0600)), status;
	must(semctl(id, 0, SETVAL, 32767));
	must(semctl(id, 2, SETVAL, 32767));
	must(semctl(id, 3, SETVAL, 20000));
	int go[2];
	must(pipe(go));
	pid_t pid = must(fork());
	if (!pid) {
		struct sembuf steps[] = { { 0, -32767, SEM_UNDO }, { 1, 32767, SEM_UNDO }, { 2, -1, SEM_UNDO },
					  { 2, 1, SEM_UNDO }, { 3, -300, SEM_UNDO } };
		char byte;
		for (int i = 0; i < 5; i++)
			must(semop(id, steps + i, 1));
		close(go[1]);
		_exit(read(go[0], &byte, 1));
	}
	usleep(50000);
	restored();
	same(semctl(id, 0, GETVAL), 0);
	same(semctl(id, 1, GETVAL), 32767);
	same(semctl(id, 3, GETVAL), 19700);
	close(go[1]);
	must(waitpid(pid, &status, 0));
	same(status, 0);
	same(semctl(id, 0, GETVAL), 32767);
	same(semctl(id, 1, GETVAL), 0);
	same(semctl(id, 2, GETVAL), 32767);
	same(semctl(id, 3, GETVAL), 20000);
	must(semctl(id, 0, IPC_RMID));
}

struct message {
	long type;
	char text[64];
};

CASE(sysv_messages)
{
	struct message message = { 5, "five" }, got = { 0 };
	int id = must(msgget(IPC_PRIVATE, 0600));
	must(msgsnd(id, &message, 5, 0));
	message = (struct message){ 3, "three" };
	must(msgsnd(id, &message, 6, 0));
	restored();
	same(msgrcv(id, &got, sizeof got.text, 3, IPC_NOWAIT), 6);
	holds(!strcmp(got.text, "three"));
	same(msgrcv(id, &got, sizeof got.text, 0, IPC_NOWAIT), 5);
	same(got.type, 5);
	holds(!strcmp(got.text, "five"));
	must(msgctl(id, IPC_RMID, NULL));
}

/* As many as stress-ng makes: what is asked for each must not be a list of all. */
CASE(sysv_many)
{
	enum { COUNT = 1500 };
	static int queues[COUNT], sets[COUNT];
	struct message message = { 1, "" }, got;
	for (int i = 0; i < COUNT; i++) {
		queues[i] = must(msgget(IPC_PRIVATE, 0600));
		sets[i] = must(semget(IPC_PRIVATE, 1, 0600));
		snprintf(message.text, sizeof message.text, "%d", i);
		must(msgsnd(queues[i], &message, 8, 0));
		must(semctl(sets[i], 0, SETVAL, i));
	}
	restored();
	for (int i = 0; i < COUNT; i++) {
		same(msgrcv(queues[i], &got, 8, 0, IPC_NOWAIT), 8);
		same(atoi(got.text), i);
		same(semctl(sets[i], 0, GETVAL), i);
		must(msgctl(queues[i], IPC_RMID, NULL));
		must(semctl(sets[i], 0, IPC_RMID));
	}
}

CASE(sysv_messages_key_and_limits)
{
	struct msqid_ds status;
	key_t key = 0x4711cafe;
	int old = msgget(key, 0);
	if (old >= 0)
		msgctl(old, IPC_RMID, NULL);
	int id = must(msgget(key, IPC_CREAT | 0640));
	must(msgctl(id, IPC_STAT, &status));
	status.msg_qbytes = 1000;
	must(msgctl(id, IPC_SET, &status));
	struct message message = { 5, "five" };
	must(msgsnd(id, &message, 5, 0));
	restored();
	same(msgget(key, 0), id);
	must(msgctl(id, IPC_STAT, &status));
	same(status.msg_qbytes, 1000);
	same(status.msg_qnum, 1);
	same(status.msg_perm.mode & 0777, 0640);
	must(msgctl(id, IPC_RMID, NULL));
}

CASE(sysv_messages_reader_waits)
{
	struct message message = { 1, "x" };
	int id = must(msgget(IPC_PRIVATE, 0600)), status;
	pid_t pid = must(fork());
	if (!pid)
		_exit(msgrcv(id, &message, 64, 0, 0) == 2 ? 0 : errno);
	usleep(50000);
	must(msgctl(id, IPC_STAT, &(struct msqid_ds){ 0 }));
	restored();
	must(msgsnd(id, &message, 2, 0));
	must(waitpid(pid, &status, 0));
	same(status, 0);
	must(msgctl(id, IPC_RMID, NULL));
}

CASE(sysv_messages_reader_of_a_type_waits)
{
	struct message message = { 1, "other" };
	int id = must(msgget(IPC_PRIVATE, 0600)), status;
	pid_t pid = must(fork());
	if (!pid)
		_exit(msgrcv(id, &message, 64, -5, 0) == 3 && message.type == 4 ? 0 : 1);
	message.type = 9;
	must(msgsnd(id, &message, 6, 0));
	usleep(50000);
	restored();
	same(waitpid(pid, &status, WNOHANG), 0);
	message.type = 4;
	must(msgsnd(id, &message, 3, 0));
	must(waitpid(pid, &status, 0));
	same(status, 0);
	same(msgrcv(id, &message, 64, 0, IPC_NOWAIT), 6);
	same(message.type, 9);
	must(msgctl(id, IPC_RMID, NULL));
}

CASE(sysv_messages_writer_waits)
{
	struct message message = { 1, "" }, got;
	struct msqid_ds status;
	int id = must(msgget(IPC_PRIVATE, 0600)), ended;
	must(msgctl(id, IPC_STAT, &status));
	status.msg_qbytes = 90;
	must(msgctl(id, IPC_SET, &status));
	for (int i = 0; i < 3; i++) {
		message.text[0] = '0' + i;
		must(msgsnd(id, &message, 30, 0));
	}
	pid_t pid = must(fork());
	if (!pid) {
		message.type = 7;
		_exit(msgsnd(id, &message, 30, 0) ? errno : 0);
	}
	usleep(50000);
	restored();
	same(waitpid(pid, &ended, WNOHANG), 0);
	same(msgsnd(id, &message, 30, IPC_NOWAIT), -1);
	same(errno, EAGAIN);
	for (int i = 0; i < 3; i++) {
		same(msgrcv(id, &got, 64, 0, IPC_NOWAIT), 30);
		same(got.text[0], '0' + i);
		same(got.type, 1);
	}
	must(waitpid(pid, &ended, 0));
	same(ended, 0);
	same(msgrcv(id, &got, 64, 0, 0), 30);
	same(got.type, 7);
	must(msgctl(id, IPC_RMID, NULL));
}

CASE(sysv_messages_more_than_the_limit)
{
	static struct {
		long type;
		char text[8000];
	} message, got;
	struct msqid_ds status;
	int id = must(msgget(IPC_PRIVATE, 0600));
	memset(message.text, 'm', sizeof message.text);
	for (int i = 0; i < 40; i++) {
		message.type = 1 + i % 7;
		message.text[0] = i;
		must(msgsnd(id, &message, i % 5 ? i : 1500, 0));
	}
	must(msgctl(id, IPC_STAT, &status));
	status.msg_qbytes = 10;
	must(msgctl(id, IPC_SET, &status));
	restored();
	must(msgctl(id, IPC_STAT, &status));
	same(status.msg_qbytes, 10);
	same(status.msg_qnum, 40);
	for (int i = 0; i < 40; i++) {
		same(msgrcv(id, &got, sizeof got.text, 0, IPC_NOWAIT), i % 5 ? i : 1500);
		same(got.type, 1 + i % 7);
		holds(i % 5 == 0 || i == 0 || got.text[0] == i);
	}
	same(msgrcv(id, &got, sizeof got.text, 0, IPC_NOWAIT), -1);
	same(errno, ENOMSG);
	must(msgctl(id, IPC_RMID, NULL));
}

CASE(sysv_messages_owner_and_users)
{
	struct msqid_ds before, after;
	struct message message = { 1, "x" };
	int id = must(msgget(IPC_PRIVATE, 0604));
	must(msgctl(id, IPC_STAT, &before));
	before.msg_perm.uid = 4711;
	before.msg_perm.gid = 4712;
	must(msgctl(id, IPC_SET, &before));
	must(msgsnd(id, &message, 1, 0));
	must(msgsnd(id, &message, 2, 0));
	same(msgrcv(id, &message, 64, 0, 0), 1);
	must(msgctl(id, IPC_STAT, &before));
	restored();
	must(msgctl(id, IPC_STAT, &after));
	same(after.msg_perm.uid, 4711);
	same(after.msg_perm.gid, 4712);
	same(after.msg_perm.cuid, before.msg_perm.cuid);
	same(after.msg_perm.mode & 0777, 0604);
	same(after.msg_lspid, getpid());
	same(after.msg_lrpid, getpid());
	same(after.msg_qnum, 1);
	same(after.__msg_cbytes, 2);
	must(msgctl(id, IPC_RMID, NULL));
}

CASE(sysv_messages_empty_but_used)
{
	struct msqid_ds status;
	struct message message = { 1, "x" };
	int id = must(msgget(IPC_PRIVATE, 0600));
	must(msgsnd(id, &message, 1, 0));
	same(msgrcv(id, &message, 64, 0, 0), 1);
	restored();
	must(msgctl(id, IPC_STAT, &status));
	same(status.msg_qnum, 0);
	same(status.msg_lspid, getpid());
	must(msgsnd(id, &message, 1, 0));
	same(msgrcv(id, &message, 64, 0, 0), 1);
	must(msgctl(id, IPC_RMID, NULL));
}

CASE(sysv_segment_unattached_whole)
{
	struct shmid_ds before, after;
	key_t key = 0x4711beef;
	int old = shmget(key, 0, 0);
	if (old >= 0)
		shmctl(old, IPC_RMID, NULL);
	int id = must(shmget(key, 3 * 4096 + 5, IPC_CREAT | 0640));
	char *at = shmat(id, NULL, 0);
	strcpy(at + 2 * 4096 + 3, "far in it");
	at[3 * 4096 + 4] = 'e';
	must(shmdt(at));
	must(shmctl(id, IPC_STAT, &before));
	before.shm_perm.uid = 4711;
	must(shmctl(id, IPC_SET, &before));
	restored();
	same(shmget(key, 0, 0), id);
	must(shmctl(id, IPC_STAT, &after));
	same(after.shm_segsz, 3 * 4096 + 5);
	same(after.shm_perm.uid, 4711);
	same(after.shm_perm.mode & 0777, 0640);
	same(after.shm_nattch, 0);
	same(after.shm_lpid, getpid());
	at = shmat(id, NULL, 0);
	holds(at != (void *)-1 && !strcmp(at + 2 * 4096 + 3, "far in it") && !at[0] && at[3 * 4096 + 4] == 'e');
	must(shmctl(id, IPC_RMID, NULL));
}

CASE(sysv_segment_unattached)
{
	int id = must(shmget(IPC_PRIVATE, 4096, 0600));
	char *at = shmat(id, NULL, 0);
	strcpy(at, "nobody is attached");
	must(shmdt(at));
	restored();
	at = shmat(id, NULL, 0);
	holds(at != (void *)-1 && !strcmp(at, "nobody is attached"));
	must(shmctl(id, IPC_RMID, NULL));
}

/* POSIX message queues and semaphores */

static const char *queue_name = "/case-queue";

CASE(posix_queue)
{
	struct mq_attr attributes = { .mq_maxmsg = 5, .mq_msgsize = 100 }, got;
	char text[100] = "";
	unsigned priority;
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT | O_NONBLOCK, 0640, &attributes);
	if (queue < 0)
		cannot("no message queues");
	must(mq_send(queue, "low", 4, 1));
	must(mq_send(queue, "high", 5, 9));
	must(mq_send(queue, "low too", 8, 1));
	restored();
	must(mq_getattr(queue, &got));
	same(got.mq_maxmsg, 5);
	same(got.mq_msgsize, 100);
	same(got.mq_curmsgs, 3);
	same(got.mq_flags, O_NONBLOCK);
	same(mq_receive(queue, text, sizeof text, &priority), 5);
	same(priority, 9);
	holds(!strcmp(text, "high"));
	same(mq_receive(queue, text, sizeof text, &priority), 4);
	same(mq_receive(queue, text, sizeof text, &priority), 8);
	mqd_t again = mq_open(queue_name, O_RDONLY);
	holds(again >= 0);
	mq_unlink(queue_name);
}

CASE(posix_queue_unlinked)
{
	char text[9000];
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT, 0600, NULL);
	if (queue < 0)
		cannot("no message queues");
	must(mq_send(queue, "gone", 5, 0));
	must(mq_unlink(queue_name));
	restored();
	same(mq_receive(queue, text, sizeof text, NULL), 5);
}

REFUSED(posix_queue_notify, "message-queue")
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 6 };
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT, 0600, NULL);
	if (queue < 0)
		cannot("no message queues");
	must(mq_notify(queue, &event));
	restored();
	must(mq_send(queue, "x", 1, 0));
	siginfo_t info;
	struct timespec limit = { 5, 0 };
	same(sigtimedwait(&set, &info, &limit), SIGRTMIN);
	same(info.si_value.sival_int, 6);
	mq_unlink(queue_name);
}

CASE(posix_queue_reader_waits)
{
	char text[9000];
	int status;
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT, 0600, NULL);
	if (queue < 0)
		cannot("no message queues");
	pid_t pid = must(fork());
	if (!pid)
		_exit(mq_receive(queue, text, sizeof text, NULL) == 3 ? 0 : 1);
	usleep(50000);
	restored();
	same(waitpid(pid, &status, WNOHANG), 0);
	must(mq_send(queue, "hi", 3, 4));
	must(waitpid(pid, &status, 0));
	same(status, 0);
	mq_unlink(queue_name);
}

CASE(posix_queue_full_and_writer_waits)
{
	struct mq_attr attributes = { .mq_maxmsg = 4, .mq_msgsize = 10 };
	char text[10] = "";
	unsigned priority;
	int status;
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT, 0600, &attributes);
	if (queue < 0)
		cannot("no message queues");
	for (int i = 0; i < 4; i++) {
		text[0] = '0' + i;
		must(mq_send(queue, text, i ? 10 : 0, 5));
	}
	pid_t pid = must(fork());
	if (!pid)
		_exit(mq_send(queue, "w", 1, 9) ? errno : 0);
	usleep(50000);
	restored();
	same(waitpid(pid, &status, WNOHANG), 0);
	same(mq_receive(queue, text, sizeof text, &priority), 0);
	must(waitpid(pid, &status, 0));
	same(status, 0);
	same(mq_receive(queue, text, sizeof text, &priority), 1);
	same(priority, 9);
	for (int i = 1; i < 4; i++) {
		same(mq_receive(queue, text, sizeof text, &priority), 10);
		same(text[0], '0' + i);
	}
	mq_unlink(queue_name);
}

CASE(posix_queue_descriptors)
{
	struct mq_attr attributes = { .mq_maxmsg = 6, .mq_msgsize = 10 }, got;
	struct stat status;
	struct pollfd poll_in;
	char text[10];
	mq_unlink(queue_name);
	umask(0);
	mqd_t queue = mq_open(queue_name, O_WRONLY | O_CREAT, 0624, &attributes);
	if (queue < 0)
		cannot("no message queues");
	must(fchown(queue, 4711, 4712));
	mqd_t reads_only = must(mq_open(queue_name, O_RDONLY | O_NONBLOCK));
	mqd_t again = must(dup(reads_only));
	must(mq_send(queue, "x", 1, 32767));
	restored();
	must(fstat(queue, &status));
	same(status.st_mode & 0777, 0624);
	same(status.st_uid, 4711);
	same(status.st_gid, 4712);
	same(mq_receive(queue, text, sizeof text, NULL), -1);
	same(errno, EBADF);
	same(mq_send(reads_only, "y", 1, 0), -1);
	same(errno, EBADF);
	must(mq_getattr(again, &got));
	same(got.mq_flags, O_NONBLOCK);
	same(got.mq_curmsgs, 1);
	poll_in = (struct pollfd){ .fd = again, .events = POLLIN };
	same(poll(&poll_in, 1, 0), 1);
	same(mq_receive(again, text, sizeof text, NULL), 1);
	same(mq_receive(reads_only, text, sizeof text, NULL), -1);
	same(errno, EAGAIN);
	same(fcntl(reads_only, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	must(mq_unlink(queue_name));
}

CASE(posix_queue_notify_none)
{
	struct sigevent event = { .sigev_notify = SIGEV_NONE };
	mq_unlink(queue_name);
	mqd_t queue = mq_open(queue_name, O_RDWR | O_CREAT, 0600, NULL);
	if (queue < 0)
		cannot("no message queues");
	must(mq_notify(queue, &event));
	struct child child = spawn(NULL, NULL);
	restored();
	same(ask(child), 0);
	pid_t pid = must(fork());
	if (!pid)
		_exit(mq_notify(queue, &event) && errno == EBUSY ? 0 : 1);
	int status;
	must(waitpid(pid, &status, 0));
	same(status, 0);
	must(mq_notify(queue, NULL));
	must(mq_notify(queue, &event));
	mq_unlink(queue_name);
}
