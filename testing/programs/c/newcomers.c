/*
 * Forks while another thread maps and touches memory: the child has all that was there.
 *
 *     newcomers MIB ROUNDS advice|none
 *
 * MIB of memory are written once, and stay. A thread maps some more, writes to it, says where it is, and after a while unmaps
 * it, with or without having said before that children shall not have it. Every child reads the memory that stays, and what
 * it finds to be there of the other. A fork may be refused.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define NEW_PAGES 128ul

static uint64_t *words;
static size_t nr_pages;
static uint64_t *volatile newcomer;
static volatile int stopping;
static int with_advice;

static void write_words(uint64_t *memory, size_t nr)
{
	for (size_t page = 0; page < nr; page++)
		memory[page * PAGE / 8] = page + 1;
}

static void check_words(const uint64_t *memory, size_t nr)
{
	for (size_t page = 0; page < nr; page++)
		CHECK(memory[page * PAGE / 8] == page + 1, page);
}

static void *map(size_t nr)
{
	void *memory = mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED, nr);
	return memory;
}

static void *come_and_go(void *unused)
{
	while (!stopping) {
		uint64_t *memory = map(NEW_PAGES);

		write_words(memory, NEW_PAGES);
		newcomer = memory;
		usleep(200);
		newcomer = NULL;
		if (with_advice) {
			/* The flag that keeps it from children, which is ours to change. */
			CHECK(madvise(memory, NEW_PAGES * PAGE, MADV_DONTFORK) == 0, 0);
			CHECK(madvise(memory, NEW_PAGES * PAGE, MADV_DOFORK) == 0, 0);
		}
		newcomer = memory;
		usleep(200);
		newcomer = NULL;
		CHECK(munmap(memory, NEW_PAGES * PAGE) == 0, 0);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	unsigned long nr_forks = 0;

	CHECK(argc == 4, argc);
	with_advice = !strcmp(argv[3], "advice");
	nr_pages = strtoul(argv[1], NULL, 0) * 256;
	unsigned long nr_rounds = strtoul(argv[2], NULL, 0);

	words = map(nr_pages);
	write_words(words, nr_pages);
	CHECK(pthread_create(&thread, NULL, come_and_go, NULL) == 0, 0);
	for (unsigned long round = 0; round < nr_rounds; round++) {
		int status;
		pid_t pid = fork();

		CHECK(pid >= 0 || errno == EAGAIN, round);
		if (pid == 0) {
			uint64_t *memory = newcomer;

			if (memory != NULL)
				check_words(memory, NEW_PAGES);
			check_words(words, nr_pages);
			_exit(0);
		}
		if (pid > 0) {
			CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
			nr_forks++;
		} else {
			/* So that all of it is there. */
			check_words(words, nr_pages);
		}
	}
	stopping = 1;
	CHECK(pthread_join(thread, NULL) == 0, 0);
	CHECK(nr_forks > 0, nr_rounds);
	puts("every child had all of it");
	return 0;
}
