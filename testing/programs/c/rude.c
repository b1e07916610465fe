/*
 * Programs that do to their process what libraries in it do not expect. argv: what, and MiB. Fills memory, most of which is away
 * then, does it, and reads and writes all of the memory again; where it forks the child does, too, and a child of the child. What
 * it prints is the same alone and under hmm.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/kcmp.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

#define PAGE 4096ul
#define NOBODY 65534

static size_t nr_pages;
static volatile uint64_t (*memory)[PAGE / 8];

static void fill(uint64_t key)
{
	for (size_t i = 0; i < nr_pages; i++)
		memory[i][i % 512] = i * 7 + key;
}

static void verify(uint64_t key)
{
	for (size_t i = 0; i < nr_pages; i++)
		CHECK(memory[i][i % 512] == i * 7 + key, i);
}

/* In a child, and in a child of the child: reads, writes, reads. */
static void fork_twice(void)
{
	pid_t pid = fork();
	int status;

	CHECK(pid >= 0, pid);
	if (!pid) {
		verify(1);
		fill(2);
		pid_t inner = fork();
		CHECK(inner >= 0, inner);
		if (!inner) {
			verify(2);
			_exit(0);
		}
		CHECK(waitpid(inner, &status, 0) == inner && status == 0, status);
		verify(2);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
}

static void close_everything(void)
{
	for (int fd = 3; fd < 4096; fd++)
		close(fd);
	CHECK(!syscall(SYS_close_range, 3, ~0u, 0), 0);
	fork_twice();
}

/* As a daemon does: the program ends, and its grandchild goes on. Here it tells over a pipe when it is done. */
static void leave_to_a_daemon(void)
{
	int ends[2], status;
	char byte;

	CHECK(!pipe(ends), 0);
	pid_t pid = fork();
	CHECK(pid >= 0, pid);
	if (!pid) {
		CHECK(setsid() > 0, 0);
		if (fork())
			_exit(0);
		CHECK(!chdir("/"), 0);
		close(0);
		verify(1);
		fill(3);
		verify(3);
		_exit(write(ends[1], "d", 1) != 1);
	}
	close(ends[1]);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
	CHECK(read(ends[0], &byte, 1) == 1 && byte == 'd', byte);
}

/* Lines that say what a thread may do. */
static void rights_of(const char *tid, char *rights)
{
	static const char *names[] = { "Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:" };
	char path[64], line[4096];

	snprintf(path, sizeof path, "/proc/self/task/%s/status", tid);
	FILE *status = fopen(path, "r");
	CHECK(status, 0);
	*rights = 0;
	while (fgets(line, sizeof line, status))
		for (int i = 0; i < 5; i++)
			if (!strncmp(line, names[i], strlen(names[i])))
				strcat(rights, line);
	fclose(status);
}

/* Whether all threads of the process, those of others in it among them, may do the same. Gives how many there are. */
static int same_rights(void)
{
	static char own[16384], rights[16384];
	DIR *tasks = opendir("/proc/self/task");
	int nr = 0;

	CHECK(tasks, 0);
	snprintf(rights, sizeof rights, "%d", getpid());
	rights_of(rights, own);
	for (struct dirent *task; (task = readdir(tasks));) {
		if (task->d_name[0] == '.')
			continue;
		rights_of(task->d_name, rights);
		CHECK(!strcmp(own, rights), nr);
		nr++;
	}
	closedir(tasks);
	return nr;
}

/* The kernel makes such a process one that is not dumpable: some of its files in procfs are root's then. */
static void change_user(void)
{
	gid_t groups[] = { NOBODY, NOBODY + 1 };

	/* For a moment, as file servers do. */
	CHECK(!setegid(NOBODY) && !seteuid(NOBODY) && !seteuid(0) && !setegid(0), 0);
	same_rights();
	CHECK(!setgroups(2, groups) && !setgid(NOBODY) && !setuid(NOBODY), 0);
	same_rights();
	CHECK(setuid(0) && getuid() == NOBODY, 0);
	CHECK(prctl(PR_GET_DUMPABLE) == 0, 0);
	fork_twice();
	same_rights();
	CHECK(prctl(PR_GET_DUMPABLE) == 0, 0);
}

extern int capset(void *header, void *data);

static void have_capabilities(uint32_t which)
{
	uint32_t header[] = { _LINUX_CAPABILITY_VERSION_3, 0 }, data[] = { which, which, 0, 0, 0, 0 };

	CHECK(!capset(header, data), 0);
}

/* As servers do that need one right more than their user has. */
static void keep_capabilities(void)
{
	gid_t group = NOBODY;

	CHECK(!prctl(PR_SET_KEEPCAPS, 1) && !setresuid(NOBODY, NOBODY, NOBODY), 0);
	same_rights();
	have_capabilities(1u << CAP_SETGID | 1u << CAP_NET_BIND_SERVICE);
	CHECK(!setgroups(1, &group) && !setresgid(group, group, group), 0);
	same_rights();
	have_capabilities(1u << CAP_NET_BIND_SERVICE);
	same_rights();
	fork_twice();
	same_rights();
}

/* What threads share with each other and with children: semaphores that are undone at the end (SEM_UNDO), which nobody has here. */
static void compare(void)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(syscall(SYS_kcmp, getpid(), getppid(), KCMP_SYSVSEM, 0, 0));
	CHECK(waitpid(pid, &status, 0) == pid && status == 0, status);
	fork_twice();
}

static void change_root(void)
{
	char root[] = "/tmp/hmm-root-XXXXXX";

	CHECK(mkdtemp(root), 0);
	CHECK(!chdir(root) && !rmdir(root) && !chroot("."), 0);
	CHECK(open("/proc/self/maps", O_RDONLY) < 0, 0);
	fork_twice();
}

/* The child is the first process of its namespace, and /proc is still that of the one around it. */
static void change_pids(void)
{
	CHECK(!unshare(CLONE_NEWPID), 0);
	fork_twice();
}

/* Nothing but read, write, exit and sigreturn from here on. The end of the last thread is the end of the program. */
static void confine(void)
{
	CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, 0), 0);
	verify(1);
	fill(4);
	verify(4);
	syscall(SYS_exit, 7);
}

/* No ioctl of any thread any more: it fails, or whoever makes one is ended. Bare: behind libc's back. */
static long forbid_ioctl(int bare, unsigned int action)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
	long mode = SECCOMP_SET_MODE_FILTER, flags = SECCOMP_FILTER_FLAG_TSYNC, result = SYS_seccomp;

	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	if (!bare)
		return syscall(SYS_seccomp, mode, flags, &program);
	asm volatile("syscall" : "+a"(result) : "D"(mode), "S"(flags), "d"(&program) : "rcx", "r11", "memory");
	return result;
}

static void confine_all_threads(void)
{
	CHECK(!forbid_ioctl(0, SECCOMP_RET_KILL_THREAD), 0);
	CHECK(prctl(PR_GET_SECCOMP) == SECCOMP_MODE_FILTER, 0);
	verify(1);
	fill(6);
	verify(6);
	fill(1);
}

static void *stay(void *unused)
{
	pause();
	return unused;
}

/* There are others that cannot have it. */
static void confine_several(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, stay, NULL), 0);
	CHECK(forbid_ioctl(0, SECCOMP_RET_KILL_THREAD) > 0, 0);
	CHECK(prctl(PR_GET_SECCOMP) == 0, 0);
}

static void confine_all_bare(void)
{
	CHECK(!forbid_ioctl(1, SECCOMP_RET_ERRNO | 1), 0);
	verify(1);
}

static void *end_last(void *unused)
{
	(void)unused;
	usleep(200000);
	verify(1);
	syscall(SYS_exit, 5);
	return NULL;
}

/* Neither thread ends the process. Both say the same: to the kernel it is the last that counts, to the agent the first. */
static void end_by_threads(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, end_last, NULL), 0);
	syscall(SYS_exit, 5);
}

static void block_signals(void)
{
	sigset_t all;

	sigfillset(&all);
	CHECK(!sigprocmask(SIG_BLOCK, &all, NULL), 0);
	verify(1);
	fork_twice();
}

static void limit(int resource, rlim_t most)
{
	struct rlimit limit = { most, most };

	CHECK(!setrlimit(resource, &limit), resource);
}

static void limit_itself(void)
{
	limit(RLIMIT_NOFILE, 8);
	limit(RLIMIT_MEMLOCK, 0);
	limit(RLIMIT_CORE, 0);
	limit(RLIMIT_STACK, 1 << 20);
}

/* So much and no more, of addresses and of data: it is what the program maps that counts. */
static void limit_its_memory(void)
{
	static const int resources[] = { RLIMIT_AS, RLIMIT_DATA };
	const rlim_t most = (rlim_t)2 << 30;
	struct rlimit limits;
	int status;

	for (size_t i = 0; i < 2; i++) {
		limit(resources[i], most);
		CHECK(!getrlimit(resources[i], &limits) && limits.rlim_cur == most && limits.rlim_max == most, i);
		/* Lower, and higher again: up to the most. */
		limits.rlim_cur = most / 2;
		CHECK(!prlimit(0, resources[i], &limits, NULL), i);
		limits.rlim_cur = most;
		CHECK(!prlimit(getpid(), resources[i], &limits, &limits) && limits.rlim_cur == most / 2, i);
		CHECK(!getrlimit(resources[i], &limits) && limits.rlim_cur == most, i);
	}
	pid_t nobody = fork();
	CHECK(nobody >= 0, errno);
	if (!nobody) {
		/* Who may not raise what is the most. */
		CHECK(geteuid() || (!setgid(65534) && !setuid(65534)), errno);
		limits.rlim_max = most * 2;
		CHECK(setrlimit(RLIMIT_AS, &limits) == -1 && errno == EPERM, errno);
		limits.rlim_max = most;
		CHECK(!setrlimit(RLIMIT_AS, &limits), errno);
		_exit(0);
	}
	CHECK(waitpid(nobody, &status, 0) == nobody && status == 0, status);
	char *some = malloc(256 << 20);
	CHECK(some, 0);
	memset(some, 7, 32 << 20);
	CHECK(!malloc((size_t)4 << 30) && errno == ENOMEM, errno);
	pid_t pid = fork();
	CHECK(pid >= 0, errno);
	if (!pid) {
		CHECK(!getrlimit(RLIMIT_AS, &limits) && limits.rlim_max == most, 0);
		CHECK(malloc(256 << 20), 0);
		CHECK(!malloc((size_t)4 << 30), 0);
		execlp("sh", "sh", "-c", "exit 7", NULL);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7, status);
	CHECK(some[(32 << 20) - 1] == 7, 0);
	fork_twice();
}

static void *serve_one_fault(void *argument)
{
	int fd = *(int *)argument;
	static char page[4096] __attribute__((aligned(4096)));
	struct uffd_msg message;

	memset(page, 9, sizeof(page));
	CHECK(read(fd, &message, sizeof(message)) == sizeof(message), errno);
	struct uffdio_copy copy = {
		.dst = message.arg.pagefault.address & ~4095ul, .src = (unsigned long)page, .len = 4096,
	};
	CHECK(!ioctl(fd, UFFDIO_COPY, &copy), errno);
	return NULL;
}

/* Serves faults of its own, or is refused as if somebody else did already, and has its memory all the same. */
static void use_a_userfaultfd(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = { .api = UFFD_API };
	char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	CHECK(fd >= 0 && memory != MAP_FAILED && !ioctl(fd, UFFDIO_API, &api), errno);
	struct uffdio_register registered = {
		.range = { (unsigned long)memory, 1 << 20 }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	if (!ioctl(fd, UFFDIO_REGISTER, &registered)) {
		CHECK(!pthread_create(&thread, NULL, serve_one_fault, &fd), 0);
		CHECK(memory[5000] == 9, memory[5000]);
		CHECK(!pthread_join(thread, NULL), 0);
	} else {
		CHECK(errno == EBUSY && !memory[5000], errno);
		memset(memory, 5, 1 << 20);
		verify(1);
		for (int i = 0; i < 1 << 20; i++)
			CHECK(memory[i] == 5, i);
	}
	close(fd);
	fork_twice();
}

static void crash(int signal)
{
	volatile int *nowhere = NULL;

	(void)signal;
	verify(1);
	*nowhere = 1;
}

static void crash_in_a_handler(void)
{
	signal(SIGUSR1, crash);
	raise(SIGUSR1);
}

static void *execute(void *unused)
{
	(void)unused;
	verify(1);
	execl("/bin/echo", "echo", "executed in a thread", NULL);
	return NULL;
}

static void execute_in_a_thread(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, execute, NULL), 0);
	pthread_join(thread, NULL);
}

/* As a JVM and sanitizers do. */
static void reserve_terabytes(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	char *closed = mmap(NULL, 4ul << 40, PROT_NONE, flags, -1, 0);
	char *open = mmap(NULL, 1ul << 40, PROT_READ | PROT_WRITE, flags, -1, 0);

	CHECK(closed != MAP_FAILED && open != MAP_FAILED, 0);
	CHECK(!mprotect(closed + (1ul << 40), 1ul << 30, PROT_READ | PROT_WRITE), 0);
	for (size_t at = 0; at < 1ul << 40; at += 1ul << 32)
		open[at] = (char)(at >> 32);
	for (size_t at = 0; at < 1ul << 30; at += 1ul << 20)
		closed[(1ul << 40) + at] = (char)(at >> 20);
	verify(1);
	for (size_t at = 0; at < 1ul << 40; at += 1ul << 32)
		CHECK(open[at] == (char)(at >> 32), at);
	for (size_t at = 0; at < 1ul << 30; at += 1ul << 20)
		CHECK(closed[(1ul << 40) + at] == (char)(at >> 20), at);
}

static const struct {
	const char *name;
	void (*act)(void);
} acts[] = {
	{ "close everything", close_everything },
	{ "leave to a daemon", leave_to_a_daemon },
	{ "change user", change_user },
	{ "keep capabilities", keep_capabilities },
	{ "compare", compare },
	{ "change root", change_root },
	{ "change pids", change_pids },
	{ "confine", confine },
	{ "confine all threads", confine_all_threads },
	{ "confine several", confine_several },
	{ "confine all, bare", confine_all_bare },
	{ "end by threads", end_by_threads },
	{ "block signals", block_signals },
	{ "limit itself", limit_itself },
	{ "limit its memory", limit_its_memory },
	{ "use a userfaultfd", use_a_userfaultfd },
	{ "crash in a handler", crash_in_a_handler },
	{ "execute in a thread", execute_in_a_thread },
	{ "reserve terabytes", reserve_terabytes },
};

int main(int argc, char **argv)
{
	CHECK(argc == 3, argc);
	nr_pages = strtoul(argv[2], NULL, 0) * 256;
	memory = malloc(nr_pages * PAGE);
	CHECK(memory, 0);
	fill(1);
	for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
		if (strcmp(acts[i].name, argv[1]))
			continue;
		acts[i].act();
		verify(1);
		fill(5);
		verify(5);
		puts(argv[1]);
		return 0;
	}
	CHECK(0, "what to do is not known");
}
