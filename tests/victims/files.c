/* Property: open files keep their place, flags, sharing and locks; unlinked files and directories their content. */
#include "victim.h"
#include <dirent.h>
#include <sys/file.h>

static int at_offset, twin, appending, unlinked, locked, whole, other_lock, directory, renamed;
static DIR *listing;
static pid_t child;
static int to_child[2], from_child[2];

static void change(void)
{
	char text[32];
	int length = snprintf(text, sizeof text, "line %d\n", generation + 1);
	must(write(at_offset, text, length));
	must(write(appending, text, length));
	must(pwrite(unlinked, text, length, 100));
}

/* Another process sees the locks as held. */
static char others_view(void)
{
	struct flock part = { .l_type = F_WRLCK, .l_start = 10, .l_len = 5 };
	struct flock open_part = { .l_type = F_WRLCK, .l_start = 50, .l_len = 5 };
	int own = open(in_dir("locked"), O_RDWR | O_CLOEXEC), held = 0;
	int own_whole = open(in_dir("whole"), O_RDWR | O_CLOEXEC);
	held |= !fcntl(own, F_GETLK, &part) && part.l_type == F_WRLCK ? 1 : 0;
	held |= !fcntl(own, F_OFD_GETLK, &open_part) && open_part.l_type == F_RDLCK ? 2 : 0;
	held |= flock(own_whole, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK ? 4 : 0;
	close(own);
	close(own_whole);
	return (char)held;
}

static off_t length_of(int until)
{
	char text[32];
	off_t length = 0;
	for (int i = 0; i <= until; i++)
		length += snprintf(text, sizeof text, "line %d\n", i);
	return length;
}

static void verify(void)
{
	char text[64] = "", wanted[32];
	struct stat status, by_name;
	snprintf(wanted, sizeof wanted, "line %d\n", generation);
	off_t place = length_of(generation);
	expect(lseek(at_offset, 0, SEEK_CUR) == place, "the file is at %ld, not %ld", (long)lseek(at_offset, 0, SEEK_CUR),
	       (long)place);
	expect(lseek(twin, 0, SEEK_CUR) == place, "the twin has a place of its own");
	must(fstat(at_offset, &status));
	expect(status.st_size == place, "the file has %ld bytes, not %ld", (long)status.st_size, (long)place);
	must(fstat(appending, &status));
	expect(status.st_size == place && fcntl(appending, F_GETFL) & O_APPEND, "the appended file is wrong");
	expect(pread(unlinked, text, strlen(wanted), 100) == (ssize_t)strlen(wanted) && !strcmp(text, wanted),
	       "the unlinked file has '%s'", text);
	must(fstat(unlinked, &status));
	expect(status.st_nlink == 0 && lseek(unlinked, 0, SEEK_CUR) == 1234, "the unlinked file has a name or lost its place");
	expect(!fstat(renamed, &status) && !stat(in_dir("new-name"), &by_name) && status.st_ino == by_name.st_ino,
	       "the renamed file is another");
	must(write(to_child[1], "x", 1));
	text[0] = 0;
	must(read(from_child[0], text, 1));
	expect(text[0] == 7, "of the locks %d are held (of 7)", text[0]);
	expect(!fstatat(directory, "inside", &status, 0), "the directory has not its file");
	struct dirent *entry = readdir(listing);
	expect(entry != NULL || errno == 0, "the listing broke");
	rewinddir(listing);
}

int main(int argc, char **argv)
{
	struct flock part = { .l_type = F_WRLCK, .l_start = 10, .l_len = 5 };
	struct flock open_part = { .l_type = F_RDLCK, .l_start = 50, .l_len = 5 };
	const int create = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC;
	victim(argc, argv);
	must(pipe2(to_child, O_CLOEXEC));
	must(pipe2(from_child, O_CLOEXEC));
	child = must(fork());
	if (!child)
		for (;;) {
			char view;
			ssize_t got = read(to_child[0], &view, 1);
			if (got == 1) {
				view = others_view();
				must(write(from_child[1], &view, 1));
			}
		}
	at_offset = must(open(in_dir("at-offset"), create, 0600));
	twin = must(dup(at_offset));
	appending = must(open(in_dir("appending"), create | O_APPEND, 0600));
	unlinked = must(open(in_dir("unlinked"), create, 0600));
	must(unlink(in_dir("unlinked")));
	must(lseek(unlinked, 1234, SEEK_SET));
	renamed = must(open(in_dir("old-name"), create, 0600));
	must(rename(in_dir("old-name"), in_dir("new-name")));
	locked = must(open(in_dir("locked"), create, 0600));
	must(fcntl(locked, F_SETLK, &part));
	other_lock = must(open(in_dir("locked"), O_RDWR | O_CLOEXEC));
	must(fcntl(other_lock, F_OFD_SETLK, &open_part));
	whole = must(open(in_dir("whole"), create, 0600));
	must(flock(whole, LOCK_EX));
	mkdir(in_dir("directory"), 0700);
	directory = must(open(in_dir("directory"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	close(must(openat(directory, "inside", create, 0600)));
	listing = opendir(victim_dir);
	must(listing ? 0 : -1);
	readdir(listing);
	readdir(listing);
	generation = -1;
	change();
	return serve(change, verify);
}
