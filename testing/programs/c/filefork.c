/*
 * Forks of a program whose memory lies in a file, in part: refused while it does, else as ever.
 *
 *     filefork MIB
 */
#include <errno.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

extern char **environ;

static uint64_t number(size_t i, uint64_t seed)
{
	uint64_t x = (i + seed) * 0x9e3779b97f4a7c15ul;

	return x ^ x >> 29;
}

/* Works on so much memory, of which none compresses. */
static uint64_t *fill(size_t size, uint64_t seed)
{
	uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(words != MAP_FAILED, size);
	for (size_t i = 0; i < size / 8; i++)
		words[i] = number(i, seed);
	return words;
}

static void check(const uint64_t *words, size_t size, uint64_t seed)
{
	for (size_t i = 0; i < size / 8; i++)
		CHECK(words[i] == number(i, seed), i);
}

static void wait_for(pid_t child)
{
	int status;

	CHECK(child > 0, errno);
	CHECK(waitpid(child, &status, 0) == child && status == 0, status);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2, argc);
	size_t size = (size_t)atoi(argv[1]) << 20, small = 1 << 20;
	char *words_of_true[] = { "true", NULL };
	uint64_t *few = fill(small, 1), *many = fill(size, 2);
	pid_t child;

	if (!(child = fork()))
		_exit(0);
	printf("fork with most of it away: %s\n", child < 0 ? (errno == EAGAIN ? "EAGAIN" : "another error") : "done");
	if (child > 0)
		wait_for(child);
	CHECK(!posix_spawnp(&child, "true", NULL, NULL, words_of_true, environ), errno);
	wait_for(child);
	check(few, small, 1);
	check(many, size, 2);

	munmap(many, size);
	check(few, small, 1);
	if (!(child = fork())) {
		/* It has a file of its own. */
		uint64_t *own = fill(size, 3);

		check(own, size, 3);
		check(few, small, 1);
		_exit(0);
	}
	many = fill(size, 4);
	wait_for(child);
	check(many, size, 4);
	check(few, small, 1);
	printf("done\n");
	return 0;
}
