/*
 * What a program keeps from the children of its forks (MADV_DONTFORK, MADV_WIPEONFORK), with pages that are away; and guard
 * pages, where there are any: what guards keeps nobody out unless nothing comes home to it.
 *
 * usage: atfork MIB
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103

#define CHECK(condition, ...)                                                      \
	do {                                                                       \
		if (!(condition)) {                                                \
			fprintf(stderr, "line %d: ", __LINE__);                    \
			fprintf(stderr, __VA_ARGS__);                              \
			fprintf(stderr, "\n");                                     \
			_exit(1);                                                  \
		}                                                                  \
	} while (0)

static uint64_t *map(void *at, size_t bytes)
{
	void *base = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);

	CHECK(base != MAP_FAILED, "mmap: %m");
	return base;
}

static void fill(uint64_t *words, size_t bytes, uint64_t first)
{
	for (size_t i = 0; i < bytes / 8; i++)
		words[i] = first + i;
}

static void check(const uint64_t *words, size_t bytes, uint64_t first, const char *what)
{
	for (size_t i = 0; i < bytes / 8; i++)
		CHECK(words[i] == (first ? first + i : 0), "%s: word %zu is %lx", what, i, words[i]);
}

static void in_child(uint64_t *wiped, uint64_t *withheld, uint64_t *rest, size_t part)
{
	unsigned char vec;

	check(wiped, part, 0, "wiped");
	CHECK(mincore(withheld, PAGE, &vec) && errno == ENOMEM, "it is there");
	/* Something new at the same place, which leaves and comes home like other memory. */
	CHECK(map(withheld, part) == withheld, "another place");
	check(withheld, part, 0, "new where something was withheld");
	fill(withheld, part, 5);
	fill(wiped, part, 6);
	check(rest, 2 * part, 3, "the rest");
	check(withheld, part, 5, "what was new");
	check(wiped, part, 6, "what was wiped");
}

static void guards(uint64_t *memory, uint64_t *rest, size_t part)
{
	int ends[2];
	char byte = 0;

	CHECK(!pipe(ends), "%m");
	/* In an older kernel, and where the memory is managed, there are none: EINVAL. */
	if (madvise(memory, PAGE, GUARD_INSTALL) && errno == EINVAL)
		return;
	/* A touch nearby may fill more than its page. */
	memory[2 * PAGE / 8] = 1;
	check(rest, 2 * part, 3, "the rest");
	memory[2 * PAGE / 8] = 2;
	CHECK(write(ends[1], memory, 1) == -1 && errno == EFAULT, "a guard can be read");
	CHECK(!madvise(memory, PAGE, GUARD_REMOVE), "%m");
	CHECK(write(ends[1], memory, 1) == 1 && read(ends[0], &byte, 1) == 1 && byte == 0, "not empty");
}

int main(int argc, char **argv)
{
	size_t part = strtoul(argc > 1 ? argv[1] : "64", NULL, 10) << 18;
	uint64_t *wiped = map(NULL, part), *withheld = map(NULL, part), *rest = map(NULL, 2 * part);
	int status;

	/* The first ones are away when the last ones are filled. */
	fill(wiped, part, 1);
	fill(withheld, part, 2);
	CHECK(!madvise(wiped, part, MADV_WIPEONFORK), "%m");
	CHECK(!madvise(withheld, part, MADV_DONTFORK), "%m");
	fill(rest, 2 * part, 3);
	for (int i = 0; i < 3; i++) {
		pid_t child = fork();

		CHECK(child >= 0, "fork: %m");
		if (!child) {
			in_child(wiped, withheld, rest, part);
			_exit(0);
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0, "child %d: %x", i, status);
		check(wiped, part, 1, "the parent's that was wiped in the child");
		check(withheld, part, 2, "the parent's that was withheld");
	}
	guards(wiped, rest, part);
	puts("done");
	return 0;
}
