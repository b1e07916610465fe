/*
 * Mappings that were protected in parts before they had pages, and read there, are moved in every way. Reading maps the
 * kernel's zero page, by which a mapping stays what it is; under a budget the parts get pages of their own.
 *
 *     remap MIB
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define PAGE 4096ul
#define NR_PAGES 100ul
#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			dprintf(2, "remap.c:%d: %s: %s\n", __LINE__, #condition, strerror(errno)); \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

static unsigned char *ballast;
static size_t size;

static unsigned char *map(size_t nr_pages)
{
	unsigned char *memory = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static void drive_out(void)
{
	static unsigned char byte;

	memset(ballast, ++byte, size);
}

/* Between two guards, so that it cannot grow where it is. Every fourth tenth of it is read while it is protected. */
static unsigned char *in_pieces(void)
{
	unsigned char *memory = map(NR_PAGES + 2) + PAGE;
	const size_t tenth = NR_PAGES / 10 * PAGE;
	unsigned sum = 0;

	CHECK(!mprotect(memory - PAGE, PAGE, PROT_NONE));
	CHECK(!mprotect(memory + NR_PAGES * PAGE, PAGE, PROT_NONE));
	for (int i = 1; i < 10; i += 4) {
		CHECK(!mprotect(memory + i * tenth, tenth, PROT_READ));
		sum += memory[i * tenth + 5];
	}
	CHECK(sum == 0);
	CHECK(!mprotect(memory, NR_PAGES * PAGE, PROT_READ | PROT_WRITE));
	for (size_t page = 0; page < NR_PAGES; page++)
		memset(memory + page * PAGE, page + 1, PAGE);
	return memory;
}

static void check(const unsigned char *memory, size_t nr_pages)
{
	for (size_t page = 0; page < nr_pages; page++)
		for (size_t i = 0; i < PAGE; i += 64)
			CHECK(memory[page * PAGE + i] == (page < NR_PAGES ? (unsigned char)(page + 1) : 0));
}

static void drop(unsigned char *memory, size_t nr_pages)
{
	CHECK(!munmap(memory, nr_pages * PAGE));
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	size = (size_t)atoi(argv[1]) << 20;
	ballast = map(size / PAGE);
	for (int round = 0; round < 4; round++) {
		/* It grows, and has to move for that. */
		unsigned char *memory = in_pieces();
		unsigned char *moved = mremap(memory, NR_PAGES * PAGE, 2 * NR_PAGES * PAGE, MREMAP_MAYMOVE);
		CHECK(moved != MAP_FAILED && moved != memory);
		if (round % 2)
			drive_out();
		check(moved, 2 * NR_PAGES);
		drop(moved, 2 * NR_PAGES);

		/* To the place of something else, and smaller, while it is away. */
		memory = in_pieces();
		unsigned char *place = map(NR_PAGES);
		memset(place, 0xee, NR_PAGES * PAGE);
		drive_out();
		moved = mremap(memory, NR_PAGES * PAGE, 77 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
		CHECK(moved == place);
		check(moved, 77);
		drop(moved, NR_PAGES);

		/* It becomes smaller and grows again where it is. */
		memory = in_pieces();
		CHECK(mremap(memory, NR_PAGES * PAGE, 55 * PAGE, 0) == memory);
		check(memory, 55);
		memset(memory + 54 * PAGE, 0, PAGE);
		CHECK(mremap(memory, 55 * PAGE, 66 * PAGE, 0) == memory);
		check(memory, 54);
		CHECK(memory[54 * PAGE] == 0 && memory[65 * PAGE] == 0);
		CHECK(mremap(memory, 66 * PAGE, 2 * NR_PAGES * PAGE, 0) == MAP_FAILED && errno == ENOMEM);
		drop(memory, 66);

		/* Its pages leave it. */
		memory = in_pieces();
		moved = mremap(memory, NR_PAGES * PAGE, NR_PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
		CHECK(moved != MAP_FAILED && moved != memory);
		if (round % 2)
			drive_out();
		check(moved, NR_PAGES);
		for (size_t i = 0; i < NR_PAGES * PAGE; i += 512)
			CHECK(memory[i] == 0);
		drop(memory, NR_PAGES);
		drop(moved, NR_PAGES);

		/* It has grown just now, and a part of that, which nobody knows yet, goes after what is known. */
		place = map(5);
		memset(place, 0xee, 5 * PAGE);
		memory = map(20);
		CHECK(!munmap(memory + 2 * PAGE, 18 * PAGE));
		memset(memory, 1, PAGE);
		memset(memory + PAGE, 2, PAGE);
		if (round % 2)
			drive_out();
		CHECK(mremap(memory, 2 * PAGE, 20 * PAGE, 0) == memory);
		CHECK(!madvise(memory, 4 * PAGE, MADV_NOHUGEPAGE));
		CHECK(mremap(memory, 5 * PAGE, 5 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, place) == place);
		CHECK(place[0] == 1 && place[PAGE] == 2 && place[2 * PAGE] == 0 && place[4 * PAGE] == 0);
		CHECK(memory[0] == 0 && memory[PAGE] == 0);
		drop(memory, 20);
		drop(place, 5);

		/* What cannot be. */
		memory = in_pieces();
		CHECK(!mprotect(memory + 30 * PAGE, PAGE, PROT_READ));
		CHECK(mremap(memory, NR_PAGES * PAGE, 2 * NR_PAGES * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
		CHECK(mremap(memory, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 17) == MAP_FAILED && errno == EINVAL);
		CHECK(mremap(memory, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + PAGE) == MAP_FAILED && errno == EINVAL);
		check(memory, NR_PAGES);
		drop(memory, NR_PAGES);
	}
	printf("done\n");
	return 0;
}
