/*
 * An allocator of another kind than libc's, loaded while the program runs or before: what it gave out is what was written
 * to it, in all threads and in the children of forks.
 *
 *     allocators LIBRARY MIB
 *
 * With "-" the allocator is whatever `malloc` is. Ends with 77 if there is no such library.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { THREADS = 2, SLOTS = 1024, STEPS = 8000 };

static void *(*get)(size_t) = malloc;
static void *(*again)(void *, size_t) = realloc;
static void (*give)(void *) = free;
static size_t budget;

struct slot {
	uint64_t *words;
	size_t nr_words;
	uint64_t seed;
};

struct worker {
	pthread_t thread;
	uint64_t state;
	size_t used;
	struct slot slots[SLOTS];
};

static struct worker workers[THREADS];

static uint64_t chance(struct worker *worker)
{
	worker->state ^= worker->state << 13;
	worker->state ^= worker->state >> 7;
	worker->state ^= worker->state << 17;
	return worker->state;
}

static void fill(struct slot *slot, size_t from)
{
	for (size_t i = from; i < slot->nr_words; i++)
		slot->words[i] = slot->seed + i / 64;
}

static void check(const struct slot *slot, size_t nr_words)
{
	for (size_t i = 0; i < nr_words; i++)
		CHECK(slot->words[i] == slot->seed + i / 64, i);
}

static void end(struct worker *worker, struct slot *slot)
{
	check(slot, slot->nr_words);
	give(slot->words);
	worker->used -= slot->nr_words * 8;
	memset(slot, 0, sizeof(*slot));
}

/* Mostly small, some large. */
static size_t any_size(struct worker *worker)
{
	uint64_t number = chance(worker);

	return 1 + (number >> 8) % (number % 16 ? 1000 : 60000);
}

static void step(struct worker *worker)
{
	struct slot *slot = &worker->slots[chance(worker) % SLOTS];
	size_t nr_words = any_size(worker), before = slot->nr_words;

	if (worker->used > budget) {
		if (slot->words)
			end(worker, slot);
		return;
	}
	if (slot->words && chance(worker) % 2) {
		end(worker, slot);
		return;
	}
	if (!slot->words)
		slot->seed = chance(worker);
	slot->words = again(slot->words, nr_words * 8);
	CHECK(slot->words, errno);
	check(slot, before < nr_words ? before : nr_words);
	slot->nr_words = nr_words;
	worker->used += nr_words * 8 - before * 8;
	fill(slot, before < nr_words ? before : nr_words);
}

static void *work(void *argument)
{
	struct worker *worker = argument;

	for (int i = 0; i < STEPS; i++)
		step(worker);
	return NULL;
}

static void check_all(void)
{
	for (int t = 0; t < THREADS; t++)
		for (int i = 0; i < SLOTS; i++)
			check(&workers[t].slots[i], workers[t].slots[i].nr_words);
}

static void load(const char *name)
{
	void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);

	if (!library)
		_exit(77);
	get = (void *(*)(size_t))dlsym(library, "malloc");
	again = (void *(*)(void *, size_t))dlsym(library, "realloc");
	give = (void (*)(void *))dlsym(library, "free");
	CHECK(get && again && give, 0);
}

int main(int argc, char **argv)
{
	int status;

	CHECK(argc == 3, argc);
	if (strcmp(argv[1], "-"))
		load(argv[1]);
	budget = ((size_t)atoi(argv[2]) << 20) / THREADS;
	for (int round = 0; round < 2; round++) {
		for (int t = 0; t < THREADS; t++) {
			workers[t].state = 88172645463325252ul + t + round * 10;
			CHECK(!pthread_create(&workers[t].thread, NULL, work, &workers[t]), t);
		}
		for (int t = 0; t < THREADS; t++)
			CHECK(!pthread_join(workers[t].thread, NULL), t);
		pid_t child = fork();

		CHECK(child >= 0, errno);
		if (!child) {
			check_all();
			for (int t = 0; t < THREADS; t++)
				work(&workers[t]);
			check_all();
			_exit(0);
		}
		for (int t = 0; t < THREADS; t++)
			work(&workers[t]);
		CHECK(waitpid(child, &status, 0) == child && status == 0, status);
		check_all();
	}
	give(get(100));
	printf("done\n");
	return 0;
}
