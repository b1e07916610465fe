/*
 * Memory that is touched as soon as it is there, by code that runs before the call which got it returns; every byte is
 * checked.
 *
 *     late MIB
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NR_THREADS 8
#define STACK (1u << 20)
#define NR_BLOCKS 512
#define CHECK(condition)                                                         \
	do {                                                                     \
		if (!(condition)) {                                              \
			dprintf(2, "late.c:%d: %s\n", __LINE__, #condition);     \
			_exit(1);                                                \
		}                                                                \
	} while (0)

static pthread_barrier_t barrier;

static void check(const unsigned char *bytes, size_t len, unsigned char wanted)
{
	for (size_t i = 0; i < len; i++)
		CHECK(bytes[i] == wanted);
}

/* A stack and a heap of its own, both used at once, and all of the threads at the same time. */
static void *work(void *argument)
{
	unsigned char number = (uintptr_t)argument;
	volatile unsigned char stack[STACK];
	unsigned char *blocks[NR_BLOCKS];

	memset((void *)stack, number, STACK);
	for (int i = 0; i < NR_BLOCKS; i++) {
		blocks[i] = malloc(4000);
		memset(blocks[i], number + i, 4000);
	}
	pthread_barrier_wait(&barrier);
	check((void *)stack, STACK, number);
	for (int i = 0; i < NR_BLOCKS; i++) {
		check(blocks[i], 4000, number + i);
		free(blocks[i]);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t all[NR_THREADS];

	CHECK(!pthread_barrier_init(&barrier, NULL, NR_THREADS));
	for (uintptr_t i = 0; i < NR_THREADS; i++)
		CHECK(!pthread_create(&all[i], NULL, work, (void *)(i + 1)));
	for (int i = 0; i < NR_THREADS; i++)
		CHECK(!pthread_join(all[i], NULL));
}

/* On the heap, and behind each block another one, so that growing is copying. */
static void grow(size_t most)
{
	unsigned char *block = NULL;

	CHECK(mallopt(M_MMAP_THRESHOLD, 1 << 30));
	for (size_t len = 1 << 20, before = 0; len <= most; before = len, len *= 2) {
		block = realloc(block, len);
		CHECK(block && malloc(1));
		check(block, before, 7);
		memset(block + before, 7, len - before);
	}
	free(block);
}

static void populated(size_t len)
{
	unsigned char *bytes = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	CHECK(bytes != MAP_FAILED);
	check(bytes, len, 0);
	memset(bytes, 9, len);
	check(bytes, len, 9);
	CHECK(!munmap(bytes, len));
}

/* Under hmm libc's own calls go elsewhere by a jump, unless that is not wanted. */
static void look_at_libc(void)
{
	const unsigned char *body = dlsym(dlopen("libc.so.6", RTLD_LAZY), "mmap");

	CHECK(body);
	if (getenv("HMM_CONTROL"))
		CHECK((body[0] == 0xff && body[1] == 0x25) == !getenv("HMM_KEEP_LIBC"));
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	look_at_libc();
	size_t all = (size_t)atoi(argv[1]) << 20;

	for (int round = 0; round < 3; round++) {
		threads();
		populated(all);
	}
	grow(all / 2);
	printf("done\n");
	return 0;
}
