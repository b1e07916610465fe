/*
 * Forks of which there is only one, while another thread's faults are served: whatever is tried before, nobody may see.
 *
 *     firstborn namespace ROUNDS MIB      the child is the first process of a namespace of pids, which ends with it
 *     firstborn daemon ROUNDS MIB         the parent has ended when there is a child
 *     firstborn terminal ROUNDS MIB       libc makes the child
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul

static size_t size;
static unsigned char *memory;
static atomic_ulong nr_touched;

static void verify(size_t at)
{
	CHECK(*(size_t *)(memory + at) == at + 1, at);
}

/* More than the budget, again and again. */
static void *touch(void *unused)
{
	for (size_t at = 0;; at = (at + 7 * PAGE) % size) {
		verify(at);
		atomic_fetch_add(&nr_touched, 1);
	}
	return unused;
}

static void end_well(pid_t pid)
{
	int status;

	CHECK(pid > 0, pid);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
}

static void press(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, touch, NULL), 0);
	while (atomic_load(&nr_touched) < 2 * size / PAGE)
		sched_yield();
}

static void verify_some(void)
{
	for (size_t at = 0; at < size; at += 64 * PAGE)
		verify(at);
}

static void found_a_namespace(void)
{
	press();
	CHECK(!unshare(CLONE_NEWPID), 0);
	pid_t pid = fork();
	if (!pid) {
		CHECK(getpid() == 1, getpid());
		verify_some();
		_exit(0);
	}
	end_well(pid);
}

/* This process ends by it. */
static void leave_a_daemon(void)
{
	int ends[2];
	char byte;

	CHECK(!pipe(ends), 0);
	pid_t pid = fork();
	if (!pid) {
		pid_t parent = getpid();

		press();
		CHECK(!daemon(0, 0), 0);
		CHECK(getpid() != parent && getsid(0) == getpid(), getpid());
		verify_some();
		_exit(write(ends[1], "d", 1) != 1);
	}
	end_well(pid);
	CHECK(!close(ends[1]), 0);
	CHECK(read(ends[0], &byte, 1) == 1 && byte == 'd', byte);
}

static void open_a_terminal(void)
{
	char text[8] = "";
	int terminal;

	press();
	pid_t pid = forkpty(&terminal, NULL, NULL, NULL);
	if (!pid) {
		CHECK(isatty(0) && isatty(1), 0);
		verify_some();
		CHECK(write(1, "well", 4) == 4, 0);
		_exit(0);
	}
	CHECK(read(terminal, text, 4) == 4 && !strcmp(text, "well"), text[0]);
	end_well(pid);
}

int main(int argc, char **argv)
{
	CHECK(argc == 4, argc);
	void (*act)(void) = !strcmp(argv[1], "namespace") ? found_a_namespace
		: !strcmp(argv[1], "daemon") ? leave_a_daemon : open_a_terminal;
	size_t nr_rounds = strtoul(argv[2], NULL, 0);

	size = strtoul(argv[3], NULL, 0) << 20;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED, size);
	for (size_t at = 0; at < size; at += PAGE)
		*(size_t *)(memory + at) = at + 1;
	for (size_t round = 0; round < nr_rounds; round++) {
		pid_t pid = fork();

		if (!pid) {
			act();
			_exit(0);
		}
		end_well(pid);
	}
	puts("each was the first");
	return 0;
}
