/*
 * Forks by libc and by a bare system call. A child reads what the parent had, or ends; it never reads anything else.
 *
 *     rawfork MIB
 *
 * Prints how each child ended.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul

static void fill(unsigned char *memory, size_t size)
{
	for (size_t i = 0; i < size; i++)
		memory[i] = i / PAGE * 31 + i % 251 + 1;
}

static int is_right(const unsigned char *memory, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != (unsigned char)(i / PAGE * 31 + i % 251 + 1))
			return 0;
	return 1;
}

static void has_not(int signal)
{
	(void)signal;
	_exit(0);
}

static void tell(const char *what, pid_t child)
{
	int status;

	CHECK(child > 0, child);
	CHECK(waitpid(child, &status, 0) == child, child);
	if (WIFSIGNALED(status))
		printf("%s: signal %d\n", what, WTERMSIG(status));
	else
		printf("%s: exit %d\n", what, WEXITSTATUS(status));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2, argc);
	size_t size = (size_t)atoi(argv[1]) << 20, small = 64 * PAGE;
	int both = PROT_READ | PROT_WRITE, mine = MAP_PRIVATE | MAP_ANONYMOUS;
	unsigned char *first = mmap(NULL, small, both, mine, -1, 0);
	unsigned char *kept = mmap(NULL, small, both, mine, -1, 0);
	unsigned char *heap = malloc(small / 2);
	pid_t child;

	/* Nothing is away yet. */
	CHECK(first != MAP_FAILED && kept != MAP_FAILED && heap, small);
	fill(first, small);
	fill(kept, small);
	fill(heap, small / 2);
	CHECK(!madvise(kept, small, MADV_DONTFORK), small);
	if (!(child = fork()))
		_exit(!is_right(first, small) || !is_right(heap, small / 2));
	tell("fork", child);
	if (!(child = fork())) {
		/* Something else may be at that place. */
		signal(SIGSEGV, has_not);
		_exit(is_right(kept, small));
	}
	tell("fork, kept memory", child);
	CHECK(!madvise(kept, small, MADV_DOFORK), small);
	if (!(child = fork())) {
		/* And a child of the child. */
		if (!(child = fork()))
			_exit(!is_right(kept, small));
		int status;
		_exit(waitpid(child, &status, 0) != child || status);
	}
	tell("fork, memory that is not kept any more", child);

	/* Most of it is away. */
	unsigned char *memory = mmap(NULL, size, both, mine, -1, 0);
	CHECK(memory != MAP_FAILED, size);
	fill(memory, size);
	if (!(child = syscall(SYS_fork)))
		_exit(!is_right(memory, size));
	tell("bare system call", child);
	CHECK(is_right(memory, size) && is_right(first, small) && is_right(kept, small), 0);
	printf("done\n");
	return 0;
}
