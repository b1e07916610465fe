/*
 * Forks while other threads move and unmap mappings: the child finds each mapping where the kernel has it, with its bytes.
 *
 *     forkmoves MIB
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define NR_MOVERS 3
#define NR_PAGES 16ul
#define NR_FORKS 40

/* Two places, between guards that nobody touches, at one of which is the thread's mapping. */
struct mover {
	pthread_t thread;
	unsigned char *places[2];
	unsigned char byte;
};

static volatile int stopping;
static unsigned char *ballast;
static size_t size;

static void *move_on(void *argument)
{
	struct mover *m = argument;

	for (int at = 0; !stopping; at = !at) {
		void *to = m->places[!at];

		CHECK(mremap(m->places[at], NR_PAGES * PAGE, NR_PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, at);
		if (m->byte % 2)
			usleep(100);
	}
	return NULL;
}

/* mincore says whether something is mapped, and looks at nothing that could be away. */
static int is_mapped(unsigned char *place)
{
	unsigned char pages[NR_PAGES];

	return !mincore(place, NR_PAGES * PAGE, pages);
}

static void check(const struct mover *m)
{
	int at = !is_mapped(m->places[0]);

	CHECK(is_mapped(m->places[at]) && !is_mapped(m->places[!at]), at);
	for (size_t i = 0; i < NR_PAGES * PAGE; i += 64)
		CHECK(m->places[at][i] == m->byte, i / PAGE);
	/* What comes to the other place is new. */
	unsigned char *now = mmap(m->places[!at], NR_PAGES * PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(now == m->places[!at], at);
	for (size_t i = 0; i < NR_PAGES * PAGE; i += PAGE)
		CHECK(now[i] == 0, i / PAGE);
}

int main(int argc, char **argv)
{
	struct mover movers[NR_MOVERS];

	CHECK(argc == 2, argc);
	size = (size_t)atoi(argv[1]) << 20;
	ballast = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(ballast != MAP_FAILED, size);
	for (int i = 0; i < NR_MOVERS; i++) {
		struct mover *m = &movers[i];
		size_t room = (2 * NR_PAGES + 3) * PAGE;
		unsigned char *all = mmap(NULL, room, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		CHECK(all != MAP_FAILED, i);
		m->byte = i + 1;
		m->places[0] = all + PAGE;
		m->places[1] = all + (NR_PAGES + 2) * PAGE;
		CHECK(!munmap(m->places[1], NR_PAGES * PAGE), i);
		CHECK(mmap(m->places[0], NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			   0) == m->places[0], i);
		memset(m->places[0], m->byte, NR_PAGES * PAGE);
	}
	memset(ballast, 9, size);
	for (int i = 0; i < NR_MOVERS; i++)
		CHECK(!pthread_create(&movers[i].thread, NULL, move_on, &movers[i]), i);
	for (int round = 0; round < NR_FORKS; round++) {
		for (size_t i = 0; i < size; i += PAGE)
			ballast[i]++;
		pid_t pid = fork();
		CHECK(pid >= 0, round);
		if (!pid) {
			for (int i = 0; i < NR_MOVERS; i++)
				check(&movers[i]);
			_exit(0);
		}
		int status;
		CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
	}
	stopping = 1;
	for (int i = 0; i < NR_MOVERS; i++) {
		CHECK(!pthread_join(movers[i].thread, NULL), i);
		check(&movers[i]);
	}
	printf("done\n");
	return 0;
}
