/*
 * Forks right after a mapping has grown in place: the child has what is new of it, also if it was cut off meanwhile.
 *
 *     growing ROUNDS
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul

static void fork_and_check(void (*check)(unsigned char *, size_t), unsigned char *memory, size_t round)
{
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0, round);
	if (!pid) {
		check(memory, round);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
	CHECK(memory[round * PAGE] == 0, round);
}

/* All of it, and what is new are zeroes. */
static void has_grown(unsigned char *memory, size_t round)
{
	for (size_t page = 0; page < round; page++)
		CHECK(memory[page * PAGE] == (page + 1) % 251 + 1, page);
	CHECK(memory[round * PAGE] == 0, round);
	memory[round * PAGE] = 1;
}

static void has_the_end(unsigned char *memory, size_t round)
{
	CHECK(memory[round * PAGE] == 0, round);
	memory[round * PAGE] = 1;
}

/* What is new stands alone then: nothing in front of it was known before. */
static void grow_and_cut(size_t nr_rounds)
{
	for (size_t round = 0; round < nr_rounds; round++) {
		unsigned char *memory = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		CHECK(memory != MAP_FAILED, round);
		CHECK(!munmap(memory + PAGE, 2 * PAGE), round);
		memory[0] = 1;
		CHECK(mremap(memory, PAGE, 3 * PAGE, 0) == memory, round);
		CHECK(!munmap(memory + PAGE, PAGE), round);
		fork_and_check(has_the_end, memory, 2);
		CHECK(!munmap(memory, 3 * PAGE), round);
	}
}

static void has_no_second_page(unsigned char *memory, size_t round)
{
	unsigned char is_resident;

	CHECK(memory[0] == 1, round);
	CHECK(mincore(memory + PAGE, PAGE, &is_resident) == -1 && errno == ENOMEM, round);
}

/* What is kept from children is, although nobody knew of it before. */
static void grow_and_keep(size_t nr_rounds)
{
	for (size_t round = 0; round < nr_rounds; round++) {
		unsigned char *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		CHECK(memory != MAP_FAILED, round);
		CHECK(!munmap(memory + PAGE, PAGE), round);
		memory[0] = 1;
		CHECK(mremap(memory, PAGE, 2 * PAGE, 0) == memory, round);
		CHECK(!madvise(memory + PAGE, PAGE, MADV_DONTFORK), round);
		fork_and_check(has_no_second_page, memory, 1);
		CHECK(!munmap(memory, 2 * PAGE), round);
	}
}

int main(int argc, char **argv)
{
	CHECK(argc == 2, argc);
	size_t nr_rounds = strtoul(argv[1], NULL, 0);
	size_t room = (nr_rounds + 1) * PAGE;
	/* What it grows into is nobody's. */
	unsigned char *memory = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED, room);
	CHECK(!munmap(memory + PAGE, room - PAGE), room);
	for (size_t round = 1; round <= nr_rounds; round++) {
		memory[(round - 1) * PAGE] = round % 251 + 1;
		CHECK(mremap(memory, round * PAGE, (round + 1) * PAGE, 0) == memory, round);
		fork_and_check(has_grown, memory, round);
	}
	grow_and_cut(nr_rounds / 4);
	grow_and_keep(nr_rounds / 4);
	puts("every child had all of it");
	return 0;
}
