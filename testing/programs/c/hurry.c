/*
 * What has just moved becomes two mappings of the kernel's, and moves on at once, before anybody has been told that it came: in
 * pieces, which needs to be known for the program's.
 *
 *     hurry ROUNDS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define NR_PAGES 8ul
#define NR_THREADS 8
#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			dprintf(2, "hurry.c:%d: %s: %s\n", __LINE__, #condition, strerror(errno)); \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

static int nr_rounds;

/* Far from all that the kernel gives out by itself: nobody else takes what is left for a moment. */
#define PLACES ((unsigned char *)0x100000000000ul)

static void *move(void *number)
{
	const size_t size = NR_PAGES * PAGE;
	unsigned char *memory = PLACES + (size_t)number * 4 * size, *place = memory + 2 * size;

	CHECK(mmap(memory, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
	for (int round = 0; round < nr_rounds; round++) {
		memset(memory, round, size);
		CHECK(mremap(memory, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
		CHECK(!madvise(place, size / 2, MADV_SEQUENTIAL));
		CHECK(mremap(place, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, memory) == memory);
		for (size_t page = 0; page < NR_PAGES; page++)
			CHECK(memory[page * PAGE] == (unsigned char)round);
		CHECK(!madvise(memory, size, MADV_NORMAL));
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[NR_THREADS];

	CHECK(argc == 2);
	nr_rounds = atoi(argv[1]);
	for (size_t i = 0; i < NR_THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, move, (void *)i));
	for (size_t i = 0; i < NR_THREADS; i++)
		CHECK(!pthread_join(threads[i], NULL));
	printf("done\n");
	return 0;
}
