/* An allocator for threads that libc knows. Others have none of what the dynamic linker gives to a thread, and for hmm's there is
 * more to it: the heap may be away. A thread that should not call it ends the process by SIGILL.
 *
 * As a program: has such a thread allocate, to show that this is noticed. */
#define _GNU_SOURCE
#include <stddef.h>

#ifdef LIBRARY

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

/* Zero in storage that nobody has prepared. */
static __thread volatile int is_known __attribute__((tls_model("initial-exec"))) = 1;

static void look(void)
{
	if (!is_known)
		__builtin_trap();
}

void *malloc(size_t size)
{
	look();
	return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	look();
	return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
	look();
	return __libc_realloc(block, size);
}

void *memalign(size_t align, size_t size)
{
	look();
	return __libc_memalign(align, size);
}

void *aligned_alloc(size_t align, size_t size)
{
	return memalign(align, size);
}

int posix_memalign(void **block, size_t align, size_t size)
{
	*block = memalign(align, size);
	return *block ? 0 : 12;
}

void free(void *block)
{
	look();
	__libc_free(block);
}

#else

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

static char stack[1 << 16] __attribute__((aligned(64)));
static char storage[1 << 15] __attribute__((aligned(64)));

static int stranger(void *arg)
{
	void *volatile block = malloc(*(size_t *)arg);

	_exit(block ? 0 : 1);
}

int main(void)
{
	char *end = storage + sizeof storage / 2;
	size_t size = 100;

	*(void **)end = *(void **)(end + 16) = end;
	clone(stranger, stack + sizeof stack,
	      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SETTLS, &size, NULL, end, NULL);
	for (;;)
		pause();
}

#endif
