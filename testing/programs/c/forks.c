/*
 * Forks while other threads write: the child sees one moment of the memory, and both go on.
 *
 *     forks MIB
 *
 * Writers count words up, page by page, and the negative of each beside it. In the child every pair fits but for the one
 * that was being written, and those behind it are one count lower. The parent's threads lose no count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define NR_WRITERS 2
#define NR_FORKS 6

struct part {
	uint64_t *words;
	size_t nr_pages;
	uint64_t rounds;
	pthread_t thread;
};

static volatile int stopping;
static uint64_t *frozen;
static size_t nr_frozen;

static void *write_on(void *argument)
{
	struct part *part = argument;

	while (!stopping) {
		for (size_t page = 0; page < part->nr_pages; page++) {
			uint64_t *words = part->words + page * PAGE / 8;

			words[page % 256 * 2]++;
			words[page % 256 * 2 + 1]--;
		}
		part->rounds++;
	}
	return NULL;
}

/* All but the word that is being written have the count of one round, or of the round before. */
static void check_part(const struct part *part, uint64_t *lowest)
{
	size_t nr_odd = 0, nr_lower = 0, nr_turns = 0;
	uint64_t first = part->words[0];

	for (size_t page = 0; page < part->nr_pages; page++) {
		const uint64_t *words = part->words + page * PAGE / 8;
		uint64_t count = words[page % 256 * 2], minus = -words[page % 256 * 2 + 1];

		nr_odd += count != minus;
		CHECK(count <= first + 1 && count + 1 >= first, count);
		/* Once lower, always lower: the writer goes from front to back. */
		nr_turns += count < first ? nr_lower == 0 : nr_lower > 0;
		nr_lower += count < first;
		for (size_t i = 0; i < 512; i++)
			CHECK(i / 2 == page % 256 || words[i] == 0, page);
	}
	CHECK(nr_odd <= 1, nr_odd);
	CHECK(nr_turns <= 1, nr_turns);
	*lowest = nr_lower ? first - 1 : first;
}

static void check_frozen(uint64_t add)
{
	for (size_t i = 0; i < nr_frozen; i += 8)
		CHECK(frozen[i] == i * 0x9e3779b97f4a7c15ul + add, i);
}

static void write_frozen(uint64_t add)
{
	for (size_t i = 0; i < nr_frozen; i += 8)
		frozen[i] = i * 0x9e3779b97f4a7c15ul + add;
}

static void child(struct part *parts, uint64_t add)
{
	uint64_t lowest;

	check_frozen(add);
	for (int i = 0; i < NR_WRITERS; i++) {
		check_part(&parts[i], &lowest);
		CHECK(lowest + 1 >= parts[i].rounds, lowest);
	}
	write_frozen(99);
	/* A grandchild, which has all of it, too. */
	pid_t pid = fork();
	CHECK(pid >= 0, errno);
	if (pid == 0) {
		check_frozen(99);
		_exit(5);
	}
	write_frozen(100);
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 5, status);
	check_frozen(100);
	_exit(6);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2, 0);
	size_t all = (size_t)atoi(argv[1]) << 20;
	struct part parts[NR_WRITERS] = {};

	frozen = mmap(NULL, all / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	nr_frozen = all / 2 / 8;
	for (int i = 0; i < NR_WRITERS; i++) {
		parts[i].nr_pages = all / 2 / NR_WRITERS / PAGE;
		parts[i].words = mmap(NULL, parts[i].nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(parts[i].words != MAP_FAILED, i);
		CHECK(!pthread_create(&parts[i].thread, NULL, write_on, &parts[i]), i);
	}
	for (uint64_t round = 0; round < NR_FORKS; round++) {
		write_frozen(round);
		pid_t pid = fork();
		CHECK(pid >= 0, errno);
		if (pid == 0)
			child(parts, round);
		check_frozen(round);
		write_frozen(1000);
		/* A program started meanwhile: vfork within. */
		pid_t spawned;
		char *words[] = { "true", NULL };
		CHECK(!posix_spawnp(&spawned, "true", NULL, NULL, words, environ), errno);
		int status;
		CHECK(waitpid(spawned, &status, 0) == spawned && status == 0, status);
		CHECK(waitpid(pid, &status, 0) == pid, errno);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 6, status);
		check_frozen(1000);
	}
	stopping = 1;
	for (int i = 0; i < NR_WRITERS; i++) {
		uint64_t lowest;

		pthread_join(parts[i].thread, NULL);
		check_part(&parts[i], &lowest);
		CHECK(lowest == parts[i].rounds, lowest);
	}
	printf("done\n");
	return 0;
}
