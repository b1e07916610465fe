/*
 * Stacks of threads and of signal handlers that are away when they are needed: the kernel writes the signal's frame there.
 *
 *     stacks MIB
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define NR_THREADS 3
#define DEPTH 300
#define CHECK(condition)                                                                            \
	do {                                                                                        \
		if (!(condition)) {                                                                 \
			dprintf(2, "stacks.c:%d: %s: %s\n", __LINE__, #condition, strerror(errno)); \
			_exit(1);                                                                   \
		}                                                                                   \
	} while (0)

static size_t size;
static unsigned char *ballast;
static volatile sig_atomic_t nr_handled;
static unsigned char *guarded;
static sigjmp_buf back;

static void drive_out(void)
{
	for (int pass = 0; pass < 2; pass++)
		for (size_t i = 0; i < size; i += 64)
			__atomic_fetch_add(&ballast[i], 1, __ATOMIC_RELAXED);
}

/* 8 KiB a frame. Half way down everything is driven out. */
static uint64_t __attribute__((noinline)) deep(unsigned depth, uint64_t seed)
{
	volatile uint64_t frame[1024];
	uint64_t sum = 0;

	for (int i = 0; i < 1024; i++)
		frame[i] = seed * i + depth;
	if (depth == 0)
		drive_out();
	else
		sum = deep(depth - 1, seed);
	for (int i = 0; i < 1024; i++) {
		CHECK(frame[i] == seed * i + depth);
		sum += frame[i];
	}
	return sum;
}

static void on_signal(int signal)
{
	volatile unsigned char frame[3 * PAGE];

	(void)signal;
	memset((void *)frame, 7, sizeof(frame));
	CHECK(frame[PAGE] == 7);
	nr_handled++;
}

static void on_segv(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	CHECK((unsigned char *)info->si_addr == guarded + 123);
	siglongjmp(back, 1);
}

static void *work(void *seed)
{
	size_t len = 64 << 10;
	stack_t stack = { .ss_sp = malloc(len), .ss_size = len };
	uint64_t sum;

	CHECK(stack.ss_sp && !sigaltstack(&stack, NULL));
	sum = deep(DEPTH, (uintptr_t)seed);
	for (int i = 0; i < 4; i++) {
		drive_out();
		CHECK(!pthread_kill(pthread_self(), SIGUSR1));
	}
	CHECK(sum == deep(DEPTH, (uintptr_t)seed));
	return NULL;
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	size = (size_t)atoi(argv[1]) << 20;
	ballast = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	guarded = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(ballast != MAP_FAILED && guarded != MAP_FAILED);
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };
	CHECK(!sigaction(SIGUSR1, &action, NULL));

	pthread_t threads[NR_THREADS];
	for (uintptr_t i = 0; i < NR_THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, work, (void *)(i * 77 + 3)));
	for (int i = 0; i < NR_THREADS; i++)
		CHECK(!pthread_join(threads[i], NULL));
	CHECK(nr_handled > 0);

	/* Programs that protect memory and handle the fault: garbage collectors, debuggers. */
	struct sigaction segv = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER };
	CHECK(!sigaction(SIGSEGV, &segv, NULL));
	memset(guarded, 5, 16 * PAGE);
	for (int i = 0; i < 8; i++) {
		drive_out();
		CHECK(!mprotect(guarded, 16 * PAGE, i % 2 ? PROT_READ : PROT_NONE));
		if (sigsetjmp(back, 1) == 0) {
			*(volatile unsigned char *)(guarded + 123) = 6;
			CHECK(!"the write went through");
		}
		CHECK(!mprotect(guarded, 16 * PAGE, PROT_READ | PROT_WRITE));
		CHECK(guarded[123] == 5 && guarded[9 * PAGE] == 5);
	}
	printf("done\n");
	return 0;
}
