/*
 * Every operation on every state of a page, on the whole range and on a part of it, with lengths of whole pages and not.
 * Prints one line for each cell: what the call returned, and what the memory is then. Run alone, it says what the kernel
 * does; run under hmm it must say the same.
 *
 * usage: states MIB
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define PAGE 4096ul
#define NR_PAGES 16ul
#define BYTES (NR_PAGES * PAGE)
#define BLOCK (512 * PAGE)
#define AREA (char *)0x100000000000ul
#define ELSEWHERE (char *)0x110000000000ul
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS)
#define WRITABLE (PROT_READ | PROT_WRITE)

/* Where the cell's memory moves to. */
static char *elsewhere;
static char *pressure;
static size_t pressure_bytes;
static int ends[2];

static char byte_of(size_t at)
{
	return 1 + (at / PAGE * 7 + at) % 251;
}

/* States. Each gets memory at `at`, of which nothing is mapped. */

static void map(char *at, size_t bytes)
{
	if (mmap(at, bytes, WRITABLE, ANONYMOUS | MAP_FIXED, -1, 0) != at)
		abort();
}

static void fill(char *at)
{
	for (size_t i = 0; i < BYTES; i++)
		at[i] = byte_of(i);
}

/* Has all leave that was touched before. */
static void press(void)
{
	static char value;

	value++;
	for (size_t i = 0; i < pressure_bytes; i += 64)
		pressure[i] = value + i / PAGE;
}

static void never_touched(char *at)
{
	map(at, BYTES);
}

static void resident(char *at)
{
	map(at, BYTES);
	fill(at);
}

static void pinned(char *at)
{
	resident(at);
	if (mlock(at, BYTES))
		abort();
}

static void huge(char *at)
{
	map(at, BLOCK);
	madvise(at, BLOCK, MADV_HUGEPAGE);
	fill(at);
}

static void read_only(char *at)
{
	resident(at);
	if (mprotect(at, BYTES, PROT_READ))
		abort();
}

/* What is done when all has left. */

static void protect_read(char *at)
{
	if (mprotect(at, BYTES, PROT_READ))
		abort();
}

static void protect_none(char *at)
{
	if (mprotect(at, BYTES, PROT_NONE))
		abort();
}

/* Operations, on a part. Each returns what the call did, 0 for a success, else errno. */

static int status(long result)
{
	return result == -1 ? errno : 0;
}

static int op_munmap(char *at, size_t bytes) { return status(munmap(at, bytes)); }
static int op_mmap(char *at, size_t bytes)
{
	return status((long)mmap(at, bytes, WRITABLE, ANONYMOUS | MAP_FIXED, -1, 0));
}
static int op_read(char *at, size_t bytes) { return status(write(ends[1], at, bytes < 32768 ? bytes : 32768)); }
static int op_write(char *at, size_t bytes) { (void)bytes; return status(read(ends[0], at, 100)); }
static int op_dontneed(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_DONTNEED)); }
static int op_populate_read(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_POPULATE_READ)); }
static int op_populate_write(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_POPULATE_WRITE)); }
static int op_cold(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_COLD)); }
static int op_pageout(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_PAGEOUT)); }
static int op_nohugepage(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_NOHUGEPAGE)); }
static int op_hugepage(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_HUGEPAGE)); }
static int op_willneed(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_WILLNEED)); }
static int op_remove(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_REMOVE)); }
/* Whether there is anything to collapse is the kernel's to say. */
static int op_collapse(char *at, size_t bytes) { (void)madvise(at, bytes, MADV_COLLAPSE); return 0; }
static int op_protect_read(char *at, size_t bytes) { return status(mprotect(at, bytes, PROT_READ)); }
static int op_protect_none(char *at, size_t bytes) { return status(mprotect(at, bytes, PROT_NONE)); }
static int op_protect_write(char *at, size_t bytes) { return status(mprotect(at, bytes, WRITABLE)); }
static int op_mlock(char *at, size_t bytes) { return status(mlock(at, bytes)); }
static int op_munlock(char *at, size_t bytes) { return status(munlock(at, bytes)); }
static int op_mincore(char *at, size_t bytes)
{
	static unsigned char vec[BLOCK / PAGE];

	return status(mincore(at, bytes, vec));
}
static int op_move(char *at, size_t bytes)
{
	return status((long)mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere));
}
static int op_leave(char *at, size_t bytes)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;

	return status((long)mremap(at, bytes, bytes, flags, elsewhere));
}
static int op_shrink(char *at, size_t bytes) { return status((long)mremap(at, bytes, PAGE, 0)); }
static int op_grow(char *at, size_t bytes)
{
	return status((long)mremap(at, bytes, bytes + 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere));
}
static int op_wipe(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_WIPEONFORK)); }
static int op_withhold(char *at, size_t bytes) { return status(madvise(at, bytes, MADV_DONTFORK)); }
static int op_nothing(char *at, size_t bytes) { (void)at; (void)bytes; return 0; }

static const struct {
	const char *name;
	void (*make)(char *at);
	/* Everything is made, then all leaves that can, then this is done. */
	int leaves;
	void (*then)(char *at);
} states[] = {
	{ "never touched", never_touched, 0, NULL },  { "resident", resident, 0, NULL },
	{ "away", resident, 1, NULL },                { "pinned", pinned, 1, NULL },
	{ "huge", huge, 0, NULL },                    { "huge, away", huge, 1, NULL },
	{ "read-only", read_only, 1, NULL },          { "away, read-only", resident, 1, protect_read },
	{ "away, PROT_NONE", resident, 1, protect_none },
};

static const struct {
	const char *name;
	int (*call)(char *at, size_t bytes);
	int forks;
} operations[] = {
	{ "nothing", op_nothing, 0 }, { "munmap", op_munmap, 0 }, { "mmap over it", op_mmap, 0 },
	{ "write(2) from it", op_read, 0 }, { "read(2) into it", op_write, 0 },
	{ "MADV_DONTNEED", op_dontneed, 0 }, { "MADV_POPULATE_READ", op_populate_read, 0 },
	{ "MADV_POPULATE_WRITE", op_populate_write, 0 }, { "MADV_COLD", op_cold, 0 },
	{ "MADV_PAGEOUT", op_pageout, 0 }, { "MADV_NOHUGEPAGE", op_nohugepage, 0 },
	{ "MADV_HUGEPAGE", op_hugepage, 0 }, { "MADV_COLLAPSE", op_collapse, 0 },
	{ "MADV_WILLNEED", op_willneed, 0 }, { "MADV_REMOVE", op_remove, 0 },
	{ "mprotect to read", op_protect_read, 0 }, { "mprotect to nothing", op_protect_none, 0 },
	{ "mprotect to write", op_protect_write, 0 }, { "mlock", op_mlock, 0 }, { "munlock", op_munlock, 0 },
	{ "mincore", op_mincore, 0 }, { "mremap", op_move, 0 }, { "mremap, DONTUNMAP", op_leave, 0 },
	{ "mremap to fewer", op_shrink, 0 }, { "mremap to more", op_grow, 0 },
	{ "fork", op_nothing, 1 }, { "MADV_WIPEONFORK, fork", op_wipe, 1 }, { "MADV_DONTFORK, fork", op_withhold, 1 },
};

static const struct {
	const char *name;
	size_t from, bytes;
} parts[] = {
	{ "all", 0, BYTES }, { "middle", 3 * PAGE, 8 * PAGE }, { "middle, length + 1", 3 * PAGE, 8 * PAGE + 1 },
	{ "in a page", 3 * PAGE + 8, 8 * PAGE },
};

#define NR_STATES (sizeof(states) / sizeof(*states))
#define NR_OPERATIONS (sizeof(operations) / sizeof(*operations))
#define NR_PARTS (sizeof(parts) / sizeof(*parts))

/* A letter for each page: as it was filled, zeroes, not there to read, or something else. */
static void look(char *at, size_t nr_pages, char *text)
{
	static char page[PAGE], old[PAGE];

	for (size_t i = 0; i < nr_pages; i++) {
		int filled = 1, zero = 1;

		if (write(ends[1], at + i * PAGE, PAGE) != (ssize_t)PAGE) {
			/* What could be written of it. */
			text[i] = '-';
			continue;
		}
		if (read(ends[0], page, PAGE) != (ssize_t)PAGE)
			abort();
		for (size_t k = 0; k < PAGE; k++) {
			old[k] = byte_of(i * PAGE + k);
			filled &= page[k] == old[k];
			zero &= page[k] == 0;
		}
		text[i] = filled ? 'o' : zero ? '0' : page[PAGE - 1] == old[PAGE - 1] ? 'w' : 'x';
	}
	text[nr_pages] = 0;
}

static void drain(void)
{
	char byte;

	while (read(ends[0], &byte, 1) == 1)
		;
}

static void say(const char *who, char *at)
{
	char here[NR_PAGES + 1], there[NR_PAGES + 1];
	unsigned long sum = 0;

	drain();
	look(at, NR_PAGES, here);
	/* What has moved there was at another place before: its bytes are summed. */
	for (size_t i = 0; i < NR_PAGES; i++) {
		char page[PAGE];

		there[i] = write(ends[1], elsewhere + i * PAGE, PAGE) == (ssize_t)PAGE ? '+' : '-';
		if (there[i] == '+' && read(ends[0], page, PAGE) == (ssize_t)PAGE)
			for (size_t k = 0; k < PAGE; k++)
				sum = sum * 31 + (unsigned char)page[k];
	}
	there[NR_PAGES] = 0;
	printf("  %s %s %s %lx\n", who, here, there, sum);
}

static char *place(size_t operation, size_t part)
{
	return AREA + (operation * NR_PARTS + part) * 4 * BLOCK + BLOCK;
}

static void cell(size_t state, size_t operation, size_t part)
{
	char *at = place(operation, part);
	size_t from = parts[part].from;
	int result, ended;

	elsewhere = ELSEWHERE + (at - AREA);
	/* One at a time, so that it is resident. */
	if (!states[state].leaves)
		states[state].make(at);
	if (states[state].then)
		states[state].then(at);
	drain();
	/* For those that read from the pipe. */
	if (operations[operation].call == op_write) {
		char bytes[100];

		memset(bytes, 'x', sizeof(bytes));
		if (write(ends[1], bytes, sizeof(bytes)) != sizeof(bytes))
			abort();
	}
	result = operations[operation].call(at + from, parts[part].bytes);
	printf("%s | %s | %s: %s\n", states[state].name, operations[operation].name, parts[part].name,
	       result ? strerrorname_np(result) : "done");
	if (operations[operation].forks) {
		pid_t child;

		fflush(stdout);
		child = fork();
		if (!child) {
			say("child", at);
			fflush(stdout);
			_exit(0);
		}
		if (child < 0 || waitpid(child, &ended, 0) != child || ended)
			abort();
	}
	say("", at);
	munmap(at - BLOCK, 4 * BLOCK);
	munmap(elsewhere - BLOCK, 4 * BLOCK);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	pressure_bytes = strtoul(argc > 1 ? argv[1] : "24", NULL, 10) << 20;
	pressure = mmap(NULL, pressure_bytes, WRITABLE, ANONYMOUS, -1, 0);
	if (pressure == MAP_FAILED || pipe2(ends, O_NONBLOCK))
		abort();
	for (size_t state = 0; state < NR_STATES; state++) {
		for (size_t i = 0; states[state].leaves && i < NR_OPERATIONS * NR_PARTS; i++)
			states[state].make(place(i / NR_PARTS, i % NR_PARTS));
		press();
		for (size_t operation = 0; operation < NR_OPERATIONS; operation++)
			for (size_t part = 0; part < NR_PARTS; part++)
				cell(state, operation, part);
	}
	return 0;
}
