/*
 * Children that are killed before they can say anything, while what their parent needs next is away.
 *
 *     dying ROUNDS MIB        with itself as a library preloaded (cc -DLIBRARY -shared)
 *
 * The library's handlers of forks are installed before those of whoever is preloaded in front of it, and come first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"

#define PAGE 4096ul

struct deal {
	unsigned char *memory;
	size_t size;
};

#ifdef LIBRARY

struct deal deal;

static void die(void)
{
	if (deal.size)
		raise(SIGKILL);
}

static void touch(void)
{
	for (size_t at = 0; at < deal.size; at += PAGE)
		CHECK(deal.memory[at] == at / PAGE % 251, at);
}

__attribute__((constructor)) static void install(void)
{
	pthread_atfork(NULL, touch, die);
}

#else

int main(int argc, char **argv)
{
	CHECK(argc == 3, argc);
	size_t nr_rounds = strtoul(argv[1], NULL, 0), size = strtoul(argv[2], NULL, 0) << 20;
	struct deal *deal = dlsym(RTLD_DEFAULT, "deal");
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(deal && memory != MAP_FAILED, size);
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = at / PAGE % 251;
	*deal = (struct deal){ memory, size };
	for (size_t round = 0; round < nr_rounds; round++) {
		int status;

		alarm(20);
		pid_t pid = fork();
		CHECK(pid > 0, pid);
		CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, status);
	}
	puts("all were killed");
	return 0;
}

#endif
