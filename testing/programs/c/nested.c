/*
 * Processes of nested forks share memory of which so many quarters, scattered over it, may only be read: more than fits.
 * All are there before so many seconds have passed, and each finds what it wrote.
 *
 *     nested PROCESSES SECONDS QUARTERS
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define NR_PAGES 4096
#define MAY_ONLY_BE_READ(page) ((page) % 4 >= 4 - nr_quarters)
#define NR_TOUCHES 2000

static double now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

static unsigned long *words(unsigned char *memory, size_t page)
{
	return (unsigned long *)(memory + page * PAGE);
}

int main(int argc, char **argv)
{
	CHECK(argc == 4, argc);
	int nr_processes = atoi(argv[1]), number = 0, status = 0;
	size_t nr_quarters = atoi(argv[3]);
	unsigned char *memory = mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED, NR_PAGES);
	for (size_t page = 0; page < NR_PAGES; page++) {
		words(memory, page)[0] = page * 7 + 1;
		if (MAY_ONLY_BE_READ(page))
			CHECK(!mprotect(memory + page * PAGE, PAGE, PROT_READ), page);
	}
	double begin = now();
	pid_t child = 0;
	while (number < nr_processes - 1 && !(child = fork()))
		number++;
	CHECK(child >= 0, number);
	CHECK(now() - begin < atoi(argv[2]), number);

	unsigned long seed = 88172645463325252ul + number;
	for (int touch = 0; touch < NR_TOUCHES; touch++) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		size_t page = seed % NR_PAGES;
		unsigned long *at = words(memory, page);

		CHECK(at[0] == page * 7 + 1, page);
		CHECK(at[1] == 0 || at[1] == (unsigned long)getpid(), page);
		if (!MAY_ONLY_BE_READ(page))
			at[1] = getpid();
	}
	CHECK(!child || (waitpid(child, &status, 0) == child && !status), status);
	if (!number)
		printf("done\n");
	return 0;
}
