/*
 * What a debugger looks at: works on memory most of which is away, until SIGTERM. argv: MiB.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"

static volatile unsigned long round;
static volatile sig_atomic_t stop;

static void on_term(int signal)
{
	stop = signal;
}

int main(int argc, char **argv)
{
	CHECK(argc == 2, argc);
	size_t nr = strtoul(argv[1], NULL, 0) << 17;
	uint64_t *words = calloc(nr, sizeof *words);

	CHECK(words, nr);
	signal(SIGTERM, on_term);
	for (; !stop; round++)
		for (size_t i = 0; i < nr; i += 512) {
			CHECK(words[i] == (round ? i + round - 1 : 0), i);
			words[i] = i + round;
		}
	puts("right");
	return 0;
}
