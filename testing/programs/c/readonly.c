/*
 * Mappings that become read-only while they are away, or were never touched, are read when all memory is taken.
 *
 *     readonly MIB
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul

int main(int argc, char **argv)
{
	CHECK(argc == 2, argc);
	size_t size = (size_t)atoi(argv[1]) << 19;
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned char *ballast = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED && ballast != MAP_FAILED, size);

	/* The first half is written, the second is not. */
	for (size_t i = 0; i < size / 2; i++)
		memory[i] = i / PAGE * 31 + i % 251;
	for (unsigned round = 1; round <= 6; round++) {
		/* Odd places, so that mappings and blocks do not end together. */
		size_t from = round * 7 * PAGE, len = size - 2 * from;

		memset(ballast, round, size);
		CHECK(!mprotect(memory + from, len, round % 3 ? PROT_READ : PROT_NONE), round);
		CHECK(!mprotect(memory + from, len, PROT_READ), round);
		for (size_t i = 0; i < size; i++)
			CHECK(memory[i] == (i < size / 2 ? (unsigned char)(i / PAGE * 31 + i % 251) : 0), i);
		for (size_t i = 0; i < size; i++)
			CHECK(ballast[i] == round, i);
		CHECK(!mprotect(memory, size, PROT_READ | PROT_WRITE), round);
		if (round % 2)
			CHECK(!madvise(memory + size / 2, size / 2, MADV_DONTNEED), round);
	}
	printf("done\n");
	return 0;
}
