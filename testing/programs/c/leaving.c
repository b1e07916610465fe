/*
 * Threads that do not return from what they began with. argv: how they leave, how many, MiB. What they have put off until then is
 * done (pthread_cleanup_push), and they are joined; meanwhile memory leaves.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <threads.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul

static volatile unsigned char *memory;
static size_t nr_pages;
static int nr_done;
static int pipe_ends[2];
static char fifo[64];
static const char *way;

static void touch(unsigned char key, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		memory[i * PAGE] = i * 3 + key;
}

static void done(void *unused)
{
	(void)unused;
	__atomic_add_fetch(&nr_done, 1, __ATOMIC_RELAXED);
}

/* What waits is a point at which a thread can be cancelled. */
static void leave(void)
{
	static char page[PAGE];
	struct iovec part = { page, sizeof page };

	if (!strcmp(way, "exit"))
		pthread_exit((void *)7);
	if (!strcmp(way, "thrd_exit"))
		thrd_exit(7);
	if (!strcmp(way, "pause"))
		pause();
	if (!strcmp(way, "open"))
		open(fifo, O_RDONLY);
	if (!strcmp(way, "openat"))
		openat(AT_FDCWD, fifo, O_RDONLY);
	if (!strcmp(way, "vmsplice"))
		for (;;)
			vmsplice(pipe_ends[1], &part, 1, 0);
	if (!strcmp(way, "close"))
		for (;;)
			close(-1);
	if (!strcmp(way, "at any time")) {
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
		for (;;)
			__asm__ volatile("");
	}
}

static void *routine(void *argument)
{
	size_t number = (size_t)argument;

	pthread_cleanup_push(done, NULL);
	touch(1, number * 16, number * 16 + 16);
	leave();
	pthread_cleanup_pop(0);
	return NULL;
}

static int c11_routine(void *argument)
{
	routine(argument);
	return 0;
}

int main(int argc, char **argv)
{
	CHECK(argc == 4, argc);
	way = argv[1];
	int nr = atoi(argv[2]);
	nr_pages = strtoul(argv[3], NULL, 0) << 8;
	memory = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED, 0);
	snprintf(fifo, sizeof fifo, "/tmp/hmm-leaving-%d", getpid());
	CHECK(!mkfifo(fifo, 0600) && !pipe(pipe_ends), 0);
	int is_c11 = !strcmp(way, "thrd_exit"), is_cancelled = strcmp(way, "exit") && !is_c11;

	for (int i = 0; i < nr; i++) {
		pthread_t thread;
		void *result;

		touch(0, 0, nr_pages);
		if (is_c11) {
			thrd_t c11;
			int seven;

			CHECK(thrd_create(&c11, c11_routine, (void *)(size_t)i) == thrd_success, i);
			CHECK(thrd_join(c11, &seven) == thrd_success && seven == 7, seven);
			continue;
		}
		CHECK(!pthread_create(&thread, NULL, routine, (void *)(size_t)i), i);
		if (is_cancelled) {
			usleep(i % 2 * 2000);
			CHECK(!pthread_cancel(thread), i);
		}
		CHECK(!pthread_join(thread, &result), i);
		CHECK(result == (is_cancelled ? PTHREAD_CANCELED : (void *)7), i);
	}
	unlink(fifo);
	printf("%d of %d\n", nr_done, nr);
	fflush(stdout);
	/* The first thread, too. */
	pthread_exit(NULL);
}
