/*
 * A child is ended by a signal and leaves a core dump. What of its memory was resident is in it, what was away is zeroes; nothing
 * else, and what hmm has reserved is not in it. argv: MiB, an empty directory.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "check.h"

#define PAGE 4096ul
#define AREA 0x100000000000ul

static uint64_t word_at(size_t i)
{
	return (i + 1) * 0x9e3779b97f4a7c15ul | 1;
}

static void end_badly(size_t nr_words)
{
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	uint64_t *words = mmap((void *)AREA, nr_words * 8, PROT_READ | PROT_WRITE, flags, -1, 0);

	CHECK(words == (void *)AREA && !setrlimit(RLIMIT_CORE, &all), 0);
	for (size_t i = 0; i < nr_words; i++)
		words[i] = word_at(i);
	abort();
}

/* A descriptor of it, or -1. */
static int open_core(void)
{
	DIR *dir = opendir(".");
	struct dirent *entry;
	int fd = -1;

	CHECK(dir, 0);
	while (fd < 0 && (entry = readdir(dir)))
		if (!strncmp(entry->d_name, "core", 4))
			fd = open(entry->d_name, O_RDONLY);
	closedir(dir);
	return fd;
}

int main(int argc, char **argv)
{
	static uint64_t page[PAGE / 8];
	size_t nr_words, nr_right = 0, nr_zero = 0;
	struct stat stat;
	Elf64_Ehdr head;
	int status, core;
	pid_t pid;

	CHECK(argc == 3 && !chdir(argv[2]), argc);
	nr_words = (strtoul(argv[1], NULL, 10) << 20) / 8;
	pid = fork();
	if (!pid)
		end_badly(nr_words);
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid, pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, status);
	core = open_core();
	if (core < 0) {
		printf("no core\n");
		return 0;
	}
	CHECK(!fstat(core, &stat) && stat.st_size < (off_t)(nr_words * 8 + (256l << 20)), stat.st_size >> 20);
	CHECK(pread(core, &head, sizeof(head), 0) == sizeof(head), 0);
	for (int i = 0; i < head.e_phnum; i++) {
		Elf64_Phdr part;

		CHECK(pread(core, &part, sizeof(part), head.e_phoff + i * sizeof(part)) == sizeof(part), i);
		if (part.p_type != PT_LOAD || part.p_vaddr < AREA || part.p_vaddr >= AREA + nr_words * 8)
			continue;
		for (size_t at = 0; at < part.p_filesz; at += PAGE) {
			size_t first = (part.p_vaddr - AREA + at) / 8;
			int is_zero = 1, is_right = 1;

			CHECK(pread(core, page, PAGE, (off_t)(part.p_offset + at)) == PAGE, at);
			for (size_t word = 0; word < PAGE / 8; word++) {
				is_zero &= !page[word];
				is_right &= page[word] == word_at(first + word);
			}
			CHECK(is_zero || is_right, first);
			nr_right += is_right;
			nr_zero += is_zero;
		}
	}
	CHECK(nr_right > 0 && nr_right + nr_zero == nr_words * 8 / PAGE, nr_right + nr_zero);
	printf("core\n");
	return 0;
}
