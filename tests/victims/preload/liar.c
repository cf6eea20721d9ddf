/* Writes nonsense into its own table, once or all the time: liar MODE FILE, as operations does it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	char line[512];
	uint8_t *table = NULL;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "/memfd:ckpt-gate"))
			table = (uint8_t *)strtoul(line, NULL, 16);
	fclose(maps);
	if (!table || count < 2)
		return 1;
	puts("ready");
	fflush(stdout);
	int wild = !strcmp(arguments[1], "wild");
	/* Everything but the magic, the version, the size and the gate. */
	*(uint32_t *)(table + 20) = UINT32_MAX;
	*(uint64_t *)(table + 128) = UINT64_MAX;
	for (uint64_t round = 0;; round++) {
		for (size_t at = 256; at < 262144; at += 64) {
			uint64_t *slot = (uint64_t *)(table + at);
			slot[0] = wild ? random() : 0x101;
			slot[1] = wild ? random() : 1;
			slot[2] = wild ? random() : 3;
		}
		if (!wild)
			pause();
	}
}
