/*
 * Memory calls in random order, by several threads, on more memory than the budget; every byte is checked.
 *
 *     calls THREADS MIB ROUNDS SEED [END]
 *
 * Each thread has mappings of its own, with one tag a page that says what the page must hold: 0 zeroes, otherwise words
 * that follow from the tag and the page. In memory shared by all, every thread counts at random places.
 * END says how the first thread ends the process in the middle of it all.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define NR_WORDS (PAGE / 8)
#define NR_MAPPINGS 6

struct mapping {
	uint64_t *base;
	size_t nr_pages;
	uint32_t *tags;
	int in_pieces; /* of which the kernel may have kept the seams, and mremap takes only one */
	uint32_t *keys; /* goes into the content: which page it was when it was written */
};

struct thread {
	pthread_t thread;
	struct mapping mappings[NR_MAPPINGS];
	uint64_t random;
	size_t max_pages;
	unsigned number;
	uint64_t nr_counted;
};

static unsigned nr_threads, nr_rounds;
static const char *end;
static uint64_t *counters;
static volatile char *volatile nowhere = (char *)8;
static size_t nr_counters;

#define CHECK(condition, ...)                                                      \
	do {                                                                       \
		if (!(condition)) {                                                \
			fprintf(stderr, "calls.c:%d: %s: ", __LINE__, #condition); \
			fprintf(stderr, __VA_ARGS__);                              \
			fprintf(stderr, "\n");                                     \
			_exit(1);                                                  \
		}                                                                  \
	} while (0)

static uint64_t next(struct thread *t)
{
	t->random ^= t->random << 13;
	t->random ^= t->random >> 7;
	t->random ^= t->random << 17;
	return t->random * 0x2545f4914f6cdd1dul >> 8;
}

/* A third of the words is the same all over. */
static uint64_t word(uint32_t tag, uint32_t key, size_t i)
{
	uint64_t mixed = (tag * 0x9e3779b97f4a7c15ul) ^ (key * 0xbf58476d1ce4e5b9ul) ^ (i * 0x94d049bb133111ebul);

	return i % 3 ? tag : mixed ^ mixed >> 29;
}

static void check_page(struct thread *t, struct mapping *m, size_t page)
{
	const uint64_t *words = m->base + page * NR_WORDS;
	uint32_t tag = m->tags[page], key = m->keys[page];

	for (size_t i = 0; i < NR_WORDS; i++) {
		uint64_t wanted = tag ? word(tag, key, i) : 0;

		CHECK(words[i] == wanted, "thread %u, page %zu of %zu at %p, word %zu: %lx instead of %lx", t->number, page,
		      m->nr_pages, (void *)words, i, words[i], wanted);
	}
}

static void check(struct thread *t, struct mapping *m, size_t from, size_t to)
{
	for (size_t page = from; page < to; page++)
		check_page(t, m, page);
}

static void fill(struct thread *t, struct mapping *m, size_t from, size_t to)
{
	uint32_t tag = next(t) | 1;

	for (size_t page = from; page < to; page++) {
		m->tags[page] = tag;
		m->keys[page] = page;
		for (size_t i = 0; i < NR_WORDS; i++)
			m->base[page * NR_WORDS + i] = word(tag, page, i);
	}
}

static void *map(size_t nr_pages)
{
	void *base = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(base != MAP_FAILED, "%zu pages: %m", nr_pages);
	return base;
}

static void replace(struct thread *t, struct mapping *m)
{
	if (m->base)
		CHECK(!munmap(m->base, m->nr_pages * PAGE), "%m");
	m->nr_pages = 1 + next(t) % t->max_pages;
	m->base = map(m->nr_pages);
	m->in_pieces = 0;
	memset(m->tags, 0, t->max_pages * sizeof(*m->tags));
}

/* To another size, which may move it; sometimes to a place that holds something else. */
static void resize(struct thread *t, struct mapping *m)
{
	size_t nr_pages = 1 + next(t) % t->max_pages;
	int flags = MREMAP_MAYMOVE;
	void *place = NULL;

	if (next(t) % 2) {
		place = map(nr_pages);
		memset(place, 0xee, nr_pages * PAGE / 2 + 1);
		flags |= MREMAP_FIXED;
	}
	m->base = mremap(m->base, m->nr_pages * PAGE, nr_pages * PAGE, flags, place);
	CHECK(m->base != MAP_FAILED, "%m");
	for (size_t page = m->nr_pages; page < nr_pages; page++)
		m->tags[page] = 0;
	m->nr_pages = nr_pages;
}

/* The middle part goes, and comes back empty. */
static void punch(struct thread *t, struct mapping *m, size_t from, size_t to)
{
	uint64_t *part = m->base + from * NR_WORDS;
	size_t len = (to - from) * PAGE;

	unsigned how = next(t) % 3;

	m->in_pieces |= how > 0;
	switch (how) {
	case 0:
		CHECK(!madvise(part, len, MADV_DONTNEED), "%m");
		break;
	case 1:
		CHECK(mmap(part, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == part, "%m");
		break;
	default:
		/* No other thread may get the hole meanwhile, so it is replaced by nothing rather than unmapped. */
		CHECK(mmap(part, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == part, "%m");
		CHECK(!mprotect(part, len, PROT_READ | PROT_WRITE), "%m");
	}
	memset(m->tags + from, 0, (to - from) * sizeof(*m->tags));
}

static void protect(struct thread *t, struct mapping *m, size_t from, size_t to)
{
	uint64_t *part = m->base + from * NR_WORDS;
	size_t len = (to - from) * PAGE;

	CHECK(!mprotect(part, len, next(t) % 2 ? PROT_READ : PROT_NONE), "%m");
	if (next(t) % 2) {
		CHECK(!mprotect(part, len, PROT_READ), "%m");
		check(t, m, from, to);
	}
	CHECK(!mprotect(part, len, PROT_READ | PROT_WRITE), "%m");
	if (next(t) % 2)
		fill(t, m, from, from + (to - from) / 2);
}

static void count(struct thread *t)
{
	for (int i = 0; i < 64; i++) {
		__atomic_fetch_add(&counters[next(t) % nr_counters], 1, __ATOMIC_RELAXED);
		t->nr_counted++;
	}
}

static void end_now(void)
{
	if (!strcmp(end, "exit"))
		exit(33);
	if (!strcmp(end, "_exit"))
		_exit(34);
	if (!strcmp(end, "abort"))
		abort();
	if (!strcmp(end, "kill"))
		kill(getpid(), SIGKILL);
	if (!strcmp(end, "segv"))
		*nowhere = 1;
}

static void *work(void *argument)
{
	struct thread *t = argument;

	for (unsigned round = 0; round < nr_rounds; round++) {
		struct mapping *m = &t->mappings[next(t) % NR_MAPPINGS];
		size_t from, to;

		if (!m->base)
			replace(t, m);
		from = next(t) % m->nr_pages;
		to = from + 1 + next(t) % (m->nr_pages - from);
		switch (next(t) % 16) {
		case 0:
			replace(t, m);
			break;
		case 1:
			if (!m->in_pieces)
				resize(t, m);
			break;
		case 2:
			punch(t, m, from, to);
			break;
		case 3:
		case 4:
			protect(t, m, from, to);
			break;
		case 5:
		case 6:
		case 7:
			count(t);
			break;
		case 8:
		case 9:
		case 10:
		case 11:
			check(t, m, from, to);
			break;
		default:
			fill(t, m, from, to);
		}
		if (end && t->number == 0 && round == nr_rounds / 10)
			end_now();
	}
	for (int i = 0; i < NR_MAPPINGS; i++)
		if (t->mappings[i].base)
			check(t, &t->mappings[i], 0, t->mappings[i].nr_pages);
	return NULL;
}

int main(int argc, char **argv)
{
	CHECK(argc >= 5, "usage: calls THREADS MIB ROUNDS SEED [END]");
	nr_threads = atoi(argv[1]);
	size_t nr_pages = (size_t)atoi(argv[2]) << 8;
	nr_rounds = atoi(argv[3]);
	end = argv[5];

	/* An eighth for counting; mappings are half as large as they can be, on average. */
	nr_counters = nr_pages / 8 * NR_WORDS;
	counters = map(nr_pages / 8);
	struct thread *threads = calloc(nr_threads, sizeof(*threads));
	for (unsigned n = 0; n < nr_threads; n++) {
		struct thread *t = &threads[n];

		t->number = n;
		t->random = (atol(argv[4]) * 1000003ul + n) * 0x9e3779b97f4a7c15ul | 1;
		t->max_pages = nr_pages / nr_threads * 2 / NR_MAPPINGS;
		for (int i = 0; i < NR_MAPPINGS; i++) {
			t->mappings[i].tags = calloc(t->max_pages, sizeof(uint32_t));
			t->mappings[i].keys = calloc(t->max_pages, sizeof(uint32_t));
		}
		CHECK(!pthread_create(&t->thread, NULL, work, t), "%m");
	}
	if (end && !strcmp(end, "return"))
		return 35;
	uint64_t nr_counted = 0, sum = 0;
	for (unsigned n = 0; n < nr_threads; n++) {
		CHECK(!pthread_join(threads[n].thread, NULL), "%m");
		nr_counted += threads[n].nr_counted;
	}
	for (size_t i = 0; i < nr_counters; i++)
		sum += counters[i];
	CHECK(sum == nr_counted, "%lu counts of %lu", sum, nr_counted);
	printf("%lu counts\n", sum);
	return 0;
}
