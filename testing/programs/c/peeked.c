/*
 * Somebody reads all memory of the process, hmm's too, as debuggers and scanners of memory do. No byte may be wrong then.
 * argv: MiB, rounds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "check.h"

#define PAGE 4096ul
#define AT_ONCE (64ul << 10)

/* What is larger has been reserved, and is hardly used. */
#define LARGE (1ul << 30)

static char buffer[AT_ONCE];

static void read_all(int mem)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end;
	char perms[5], line[512];

	CHECK(maps, 0);
	while (fgets(line, sizeof(line), maps)) {
		CHECK(sscanf(line, "%lx-%lx %4s", &start, &end, perms) == 3, 0);
		if (perms[0] != 'r' || end - start > LARGE)
			continue;
		/* What is away cannot be read so, which is well. */
		for (; start < end; start += AT_ONCE)
			(void)!pread(mem, buffer, end - start < AT_ONCE ? end - start : AT_ONCE, (off_t)start);
	}
	fclose(maps);
}

int main(int argc, char **argv)
{
	size_t nr_words, nr_pages;
	uint64_t *words, seed = 1;
	int mem = open("/proc/self/mem", O_RDONLY);

	CHECK(argc == 3 && mem >= 0, argc);
	nr_words = (strtoul(argv[1], NULL, 10) << 20) / 8;
	nr_pages = nr_words * 8 / PAGE;
	words = mmap(NULL, nr_words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(words != MAP_FAILED, nr_words);
	for (size_t i = 0; i < nr_words; i++)
		words[i] = i * 77;
	for (int round = 0; round < atoi(argv[2]); round++) {
		read_all(mem);
		for (size_t touch = 0; touch < nr_pages; touch++) {
			seed = seed * 6364136223846793005ul + 1442695040888963407ul;
			size_t first = (seed >> 33) % nr_pages * (PAGE / 8);

			for (size_t i = first; i < first + PAGE / 8; i++) {
				CHECK(words[i] == i * 77, i);
				words[i] = i * 77;
			}
		}
	}
	for (size_t i = 0; i < nr_words; i++)
		CHECK(words[i] == i * 77, i);
	printf("done\n");
	return 0;
}
