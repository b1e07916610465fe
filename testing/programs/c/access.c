/*
 * The kernel and other processes work on memory that is away: direct I/O, io_uring with and without registered buffers, pages that
 * are spliced, and the reads of debuggers. argv: MiB, file. No byte may be wrong. What debuggers are refused is counted, for who
 * wants to see it, on the third descriptor.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "check.h"

#define PAGE 4096ul
#define CHUNK (16 * PAGE)
/* Pages that are registered stay: no more than a budget has room for. */
#define REGISTERED (4ul << 20)

static size_t bytes;
static unsigned char *memory, *ballast;

static uint64_t word(size_t page, uint64_t key)
{
	return (page + 1) * 0x9E3779B97F4A7C15ul ^ key;
}

static void fill(uint64_t key)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		*(uint64_t *)(memory + at) = word(at / PAGE, key);
}

static void verify(uint64_t key)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		CHECK(*(uint64_t *)(memory + at) == word(at / PAGE, key), at);
}

static void drive_out(void)
{
	for (int pass = 0; pass < 2; pass++)
		for (size_t at = 0; at < bytes; at += PAGE)
			ballast[at]++;
}

/* Past the page cache, where the file system can do that. */
static void direct(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);

	if (fd < 0)
		fd = open(path, O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0, fd);
	fill(1);
	drive_out();
	for (size_t at = 0; at < bytes; at += CHUNK)
		CHECK(pwrite(fd, memory + at, CHUNK, at) == CHUNK, at);
	fill(2);
	drive_out();
	for (size_t at = 0; at < bytes; at += CHUNK)
		CHECK(pread(fd, memory + at, CHUNK, at) == CHUNK, at);
	verify(1);
	close(fd);
}

struct ring {
	int fd;
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static void open_ring(struct ring *ring)
{
	struct io_uring_params params = { 0 };
	int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;

	ring->fd = syscall(SYS_io_uring_setup, 8, &params);
	if (ring->fd < 0)
		return;
	CHECK(params.features & IORING_FEAT_SINGLE_MMAP, params.features);
	size_t len = params.sq_off.array + params.sq_entries * sizeof(unsigned);
	size_t cq_len = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	char *rings = mmap(NULL, len > cq_len ? len : cq_len, prot, flags, ring->fd, IORING_OFF_SQ_RING);
	CHECK(rings != MAP_FAILED, len);
	ring->sqes = mmap(NULL, params.sq_entries * sizeof *ring->sqes, prot, flags, ring->fd, IORING_OFF_SQES);
	CHECK(ring->sqes != MAP_FAILED, 0);
	ring->sq_tail = (unsigned *)(rings + params.sq_off.tail);
	ring->sq_mask = (unsigned *)(rings + params.sq_off.ring_mask);
	ring->sq_array = (unsigned *)(rings + params.sq_off.array);
	ring->cq_head = (unsigned *)(rings + params.cq_off.head);
	ring->cq_tail = (unsigned *)(rings + params.cq_off.tail);
	ring->cq_mask = (unsigned *)(rings + params.cq_off.ring_mask);
	ring->cqes = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
}

static void transfer(struct ring *ring, int opcode, int file, size_t at)
{
	unsigned tail = *ring->sq_tail, index = tail & *ring->sq_mask;
	struct io_uring_sqe sqe = { .opcode = opcode, .fd = file, .addr = (uint64_t)(memory + at), .len = CHUNK, .off = at };

	ring->sqes[index] = sqe;
	ring->sq_array[index] = index;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	CHECK(syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1, at);
	unsigned head = *ring->cq_head;
	CHECK(head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE), at);
	errno = -ring->cqes[head & *ring->cq_mask].res;
	CHECK(ring->cqes[head & *ring->cq_mask].res == CHUNK, at);
	__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
}

static void rings(const char *path)
{
	struct ring ring;
	int file = open(path, O_RDWR | O_CREAT, 0600);

	CHECK(file >= 0, file);
	open_ring(&ring);
	if (ring.fd < 0)
		return;
	fill(3);
	drive_out();
	for (size_t at = 0; at < bytes; at += CHUNK)
		transfer(&ring, IORING_OP_WRITE, file, at);
	fill(4);
	drive_out();
	for (size_t at = 0; at < bytes; at += CHUNK)
		transfer(&ring, IORING_OP_READ, file, at);
	verify(3);
	/* Registered buffers are looked up when they are registered, and stay from then on. */
	struct iovec buffer = { memory, REGISTERED };
	drive_out();
	CHECK(!syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1), 0);
	verify(3);
	drive_out();
	for (size_t at = 0; at < REGISTERED; at += PAGE)
		*(uint64_t *)(memory + at) = word(at / PAGE, 5);
	drive_out();
	for (size_t at = 0; at < REGISTERED; at += CHUNK)
		transfer(&ring, IORING_OP_WRITE_FIXED, file, at);
	for (size_t at = 0; at < REGISTERED; at += PAGE)
		*(uint64_t *)(memory + at) = word(at / PAGE, 3);
	drive_out();
	for (size_t at = 0; at < REGISTERED; at += CHUNK)
		transfer(&ring, IORING_OP_READ_FIXED, file, at);
	for (size_t at = 0; at < REGISTERED; at += PAGE)
		CHECK(*(uint64_t *)(memory + at) == word(at / PAGE, 5), at);
	close(ring.fd);
	close(file);
}

/* Pages lie in a pipe as they are, whatever becomes of the memory they came from. */
static void spliced(void)
{
	int ends[2];
	unsigned char chunk[CHUNK];

	CHECK(!pipe(ends), 0);
	fill(6);
	drive_out();
	for (size_t at = 0; at < bytes; at += CHUNK) {
		struct iovec part = { memory + at, CHUNK };
		ssize_t len = vmsplice(ends[1], &part, 1, 0);
		CHECK(len > 0 && len % PAGE == 0, len);
		if (at % (64 * CHUNK) == 0)
			drive_out();
		CHECK(read(ends[0], chunk, len) == len, at);
		for (ssize_t in = 0; in < len; in += PAGE)
			CHECK(*(uint64_t *)(chunk + in) == word((at + in) / PAGE, 6), at + in);
	}
	verify(6);
	close(ends[0]);
	close(ends[1]);
}

/* In a child that is no copy of what is read: it looks at its parent as a debugger does. */
static void look_at(pid_t process)
{
	char path[64];
	size_t nr_refused = 0;

	for (size_t at = 0; at < bytes; at += PAGE) {
		uint64_t seen = 0;
		struct iovec to = { &seen, 8 }, from = { memory + at, 8 };
		CHECK(process_vm_readv(process, &to, 1, &from, 1, 0) == 8 && seen == word(at / PAGE, 7), at);
	}
	snprintf(path, sizeof path, "/proc/%d/mem", process);
	int fd = open(path, O_RDONLY);
	CHECK(fd >= 0, process);
	for (size_t at = 0; at < bytes; at += PAGE) {
		uint64_t seen = 0;
		ssize_t len = pread(fd, &seen, 8, (off_t)(uintptr_t)(memory + at));
		CHECK(len == 8 ? seen == word(at / PAGE, 7) : errno == EIO, at);
		nr_refused += len != 8;
	}
	CHECK(!ptrace(PTRACE_ATTACH, process, 0, 0), process);
	CHECK(waitpid(process, NULL, __WALL) == process, process);
	for (size_t at = 0; at < bytes; at += PAGE) {
		errno = 0;
		uint64_t seen = ptrace(PTRACE_PEEKDATA, process, memory + at, 0);
		CHECK(errno ? errno == EIO : seen == word(at / PAGE, 7), at);
		nr_refused += errno != 0;
	}
	CHECK(!ptrace(PTRACE_DETACH, process, 0, 0), process);
	dprintf(3, "%zu\n", nr_refused);
}

static void debuggers(const char *self)
{
	char process[16], at[32], len[32];
	int status;

	fill(7);
	drive_out();
	snprintf(process, sizeof process, "%d", getpid());
	snprintf(at, sizeof at, "%p", (void *)memory);
	snprintf(len, sizeof len, "%zu", bytes);
	pid_t pid = fork();
	CHECK(pid >= 0, pid);
	if (!pid) {
		execl(self, self, process, at, len, NULL);
		_exit(127);
	}
	while (waitpid(pid, &status, 0) != pid)
		CHECK(errno == EINTR, errno);
	CHECK(status == 0, status);
	verify(7);
}

int main(int argc, char **argv)
{
	if (argc == 4) {
		memory = (unsigned char *)strtoul(argv[2], NULL, 0);
		bytes = strtoul(argv[3], NULL, 0);
		look_at(atoi(argv[1]));
		return 0;
	}
	CHECK(argc == 3, argc);
	bytes = strtoul(argv[1], NULL, 0) << 20;
	memory = aligned_alloc(PAGE, bytes);
	ballast = aligned_alloc(PAGE, bytes);
	CHECK(memory && ballast, bytes);
	direct(argv[2]);
	/* In front of the rings: each of them tells for itself that pages will be referred to. */
	spliced();
	rings(argv[2]);
	debuggers(argv[0]);
	puts("right");
	return 0;
}
