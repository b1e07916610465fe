/*
 * Forks right after a mapping has grown in place: the child has what is new of it.
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
		int status;

		memory[(round - 1) * PAGE] = round % 251 + 1;
		CHECK(mremap(memory, round * PAGE, (round + 1) * PAGE, 0) == memory, round);
		pid_t pid = fork();
		CHECK(pid >= 0, round);
		if (!pid) {
			for (size_t page = 0; page < round; page++)
				CHECK(memory[page * PAGE] == (page + 1) % 251 + 1, page);
			CHECK(memory[round * PAGE] == 0, round);
			memory[round * PAGE] = 1;
			_exit(0);
		}
		CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
		CHECK(memory[round * PAGE] == 0, round);
	}
	puts("every child had all of it");
	return 0;
}
