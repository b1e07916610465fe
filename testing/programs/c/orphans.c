/*
 * Processes that are killed while they fork: their children live, read what is theirs, and all come to an end.
 *
 *     orphans MIB ROUNDS SEED
 *
 * In each round a child forks until one of its own threads kills it. Every child of the child reads all of the memory, or a
 * part of it, and ends. This process adopts them, and waits for all.
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
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define LONGEST_US 8000

static uint64_t *words;
static size_t nr_pages;
static unsigned delay_us;

static void *kill_after_a_while(void *unused)
{
	usleep(delay_us);
	kill(getpid(), SIGKILL);
	return unused;
}

static void hung(int signal)
{
	static const char text[] = "a process hangs\n";

	(void)signal;
	(void)!write(2, text, sizeof(text) - 1);
	_exit(1);
}

static void check(size_t step)
{
	for (size_t page = 0; page < nr_pages; page += step)
		CHECK(words[page * PAGE / 8] == page + 1, page);
}

static void fork_until_killed(void)
{
	pthread_t killer;

	CHECK(pthread_create(&killer, NULL, kill_after_a_while, NULL) == 0, 0);
	for (size_t number = 0;; number++) {
		pid_t pid = fork();

		/* There may be no room for another one now. */
		CHECK(pid >= 0 || errno == EAGAIN, number);
		if (pid == 0) {
			check(number % 4 == 0 ? 1 : 64);
			_exit(0);
		}
		if (pid > 0)
			waitpid(pid, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	CHECK(argc == 4, argc);
	nr_pages = strtoul(argv[1], NULL, 0) * 256;
	unsigned long nr_rounds = strtoul(argv[2], NULL, 0);
	uint64_t seed = strtoul(argv[3], NULL, 0);

	words = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(words != MAP_FAILED, nr_pages);
	for (size_t page = 0; page < nr_pages; page++)
		words[page * PAGE / 8] = page + 1;
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, 0);
	signal(SIGALRM, hung);
	for (unsigned long round = 0; round < nr_rounds; round++) {
		int status;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		delay_us = (seed >> 33) % LONGEST_US;
		pid_t pid = fork();
		CHECK(pid >= 0, round);
		if (pid == 0)
			fork_until_killed();
		alarm(30);
		for (pid_t ended; (ended = wait(&status)) > 0;) {
			if (ended == pid)
				CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, status);
			else
				CHECK(status == 0, status);
		}
		alarm(0);
		check(1);
	}
	puts("all have ended");
	return 0;
}
