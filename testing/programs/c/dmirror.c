/* The HMM test device, as programs reach it that Linux's own tests are not: descriptors that travel, wrong arguments, what
 * is seen without opening it. Prints a line for each part that holds, and ends with status 1 at the first that does not. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 40UL

struct command {
	uint64_t addr, ptr, pages, copied, faults;
};

#define REQUEST(nr) _IOWR('H', nr, struct command)
enum { READ_PAGES, WRITE_PAGES, TO_DEVICE, TO_SYSTEM, SNAPSHOT, EXCLUSIVE, CHECK_EXCLUSIVE, RELEASE, FLAGS };

#define CHECK(what)                                                                           \
	do {                                                                                  \
		if (!(what)) {                                                                \
			printf("line %d: %s: errno %d (%s)\n", __LINE__, #what, errno,        \
			       strerror(errno));                                              \
			fflush(stdout);                                                       \
			_exit(1);                                                             \
		}                                                                             \
	} while (0)

static int open_device(int number)
{
	char path[32];
	snprintf(path, sizeof(path), "/dev/hmm_dmirror%d", number);
	int fd = open(path, O_RDWR);
	CHECK(fd >= 0);
	return fd;
}

/* 0 or an errno. */
static int run(int fd, int nr, void *addr, void *buffer, uint64_t pages, struct command *out)
{
	struct command command = { (uintptr_t)addr, (uintptr_t)buffer, pages, 77, 77 };
	int result = ioctl(fd, REQUEST(nr), &command);
	*out = command;
	return result == 0 ? 0 : errno;
}

static unsigned char *memory(int prot)
{
	unsigned char *start = mmap(NULL, PAGES * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(start != MAP_FAILED);
	return start;
}

static void fill(unsigned char *start, unsigned char first)
{
	for (unsigned long page = 0; page < PAGES; page++)
		memset(start + page * PAGE, (int)(first + page), PAGE);
}

static void check_filled(const unsigned char *start, unsigned char first)
{
	for (unsigned long i = 0; i < PAGES * PAGE; i += 509)
		CHECK(start[i] == (unsigned char)(first + i / PAGE));
}

static int wait_for(pid_t pid)
{
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

static void arguments(void)
{
	int fd = open_device(0);
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	fill(mem, 1);
	CHECK(run(fd, READ_PAGES, mem, buffer, PAGES, &out) == 0);
	CHECK(out.copied == PAGES && out.faults == 1);
	check_filled(buffer, 1);
	CHECK(run(fd, READ_PAGES, mem + 1, buffer, 1, &out) == EINVAL && out.copied == 77 && out.faults == 77);
	CHECK(run(fd, READ_PAGES, mem, buffer, 0, &out) == EINVAL);
	CHECK(run(fd, READ_PAGES, mem, buffer, UINT64_MAX, &out) == EINVAL);
	CHECK(run(fd, 10, mem, buffer, 1, &out) == EINVAL);
	CHECK(run(fd, READ_PAGES, mem, NULL, 1, &out) == EFAULT && out.copied == 77);
	CHECK(run(fd, READ_PAGES, NULL, buffer, 1, &out) == EFAULT);
	CHECK(ioctl(fd, REQUEST(READ_PAGES), (void *)8) == -1 && errno == EFAULT);
	CHECK(ioctl(fd, 0x5401, &out) == -1 && errno == EINVAL);
	CHECK(mprotect(buffer, PAGES * PAGE, PROT_READ) == 0);
	CHECK(run(fd, READ_PAGES, mem, buffer, 1, &out) == EFAULT);
	CHECK(run(fd, WRITE_PAGES, buffer, mem, 1, &out) == EPERM);
	CHECK(munmap(buffer, PAGES * PAGE) == 0);
	CHECK(run(fd, WRITE_PAGES, mem, buffer, 1, &out) == EFAULT);
	CHECK(run(fd, TO_DEVICE, buffer, mem, 1, &out) == EINVAL);
	CHECK(munmap(mem, PAGES * PAGE) == 0);
	CHECK(close(fd) == 0);
	CHECK(close(fd) == -1 && errno == EBADF);
	CHECK(ioctl(fd, REQUEST(READ_PAGES), &out) == -1 && errno == EBADF);
	printf("arguments\n");
}

static void outside(void)
{
	struct stat status;
	char byte;
	CHECK(access("/dev/hmm_dmirror3", R_OK | W_OK) == 0);
	CHECK(access("/dev/hmm_dmirror4", F_OK) == -1 && errno == ENOENT);
	CHECK(open("/dev/hmm_dmirror4", O_RDWR) == -1 && errno == ENOENT);
	CHECK(stat("/dev/hmm_dmirror1", &status) == 0 && S_ISCHR(status.st_mode));
	int fd = openat(AT_FDCWD, "/dev/hmm_dmirror1", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	CHECK(fstat(fd, &status) == 0 && S_ISCHR(status.st_mode));
	CHECK(read(fd, &byte, 1) <= 0);
	CHECK(close(fd) == 0);
	int pipes[2];
	CHECK(pipe(pipes) == 0 && fstat(pipes[0], &status) == 0 && S_ISFIFO(status.st_mode));
	CHECK(close(pipes[0]) == 0 && close(pipes[1]) == 0);
	printf("outside\n");
}

/* A child works on its parent's memory by the parent's descriptor, and on its own by its own. */
static void inherited(void)
{
	int fd = open_device(0), copy = dup(fd);
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	fill(mem, 1);
	fill(buffer, 100);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		fill(mem, 50);
		CHECK(run(copy, WRITE_PAGES, mem, buffer, PAGES, &out) == 0 && out.copied == PAGES);
		check_filled(mem, 50);
		CHECK(run(fd, READ_PAGES, mem, buffer, PAGES, &out) == 0 && out.faults == 0);
		check_filled(buffer, 100);
		int own = open_device(0);
		CHECK(run(own, READ_PAGES, mem, buffer, PAGES, &out) == 0 && out.faults == 1);
		check_filled(buffer, 50);
		_exit(0);
	}
	CHECK(wait_for(pid) == 0);
	check_filled(mem, 100);
	CHECK(close(fd) == 0);
	memset(buffer, 0, PAGES * PAGE);
	CHECK(run(copy, READ_PAGES, mem, buffer, PAGES, &out) == 0);
	check_filled(buffer, 100);
	CHECK(close(copy) == 0);
	printf("inherited\n");
}

/* A descriptor is sent to a child that got none, and outlives who opened it. */
static void sent(void)
{
	int pair[2];
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	unsigned char *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	uint64_t addr = 0;
	struct iovec data = { &addr, sizeof(addr) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	pid_t opener = fork();
	CHECK(opener >= 0);
	if (opener == 0) {
		int fd = open_device(1);
		unsigned char *mem = memory(PROT_READ | PROT_WRITE);
		fill(mem, 7);
		addr = (uintptr_t)mem;
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(fd));
		CHECK(sendmsg(pair[1], &message, 0) == sizeof(addr));
		CHECK(read(pair[1], &addr, 1) == 1);
		_exit(0);
	}
	CHECK(recvmsg(pair[0], &message, 0) == sizeof(addr));
	int fd;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	CHECK(run(fd, READ_PAGES, (void *)(uintptr_t)addr, buffer, PAGES, &out) == 0 && out.copied == PAGES);
	check_filled(buffer, 7);
	CHECK(write(pair[0], "x", 1) == 1);
	CHECK(wait_for(opener) == 0);
	CHECK(run(fd, READ_PAGES, (void *)(uintptr_t)addr, buffer, 1, &out) == EFAULT);
	CHECK(close(fd) == 0);
	printf("sent\n");
}

/* Mappings of the device: zeroes that are there, and cannot migrate. */
static void mapped(void)
{
	int fd = open_device(0);
	struct command out;
	unsigned char bytes[3];
	unsigned char *own = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(own != MAP_FAILED);
	CHECK(run(fd, SNAPSHOT, own, bytes, 3, &out) == 0 && out.copied == 3);
	CHECK(bytes[0] == 1 && bytes[1] == 1 && bytes[2] == 1);
	own[PAGE] = 9;
	CHECK(run(fd, SNAPSHOT, own, bytes, 3, &out) == 0);
	CHECK(bytes[0] == 1 && bytes[1] == 2 && bytes[2] == 1);
	CHECK(own[0] == 0 && own[PAGE] == 9);
	CHECK(run(fd, TO_DEVICE, own, bytes, 1, &out) == EINVAL);
	CHECK(munmap(own, 3 * PAGE) == 0);
	CHECK(close(fd) == 0);
	printf("mapped\n");
}

/* The last close of a device brings everything home before it returns. */
static void closed(int number)
{
	int fd = open_device(number), other = open_device(number ^ 1), copy = dup(fd);
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	fill(mem, 3);
	CHECK(run(fd, TO_DEVICE, mem, buffer, PAGES, &out) == 0 && out.copied == PAGES);
	check_filled(buffer, 3);
	CHECK(close(fd) == 0);
	CHECK(run(copy, SNAPSHOT, mem, buffer, 1, &out) == 0);
	CHECK(buffer[0] == (number < 2 ? 0x22 : 0x42));
	CHECK(close(copy) == 0);
	CHECK(run(other, SNAPSHOT, mem, buffer, PAGES, &out) == 0);
	for (unsigned long page = 0; page < PAGES; page++)
		CHECK(buffer[page] == 2);
	check_filled(mem, 3);
	CHECK(close(other) == 0);
	printf("closed_%s\n", number < 2 ? "private" : "coherent");
}

/* A page is the device's alone until the CPU, mprotect or the device's own write takes it back. */
static void exclusive(void)
{
	int fd = open_device(1);
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	fill(mem, 9);
	CHECK(run(fd, EXCLUSIVE, mem, buffer, PAGES, &out) == 0 && out.copied == PAGES);
	check_filled(buffer, 9);
	CHECK(run(fd, CHECK_EXCLUSIVE, mem, buffer, PAGES, &out) == EPERM);
	CHECK(mem[0] == 9);
	CHECK(run(fd, CHECK_EXCLUSIVE, mem, buffer, 1, &out) == 0);
	CHECK(run(fd, CHECK_EXCLUSIVE, mem + PAGE, buffer, 1, &out) == EPERM);
	CHECK(run(fd, WRITE_PAGES, mem + PAGE, buffer, 1, &out) == 0 && out.faults == 1);
	CHECK(mem[PAGE] == 9);
	CHECK(mprotect(mem, PAGES * PAGE, PROT_READ) == 0);
	CHECK(run(fd, CHECK_EXCLUSIVE, mem, buffer, PAGES, &out) == 0);
	CHECK(run(fd, EXCLUSIVE, mem, buffer, 1, &out) == EFAULT);
	/* Also of a page that is on the device, and can be read only there. */
	CHECK(run(fd, TO_DEVICE, mem, buffer, 1, &out) == 0);
	CHECK(mprotect(mem, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
	CHECK(run(fd, WRITE_PAGES, mem, buffer, 1, &out) == EFAULT);
	CHECK(run(fd, EXCLUSIVE, mem, buffer, 1, &out) == 0 && out.copied == 1);
	CHECK(close(fd) == 0);
	printf("exclusive\n");
}

/* What the devices see of the pages: the same byte for all of them. */
static void check_seen(int fd, unsigned char *mem, unsigned long pages, unsigned char byte)
{
	unsigned char seen[PAGES];
	struct command out;
	CHECK(run(fd, SNAPSHOT, mem, seen, pages, &out) == 0 && out.copied == pages);
	for (unsigned long page = 0; page < pages; page++)
		CHECK(seen[page] == byte);
}

/* Pages of a coherent device are where the program has them; only their own device brings them home. */
static void coherent(void)
{
	int fd = open_device(2), other = open_device(3);
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	fill(mem, 5);
	CHECK(run(fd, TO_DEVICE, mem, buffer, PAGES, &out) == 0 && out.copied == PAGES);
	check_filled(buffer, 5);
	check_filled(mem, 5);
	fill(mem, 6);
	CHECK(run(other, READ_PAGES, mem, buffer, PAGES, &out) == 0);
	check_filled(buffer, 6);
	fill(buffer, 7);
	CHECK(run(other, WRITE_PAGES, mem, buffer, PAGES, &out) == 0);
	check_filled(mem, 7);
	check_seen(fd, mem, PAGES, 0x42);
	check_seen(other, mem, PAGES, 0x52);
	CHECK(run(other, TO_SYSTEM, mem, buffer, PAGES, &out) == 0 && out.copied == 0);
	CHECK(mprotect(mem, PAGES * PAGE, PROT_READ) == 0);
	check_seen(fd, mem, PAGES, 0x41);
	CHECK(mprotect(mem, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
	/* A child has them, too, until one of the two writes: then both have system memory. */
	int go[2];
	CHECK(pipe(go) == 0);
	pid_t child = fork();
	if (child == 0) {
		char word;
		CHECK(read(go[0], &word, 1) == 1);
		check_filled(mem, 7);
		fill(mem, 8);
		check_filled(mem, 8);
		_exit(0);
	}
	CHECK(child > 0);
	check_seen(fd, mem, PAGES, 0x41);
	mem[0] = 7;
	check_seen(fd, mem, 1, 0x02);
	check_seen(fd, mem + PAGE, PAGES - 1, 0x41);
	CHECK(write(go[1], "g", 1) == 1 && wait_for(child) == 0);
	check_filled(mem, 7);
	check_seen(fd, mem, PAGES, 0x02);
	CHECK(run(fd, TO_DEVICE, mem, buffer, PAGES, &out) == 0 && out.copied == PAGES);
	CHECK(run(fd, RELEASE, mem, buffer, PAGES, &out) == 0);
	check_seen(fd, mem, PAGES, 0x02);
	check_filled(mem, 7);
	CHECK(close(other) == 0 && close(fd) == 0);
	printf("coherent\n");
}

/* What does not change keeps its entry: of a mapping whose first pages migrate, and between those of a device that closes. */
static void entries(void)
{
	int fd = open_device(2), other = open_device(1);
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	fill(mem, 5);
	CHECK(run(other, READ_PAGES, mem, buffer, PAGES, &out) == 0 && out.faults == 1);
	CHECK(run(fd, TO_DEVICE, mem, buffer, 1, &out) == 0);
	CHECK(run(other, READ_PAGES, mem + PAGE, buffer, PAGES - 1, &out) == 0 && out.faults == 0);
	CHECK(run(fd, TO_DEVICE, mem + 2 * PAGE, buffer, 1, &out) == 0);
	CHECK(run(other, READ_PAGES, mem, buffer, PAGES, &out) == 0);
	CHECK(close(fd) == 0);
	CHECK(run(other, READ_PAGES, mem + PAGE, buffer, 1, &out) == 0 && out.faults == 0);
	CHECK(run(other, READ_PAGES, mem, buffer, PAGES, &out) == 0 && out.faults > 0);
	check_filled(buffer, 5);
	/* An mprotect that changes nothing, or fails in front of it, is nothing to a device. */
	unsigned char *some = memory(PROT_READ | PROT_WRITE);
	fill(some, 5);
	CHECK(mprotect(some, 2 * PAGE, PROT_READ) == 0 && munmap(some + 5 * PAGE, PAGE) == 0);
	CHECK(run(other, READ_PAGES, some, buffer, 5, &out) == 0 && out.faults == 1);
	CHECK(run(other, READ_PAGES, some + 6 * PAGE, buffer, PAGES - 6, &out) == 0 && out.faults == 1);
	CHECK(mprotect(some, PAGE, PROT_READ) == 0);
	CHECK(mprotect(some + 2 * PAGE, (PAGES - 2) * PAGE, PROT_READ | PROT_WRITE) == -1 && errno == ENOMEM);
	CHECK(mprotect(some + 4 * PAGE, (PAGES - 4) * PAGE, PROT_READ) == -1 && errno == ENOMEM);
	CHECK(run(other, READ_PAGES, some, buffer, 4, &out) == 0 && out.faults == 0);
	CHECK(run(other, READ_PAGES, some + 6 * PAGE, buffer, PAGES - 6, &out) == 0 && out.faults == 0);
	CHECK(run(other, READ_PAGES, some, buffer, 5, &out) == 0 && out.faults == 1);
	CHECK(mprotect(some, 4 * PAGE, PROT_READ) == 0);
	CHECK(run(other, READ_PAGES, some, buffer, 2, &out) == 0 && out.faults == 0);
	CHECK(run(other, READ_PAGES, some, buffer, 4, &out) == 0 && out.faults == 1);
	CHECK(close(other) == 0);
	printf("entries\n");
}

static unsigned char *toggled;
static volatile int toggling;

/* What it makes writable is so until it makes it read-only. */
static void *toggle(void *unused)
{
	while (toggling) {
		CHECK(mprotect(toggled, 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
		for (int page = 0; page < 4; page++)
			toggled[page * PAGE]++;
		CHECK(mprotect(toggled, 4 * PAGE, PROT_READ) == 0);
	}
	return unused;
}

/* A device that migrates read-only memory does not take away what the program allows itself meanwhile. */
static void toggles(void)
{
	int fd = open_device(0);
	unsigned char *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	pthread_t thread;
	toggled = memory(PROT_READ | PROT_WRITE);
	fill(toggled, 5);
	toggling = 1;
	CHECK(pthread_create(&thread, NULL, toggle, NULL) == 0);
	for (int turn = 0; turn < 3000; turn++) {
		run(fd, TO_DEVICE, toggled, buffer, 4, &out);
		run(fd, TO_SYSTEM, toggled, buffer, 4, &out);
	}
	toggling = 0;
	CHECK(pthread_join(thread, NULL) == 0);
	for (int page = 1; page < 4; page++)
		CHECK((unsigned char)(toggled[page * PAGE] - toggled[0]) == page);
	CHECK(close(fd) == 0);
	printf("toggles\n");
}

/* What was unmapped before a command is gone when it is carried out. */
static void replaced(void)
{
	int fd = open_device(0);
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	for (int turn = 0; turn < 5000; turn++) {
		CHECK(run(fd, TO_DEVICE, mem, buffer, 4, &out) == 0 && out.copied == 4);
		CHECK(mmap(mem, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == mem);
		check_seen(fd, mem, 4, 0);
	}
	CHECK(close(fd) == 0);
	printf("replaced\n");
}

/* A device that reads what is shared with a child makes no copy of it; when the CPU has written, it faults the copy. */
static void shared(void)
{
	int fd = open_device(0), coherent = open_device(2), go[2];
	unsigned char *mem = memory(PROT_READ | PROT_WRITE), *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	fill(mem, 5);
	CHECK(run(coherent, TO_DEVICE, mem + PAGE, buffer, 2, &out) == 0);
	CHECK(pipe(go) == 0);
	pid_t child = fork();
	if (child == 0) {
		char word;
		CHECK(read(go[0], &word, 1) == 1);
		check_filled(mem, 5);
		_exit(0);
	}
	CHECK(child > 0);
	CHECK(run(fd, READ_PAGES, mem, buffer, PAGES, &out) == 0 && out.faults == 1);
	check_filled(buffer, 5);
	check_seen(fd, mem, 1, 0x01);
	check_seen(coherent, mem + PAGE, 2, 0x41);
	check_seen(fd, mem + 3 * PAGE, PAGES - 3, 0x01);
	/* It migrates for being written to first. */
	CHECK(run(coherent, TO_SYSTEM, mem, buffer, 3, &out) == 0 && out.copied == 2);
	mem[5 * PAGE] = 1;
	CHECK(run(fd, READ_PAGES, mem + 5 * PAGE, buffer, 1, &out) == 0 && out.faults == 1 && buffer[0] == 1);
	CHECK(run(fd, READ_PAGES, mem + 6 * PAGE, buffer, 1, &out) == 0 && out.faults == 0);
	CHECK(write(go[1], "g", 1) == 1 && wait_for(child) == 0);
	CHECK(close(fd) == 0 && close(coherent) == 0);
	printf("shared\n");
}

/* A private mapping of a file has the file's bytes, keeps what is written to it, and its pages migrate. */
static void file(void)
{
	int fd = open_device(0);
	unsigned char *buffer = memory(PROT_READ | PROT_WRITE);
	struct command out;
	char path[] = "dmirror-XXXXXX";
	int data = mkstemp(path);
	CHECK(data >= 0 && unlink(path) == 0);
	for (unsigned long page = 0; page < PAGES; page++) {
		memset(buffer, 1 + page, PAGE);
		CHECK(write(data, buffer, PAGE - (page == PAGES - 1)) > 0);
	}
	unsigned char *mem = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, data, 0);
	unsigned char *part = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, data, 3 * PAGE);
	CHECK(mem != MAP_FAILED && part != MAP_FAILED);
	CHECK(mem[0] == 1 && mem[9 * PAGE] == 10 && mem[PAGES * PAGE - 1] == 0 && part[0] == 4);
	mem[5 * PAGE] = 99;
	CHECK(run(fd, TO_DEVICE, mem, buffer, PAGES, &out) == 0 && out.copied == PAGES);
	CHECK(buffer[0] == 1 && buffer[5 * PAGE] == 99 && buffer[5 * PAGE + 1] == 6);
	CHECK(mem[5 * PAGE] == 99 && mem[9 * PAGE] == 10);
	CHECK(pread(data, buffer, 1, 5 * PAGE) == 1 && buffer[0] == 6);
	/* Behind the end of the file, and of what is no file, the kernel has the say. */
	CHECK(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0) != MAP_FAILED);
	CHECK(mmap(NULL, 2 * PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, data, 0) != MAP_FAILED);
	CHECK(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, data, 1) == MAP_FAILED && errno == EINVAL);
	CHECK(close(fd) == 0 && close(data) == 0);
	printf("file\n");
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "arguments") == 0)
			arguments();
		else if (strcmp(argv[i], "outside") == 0)
			outside();
		else if (strcmp(argv[i], "inherited") == 0)
			inherited();
		else if (strcmp(argv[i], "sent") == 0)
			sent();
		else if (strcmp(argv[i], "mapped") == 0)
			mapped();
		else if (strcmp(argv[i], "exclusive") == 0)
			exclusive();
		else if (strcmp(argv[i], "coherent") == 0)
			coherent();
		else if (strcmp(argv[i], "entries") == 0)
			entries();
		else if (strcmp(argv[i], "toggles") == 0)
			toggles();
		else if (strcmp(argv[i], "replaced") == 0)
			replaced();
		else if (strcmp(argv[i], "shared") == 0)
			shared();
		else if (strcmp(argv[i], "file") == 0)
			file();
		else if (strcmp(argv[i], "closed_private") == 0)
			closed(0);
		else if (strcmp(argv[i], "closed_coherent") == 0)
			closed(2);
		else
			return 2;
	}
	return 0;
}
