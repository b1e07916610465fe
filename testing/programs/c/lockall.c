/*
 * mlockall: what is away comes home, stays, and is right; what is hmm's is not made resident. argv: MiB.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "check.h"

#define PAGE 4096ul

static size_t bytes;

static uint64_t *map(size_t len, uint64_t factor)
{
	uint64_t *words = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(words != MAP_FAILED, len);
	for (size_t i = 0; i < len / 8; i++)
		words[i] = i * factor;
	return words;
}

static void verify(uint64_t *words, size_t len, uint64_t factor)
{
	for (size_t i = 0; i < len / 8; i++)
		CHECK(words[i] == i * factor, i);
}

/* Has all leave that can. */
static void press(void)
{
	uint64_t *words = map(bytes, 3);

	verify(words, bytes, 3);
	munmap(words, bytes);
}

/* KiB, by that name in /proc/self/status. */
static long status(const char *name)
{
	FILE *file = fopen("/proc/self/status", "r");
	char line[256];
	long value = -1;

	CHECK(file, 0);
	while (value < 0 && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			value = atol(line + strlen(name) + 1);
	fclose(file);
	return value;
}

static size_t nr_present(uint64_t *words, size_t len)
{
	FILE *file = fopen("/proc/self/pagemap", "r");
	size_t nr = 0;

	CHECK(file && !fseek(file, (long)((uintptr_t)words / PAGE * 8), SEEK_SET), 0);
	for (size_t page = 0; page < len / PAGE; page++) {
		uint64_t entry;

		CHECK(fread(&entry, 8, 1, file) == 1, page);
		nr += entry >> 63;
	}
	fclose(file);
	return nr;
}

int main(int argc, char **argv)
{
	size_t len = 4ul << 20;
	uint64_t *words, *later;

	CHECK(argc == 2, argc);
	bytes = strtoul(argv[1], NULL, 10) << 20;
	for (int flags = 0; flags < 8; flags++) {
		int by_number = flags & 1;
		long result;

		words = map(len, 7);
		press();
		result = by_number ? syscall(SYS_mlockall, flags) : mlockall(flags);
		/* MCL_ONFAULT says how, not what. */
		CHECK(result == (flags & (MCL_CURRENT | MCL_FUTURE) ? 0 : -1), flags);
		if (flags & MCL_CURRENT && !(flags & MCL_ONFAULT)) {
			CHECK(nr_present(words, len) == len / PAGE, nr_present(words, len));
			CHECK(status("VmLck:") >= (long)(len >> 10), status("VmLck:"));
		}
		verify(words, len, 7);
		/* What the program has, and what there is of hmm besides; not what that has reserved. */
		CHECK(status("VmRSS:") < 160 << 10, status("VmRSS:"));
		later = map(len, 9);
		if (flags & MCL_FUTURE)
			CHECK(status("VmLck:") >= (long)(len >> 10), status("VmLck:"));
		else
			press();
		verify(words, len, 7);
		verify(later, len, 9);
		if (flags & MCL_CURRENT)
			CHECK(nr_present(words, len) == len / PAGE, nr_present(words, len));
		CHECK(!munlockall(), 0);
		press();
		verify(words, len, 7);
		verify(later, len, 9);
		munmap(words, len);
		munmap(later, len);
	}
	CHECK(mlockall(64) == -1 && errno == EINVAL, 0);
	printf("done\n");
	return 0;
}
