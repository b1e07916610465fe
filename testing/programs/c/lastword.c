/*
 * What the kernel touches when a thread has ended, while memory leaves:
 *
 *     lastword join ROUNDS MIB        the word that pthread_join waits for
 *     lastword mutex ROUNDS MIB       mutexes that a thread has left locked
 *     lastword process ROUNDS MIB     the same of a process that is killed, whose mutex is shared
 *     lastword nonsense ROUNDS MIB    a thread whose list of mutexes is none, which the kernel bears
 *     lastword crowd THREADS MIB      many threads that end at once
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>

#include "check.h"

#define PAGE 4096ul
/* Who waits for longer waits for ever. */
#define PATIENCE 30

static size_t size;
static unsigned char *memory;
static atomic_ulong nr_passes;
static atomic_int is_locked;

/* More than the budget, again and again. */
static void *press(void *unused)
{
	for (;;) {
		for (size_t at = 0; at < size; at += PAGE)
			memory[at]++;
		atomic_fetch_add(&nr_passes, 1);
	}
	return unused;
}

/* Whatever was here and is not touched is away then. */
static void wait_for_passes(unsigned long nr)
{
	unsigned long until = atomic_load(&nr_passes) + nr;

	while (atomic_load(&nr_passes) < until)
		usleep(200);
}

static void *do_nothing(void *unused)
{
	return unused;
}

static int do_nothing_too(void *unused)
{
	return unused != NULL;
}

static void join(size_t round)
{
	pthread_t thread;
	thrd_t other;
	int status;

	alarm(PATIENCE);
	CHECK(!pthread_create(&thread, NULL, do_nothing, NULL), round);
	CHECK(thrd_create(&other, do_nothing_too, &other) == thrd_success, round);
	CHECK(!pthread_join(thread, NULL), round);
	CHECK(thrd_join(other, &status) == thrd_success && status == 1, round);
}

/* They give their stacks back all at once, while they fault. */
static void *wait_for_the_others(void *gate)
{
	pthread_barrier_wait(gate);
	return NULL;
}

static void end_together(size_t nr_threads)
{
	pthread_attr_t small;
	pthread_barrier_t gate;
	pthread_t *threads = calloc(nr_threads, sizeof *threads);

	CHECK(threads && !pthread_barrier_init(&gate, NULL, nr_threads + 1), nr_threads);
	CHECK(!pthread_attr_init(&small) && !pthread_attr_setstacksize(&small, 8 * PAGE), nr_threads);
	for (size_t at = 0; at < nr_threads; at++)
		CHECK(!pthread_create(threads + at, &small, wait_for_the_others, &gate), at);
	alarm(PATIENCE);
	pthread_barrier_wait(&gate);
	for (size_t at = 0; at < nr_threads; at++)
		CHECK(!pthread_join(threads[at], NULL), at);
}

static void make_robust(pthread_mutex_t *mutex, int shared)
{
	pthread_mutexattr_t attributes;

	CHECK(!pthread_mutexattr_init(&attributes), shared);
	CHECK(!pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST), shared);
	CHECK(!pthread_mutexattr_setpshared(&attributes, shared), shared);
	CHECK(!pthread_mutex_init(mutex, &attributes), shared);
}

/* It is told that the owner has ended. */
static void inherit(pthread_mutex_t *mutex, size_t round)
{
	struct timespec until;

	CHECK(!clock_gettime(CLOCK_REALTIME, &until), round);
	until.tv_sec += PATIENCE;
	int status = pthread_mutex_timedlock(mutex, &until);
	CHECK(status == EOWNERDEAD, status);
	CHECK(!pthread_mutex_consistent(mutex) && !pthread_mutex_unlock(mutex), round);
}

static void *leave_locked(void *mutexes)
{
	for (size_t at = 0; at < 4; at++)
		CHECK(!pthread_mutex_lock((void *)((char *)mutexes + at * PAGE)), at);
	atomic_store(&is_locked, 1);
	wait_for_passes(3);
	return NULL;
}

static void inherit_from_a_thread(size_t round)
{
	pthread_t thread;
	unsigned char *mutexes = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(mutexes != MAP_FAILED, round);
	for (size_t at = 0; at < 4; at++)
		make_robust((void *)(mutexes + at * PAGE), PTHREAD_PROCESS_PRIVATE);
	CHECK(!pthread_create(&thread, NULL, leave_locked, mutexes), round);
	/* That it is not joined is what this is about: its word is another matter. */
	CHECK(!pthread_detach(thread), round);
	while (!atomic_exchange(&is_locked, 0))
		usleep(200);
	for (size_t at = 0; at < 4; at++)
		inherit((void *)(mutexes + at * PAGE), round);
	CHECK(!munmap(mutexes, 4 * PAGE), round);
}

static void inherit_from_a_process(size_t round)
{
	int status, ends[2];
	char byte;
	pthread_mutex_t *mutex = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(mutex != MAP_FAILED && !pipe(ends), round);
	make_robust(mutex, PTHREAD_PROCESS_SHARED);
	pid_t pid = fork();
	CHECK(pid >= 0, round);
	if (!pid) {
		pthread_t thread;

		CHECK(!pthread_mutex_lock(mutex), round);
		atomic_store(&nr_passes, 0);
		CHECK(!pthread_create(&thread, NULL, press, NULL), round);
		wait_for_passes(3);
		CHECK(write(ends[1], "l", 1) == 1, round);
		for (;;)
			pause();
	}
	CHECK(read(ends[0], &byte, 1) == 1, round);
	/* By itself it does nothing any more. */
	usleep(100000);
	CHECK(!kill(pid, SIGKILL), round);
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), status);
	inherit(mutex, round);
	CHECK(!close(ends[0]) && !close(ends[1]) && !munmap(mutex, PAGE), round);
}

/* What the kernel is told: a head; where it has links, how far a word is from them, and what is being locked. */
static void *tell_nonsense(void *argument)
{
	static uintptr_t heads[][3] = {
		{ 0, 0, 0 }, { 8, 0, 0 }, { UINTPTR_MAX, 0, 0 }, { 0xabcdef0123456788, 16, 0 }, { 0, UINTPTR_MAX / 2, 0 }
	};
	static uintptr_t no_heads[] = { 0, 16, UINTPTR_MAX, 0xabcdef0123456788 };
	size_t round = (size_t)argument, nr_heads = sizeof heads / sizeof *heads;
	size_t which = round % (nr_heads + sizeof no_heads / sizeof *no_heads);

	for (size_t i = 0; i < nr_heads; i++)
		if (!heads[i][0])
			heads[i][0] = (uintptr_t)heads[(i + 1) % nr_heads];
	void *head = which < nr_heads ? (void *)heads[which] : (void *)no_heads[which - nr_heads];
	CHECK(!syscall(SYS_set_robust_list, head, 3 * sizeof(uintptr_t)), which);
	return NULL;
}

static void leave_nonsense(size_t round)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, tell_nonsense, (void *)round), round);
	CHECK(!pthread_join(thread, NULL), round);
}

int main(int argc, char **argv)
{
	CHECK(argc == 4, argc);
	int is_process = !strcmp(argv[1], "process");
	void (*act)(size_t) = !strcmp(argv[1], "join") ? join
		: !strcmp(argv[1], "nonsense") ? leave_nonsense
		: is_process ? inherit_from_a_process : inherit_from_a_thread;
	size_t nr_rounds = strtoul(argv[2], NULL, 0);
	pthread_t thread;

	size = strtoul(argv[3], NULL, 0) << 20;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED, size);
	if (!is_process)
		CHECK(!pthread_create(&thread, NULL, press, NULL), 0);
	if (!strcmp(argv[1], "crowd"))
		end_together(nr_rounds);
	else
		for (size_t round = 0; round < nr_rounds; round++)
			act(round);
	puts("everybody was told");
	return 0;
}
