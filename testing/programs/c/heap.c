/*
 * malloc, realloc and free in random order and sizes, far beyond the budget; every byte is checked.
 *
 *     heap MIB ROUNDS SEED [LARGEST [stack]]
 *
 * As a stack, blocks are freed in the reverse order, so that the heap's end goes back and forth.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NR_BLOCKS (1u << 16)

struct block {
	unsigned char *bytes;
	uint32_t len, tag;
};

static struct block blocks[NR_BLOCKS];
static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state * 0x2545f4914f6cdd1dul >> 16;
}

static unsigned char byte(const struct block *b, uint32_t i)
{
	return b->tag >> i % 4 * 8 ^ i >> 6;
}

static void check(const struct block *b, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++) {
		if (b->bytes[i] != byte(b, i)) {
			dprintf(2, "heap.c: byte %u of %u at %p (break %p): %u instead of %u\n", i, b->len,
				(void *)(b->bytes + i), sbrk(0), b->bytes[i], byte(b, i));
			_exit(1);
		}
	}
}

static void fill(struct block *b, uint32_t from)
{
	for (uint32_t i = from; i < b->len; i++)
		b->bytes[i] = byte(b, i);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	size_t most = (size_t)atoi(argv[1]) << 20, used = 0;
	uint64_t nr_rounds = atol(argv[2]);
	uint32_t largest = argc > 4 ? atoi(argv[4]) : 8000;

	int is_stack = argc > 5;
	uint32_t top = 0, target = 0;

	state = atol(argv[3]) * 0x9e3779b97f4a7c15ul | 1;
	for (uint64_t round = 0; round < nr_rounds; round++) {
		struct block *b = &blocks[next() % NR_BLOCKS];

		if (is_stack) {
			/* Two steps forward, one back; from the end, all the way. */
			if (top == target)
				target = next() % 3 ? top + next() % 400 : top - next() % (top / 2 + 1) % 400;
			if (target >= NR_BLOCKS || (target > top && used + largest > most))
				target = top / 8;
			b = &blocks[target > top ? top++ : top > target ? --top : top];
		}
		uint32_t len = 1 + next() % (next() % 4 ? 200 : largest);

		if (b->bytes && !is_stack && next() % 3 == 0) {
			uint32_t kept = len < b->len ? len : b->len;

			used = used - b->len + len;
			b->bytes = realloc(b->bytes, len);
			b->len = len;
			check(b, kept);
			fill(b, kept);
		} else if (b->bytes) {
			check(b, b->len);
			free(b->bytes);
			used -= b->len;
			b->bytes = NULL;
		}
		if (!b->bytes && used + len <= most && (!is_stack || b < &blocks[top])) {
			*b = (struct block){ malloc(len), len, next() };
			fill(b, 0);
			used += len;
		}
	}
	for (uint32_t i = 0; i < NR_BLOCKS; i++)
		if (blocks[i].bytes)
			check(&blocks[i], blocks[i].len);
	printf("%zu bytes\n", used);
	return 0;
}
