/*
 * Forks of a program most of whose memory lies in a file: each process has what was there when it was forked, whatever the others
 * write, and however they end.
 *
 *     filefork MIB [DIRECTORY]
 *
 * With a directory it is shut up there before, as a user who may nothing.
 */
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { PIECES = 16, ROUNDS = 8 };

extern char **environ;

static uint64_t *words;
static size_t piece_words;
/* What each piece was last filled with, as this process knows it. */
static uint64_t seeds[PIECES];

static uint64_t number(size_t i, uint64_t seed)
{
	uint64_t x = (i + seed) * 0x9e3779b97f4a7c15ul;

	return x ^ x >> 29;
}

static void fill(int piece, uint64_t seed)
{
	for (size_t i = 0; i < piece_words; i++)
		words[piece * piece_words + i] = number(i, seed);
	seeds[piece] = seed;
}

static void check(void)
{
	for (int piece = 0; piece < PIECES; piece++)
		for (size_t i = 0; i < piece_words; i++)
			CHECK(words[piece * piece_words + i] == number(i, seeds[piece]), piece);
}

static void wait_for(pid_t child, int expected)
{
	int status;

	CHECK(child > 0, errno);
	CHECK(waitpid(child, &status, 0) == child && status == expected, status);
}

static pid_t must_fork(void)
{
	pid_t child = fork();

	CHECK(child >= 0, errno);
	return child;
}

/* A child that writes, forks another, and is killed or ends. */
static void live(uint64_t round)
{
	pid_t child;

	check();
	for (int piece = round % 3; piece < PIECES; piece += 3)
		fill(piece, 1000 * round + piece);
	if (!(child = must_fork())) {
		check();
		fill(0, 1000 * round + 500);
		check();
		_exit(0);
	}
	fill(1, 1000 * round + 501);
	if (round % 2)
		kill(getpid(), SIGKILL);
	wait_for(child, 0);
	check();
	_exit(0);
}

int main(int argc, char **argv)
{
	char *words_of_true[] = { "true", NULL };
	pid_t child, oldest;
	int gate[2];
	char byte;

	CHECK(argc == 2 || argc == 3, argc);
	size_t size = (size_t)atoi(argv[1]) << 20;
	words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(words != MAP_FAILED, size);
	piece_words = size / 8 / PIECES;
	for (int piece = 0; piece < PIECES; piece++)
		fill(piece, piece);

	if (argc == 3)
		CHECK(!chroot(argv[2]) && !chdir("/") && !setgid(65534) && !setuid(65534), errno);

	CHECK(!pipe(gate), errno);
	if (!(oldest = must_fork())) {
		/* Looks when everything has changed. */
		close(gate[1]);
		CHECK(read(gate[0], &byte, 1) == 0, errno);
		check();
		_exit(0);
	}
	close(gate[0]);
	for (uint64_t round = 1; round <= ROUNDS; round++) {
		if (!(child = must_fork())) {
			close(gate[1]);
			live(round);
		}
		for (int piece = round % 4; piece < PIECES; piece += 4)
			fill(piece, 100 * round + piece);
		wait_for(child, round % 2 ? SIGKILL : 0);
		check();
	}
	if (argc == 2) {
		CHECK(!posix_spawnp(&child, "true", NULL, NULL, words_of_true, environ), errno);
		wait_for(child, 0);
	}
	close(gate[1]);
	wait_for(oldest, 0);
	check();
	printf("done\n");
	return 0;
}
