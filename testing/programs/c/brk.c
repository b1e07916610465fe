/*
 * The heap grows and shrinks by brk, far beyond the budget; every word is checked.
 *
 *     brk MIB
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"

static uint64_t word(size_t i, uint64_t round)
{
	return (i * 0x9e3779b97f4a7c15ul ^ round) * (i % 4 != 3);
}

static void fill(uint64_t *words, size_t from, size_t to, uint64_t round)
{
	for (size_t i = from; i < to; i++)
		words[i] = word(i, round);
}

static void check(const uint64_t *words, size_t from, size_t to, uint64_t round)
{
	for (size_t i = from; i < to; i++)
		CHECK(words[i] == word(i, round), i);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2, 0ul);
	size_t all = (size_t)atoi(argv[1]) << 20, nr = all / 8;
	uint64_t *words = sbrk(0);
	CHECK(((uintptr_t)words & 7) == 0, (unsigned long)words);

	for (uint64_t round = 1; round <= 4; round++) {
		for (size_t at = 0; at < all; at += all / 16) {
			CHECK(sbrk(all / 16) == (char *)words + at, at);
			fill(words, at / 8, (at + all / 16) / 8, round);
		}
		check(words, 0, nr, round);
		/* Half of it goes, and comes back as zeroes. */
		CHECK(sbrk(-(intptr_t)(all / 2)) == (char *)words + all, round);
		check(words, 0, nr / 2, round);
		CHECK(sbrk(all / 2) == (char *)words + all / 2, round);
		for (size_t i = nr / 2 + 512; i < nr; i++)
			CHECK(words[i] == 0, i);
		fill(words, nr / 2, nr, round);
		check(words, 0, nr, round);
		CHECK(brk(words) == 0, round);
	}
	dprintf(1, "done\n");
	return 0;
}
