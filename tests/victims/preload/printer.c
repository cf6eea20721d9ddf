/* Says the same in every way of stdio: printer FILE. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <wchar.h>

static void through_list(FILE *stream, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	vfprintf(stream, format, list);
	va_end(list);
}

int main(int count, char **arguments)
{
	char line[256];
	wchar_t wide[64];
	const char *path = count > 1 ? arguments[1] : "/dev/null";
#define NUMBERS 1, 2L, 3, 4, 5, 6L, 7, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5L, "text"
#define FORMAT "%d %ld %d %d %d %ld %d %g %g %g %g %g %g %g %g %g %Lg %s\n"
	printf(FORMAT, NUMBERS);
	fprintf(stdout, FORMAT, NUMBERS);
	through_list(stdout, FORMAT, NUMBERS);
	fflush(stdout);
	dprintf(1, FORMAT, NUMBERS);
	FILE *stream = fopen(path, "w+");
	for (int round = 0; round < 20000; round++) {
		fprintf(stream, "%d %s %f\n", round, "x", round / 3.0);
		fputs("fputs\n", stream);
		fputc('c', stream);
		putc('\n', stream);
		fwrite("fwrite\n", 1, 7, stream);
	}
	printf("%ld\n", ftell(stream));
	rewind(stream);
	long lines = 0;
	while (fgets(line, sizeof line, stream))
		lines++;
	printf("%ld lines\n", lines);
	fseek(stream, 100, SEEK_SET);
	printf("%d %d\n", getc(stream), fgetc(stream));
	if (fread(line, 1, 99, stream) != 99 || fclose(stream))
		abort();
	stream = fopen(path, "a");
	fwprintf(stream, L"%ls %d %f\n", L"wide", 7, 2.5);
	fputws(L"fputws\n", stream);
	swprintf(wide, 64, L"%d", 5);
	fclose(stream);
	errno = ENOENT;
	perror("perror");
	if (syscall(SYS_close, -1) != -1 || errno != EBADF)
		abort();
	void *memory = (void *)syscall(SYS_mmap, NULL, 4096L, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1L, 0L);
	if (memory == MAP_FAILED || syscall(SYS_getpid) != getpid())
		abort();
	puts("puts");
	putchar('!');
	return 3;
}
