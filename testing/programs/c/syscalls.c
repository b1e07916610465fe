/*
 * The kernel reads and writes memory that is away: every system call must see the bytes, none may fail.
 *
 *     syscalls MIB
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define CHECK(condition)                                                                             \
	do {                                                                                         \
		if (!(condition)) {                                                                  \
			dprintf(2, "syscalls.c:%d: %s: %s\n", __LINE__, #condition, strerror(errno)); \
			_exit(1);                                                                    \
		}                                                                                    \
	} while (0)

static size_t size;
static unsigned char *memory, *ballast;

static unsigned char byte(size_t i, unsigned round)
{
	return (i * 2654435761u >> 11 ^ i >> 12) + round;
}

static void fill(unsigned round)
{
	for (size_t i = 0; i < size; i++)
		memory[i] = byte(i, round);
}

static void check(unsigned round)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != byte(i, round)) {
			dprintf(2, "byte %zu of round %u: %u instead of %u\n", i, round, memory[i], byte(i, round));
			_exit(1);
		}
}

/* Everything else is touched, so that `memory` leaves. */
static void drive_out(void)
{
	static unsigned round;

	round++;
	for (int pass = 0; pass < 2; pass++)
		for (size_t i = 0; i < size; i += 64)
			ballast[i] += round * i / PAGE;
}

static void files(int fd)
{
	/* Out in one call, wiped, and in again in one call. */
	fill(1);
	drive_out();
	for (size_t done = 0; done < size;) {
		ssize_t n = pwrite(fd, memory + done, size - done, done);
		CHECK(n > 0);
		done += n;
	}
	memset(memory, 0, size);
	drive_out();
	for (size_t done = 0; done < size;) {
		ssize_t n = pread(fd, memory + done, size - done, done);
		CHECK(n > 0);
		done += n;
	}
	check(1);

	/* Into places that the program never touched. */
	unsigned char *fresh = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(fresh != MAP_FAILED);
	for (size_t at = 0; at < size; at += 1 << 20)
		CHECK(pread(fd, fresh + at, 1 << 20, at) == 1 << 20);
	CHECK(!memcmp(fresh, memory, size));
	munmap(fresh, size);

	/* Every other page, by vectors that are away themselves. */
	memset(memory, 0, size);
	size_t nr = size / PAGE / 2;
	struct iovec *parts = malloc(nr * sizeof(*parts));
	for (size_t i = 0; i < nr; i++)
		parts[i] = (struct iovec){ memory + (2 * i + i % 2) * PAGE, PAGE };
	drive_out();
	for (size_t i = 0; i < nr; i += 512)
		CHECK(preadv(fd, parts + i, 512, i * PAGE) == 512 * PAGE);
	for (size_t i = 0; i < nr * PAGE; i++)
		CHECK(memory[(2 * (i / PAGE) + i / PAGE % 2) * PAGE + i % PAGE] == byte(i, 1));
	free(parts);
}

static void *send_all(void *fd)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = send(*(int *)fd, memory + done, size - done, 0);
		CHECK(n > 0);
		done += n;
	}
	return NULL;
}

/* Sender and receiver both work on memory that is away. */
static void sockets(void)
{
	int pair[2];
	pthread_t sender;
	unsigned char *target = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(target != MAP_FAILED);
	fill(2);
	memset(target, 1, size);
	drive_out();
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	CHECK(!pthread_create(&sender, NULL, send_all, &pair[0]));
	for (size_t done = 0; done < size;) {
		ssize_t n = recv(pair[1], target + done, size - done, 0);
		CHECK(n > 0);
		done += n;
	}
	pthread_join(sender, NULL);
	CHECK(!memcmp(target, memory, size));
	check(2);
	munmap(target, size);
	close(pair[0]);
	close(pair[1]);
}

/* Small arguments: names, structures, other processes' view. */
static void arguments(const char *name)
{
	char *path = (char *)memory;
	struct stat *info = (struct stat *)(memory + 10 * PAGE + 100);
	struct timespec *now = (struct timespec *)(memory + 20 * PAGE - 8);
	char **argv = (char **)(memory + 30 * PAGE);
	char *script = (char *)(memory + 40 * PAGE - 7);

	fill(3);
	strcpy(path, name);
	argv[0] = (char *)memory + 50 * PAGE;
	strcpy(argv[0], "sh");
	argv[1] = (char *)memory + 60 * PAGE;
	strcpy(argv[1], "-c");
	argv[2] = script;
	strcpy(script, "exit 21");
	argv[3] = NULL;
	drive_out();
	CHECK(!stat(path, info));
	CHECK((size_t)info->st_size == size);
	drive_out();
	CHECK(!clock_gettime(CLOCK_REALTIME, now) && now->tv_sec > 1000000);
	drive_out();
	CHECK(getrandom(memory + 100 * PAGE, 100 * PAGE, 0) > 0);
	drive_out();
	pid_t pid = fork();
	if (pid == 0) {
		execv("/bin/sh", argv);
		_exit(1);
	}
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 21);

	fill(4);
	drive_out();
	size_t len = 1 << 20;
	char *copy = malloc(len);
	for (size_t at = 0; at < size; at += len) {
		struct iovec to = { copy, len }, from = { memory + at, len };
		CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)len);
		for (size_t i = 0; i < len; i++)
			CHECK((unsigned char)copy[i] == byte(at + i, 4));
	}
	free(copy);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	size = (size_t)atoi(argv[1]) << 19;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ballast = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED && ballast != MAP_FAILED);
	char name[] = "/tmp/hmm-syscalls-XXXXXX";
	int fd = mkstemp(name);
	CHECK(fd >= 0);
	files(fd);
	sockets();
	arguments(name);
	unlink(name);
	printf("done\n");
	return 0;
}
