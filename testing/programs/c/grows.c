/*
 * Mappings that grow in place when they are of another kind than when they were made, and are touched where they grew.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define SPAN (4ul << 20)

static unsigned char *reserve(void)
{
	unsigned char *place = mmap(NULL, SPAN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(place != MAP_FAILED, 0);
	CHECK(!munmap(place, SPAN), 0);
	return place;
}

static unsigned char *one_page(unsigned char *at)
{
	unsigned char *page = mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(page == at, (long)(page - at));
	page[5] = 77;
	return page;
}

/* By libc, or by a system call of its own. */
static void grow(unsigned char *page, size_t pages, int raw)
{
	void *now = raw ? (void *)syscall(SYS_mremap, page, PAGE, pages * PAGE, 0ul) : mremap(page, PAGE, pages * PAGE, 0);
	CHECK(now == page, (long)now);
	for (size_t i = 1; i < pages; i++)
		page[i * PAGE + 9] = i;
	CHECK(page[5] == 77, page[5]);
	for (size_t i = 1; i < pages; i++)
		CHECK(page[i * PAGE + 9] == (unsigned char)i && page[i * PAGE + 10] == 0, i);
}

int main(void)
{
	for (int raw = 0; raw < 2; raw++) {
		/* A file has come to its front. */
		int file = memfd_create("front", 0);
		CHECK(file >= 0 && !ftruncate(file, PAGE), file);
		unsigned char *place = reserve();
		unsigned char *page = one_page(place + PAGE);
		CHECK(mmap(place, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == place, raw);
		grow(page, 300, raw);
		CHECK(!munmap(place, 301 * PAGE), raw);

		/* It may be executed. */
		page = one_page(reserve());
		CHECK(!mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), raw);
		grow(page, 300, raw);
		CHECK(!munmap(page, 300 * PAGE), raw);
	}
	puts("grown");
	return 0;
}
