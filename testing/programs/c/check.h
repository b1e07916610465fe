/*
 * What must hold in a program of the tests: else it says what does not, with a number that tells where, and ends with 1.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition, at)                                                                      \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			dprintf(2, "%s:%d: %s: %ld %s\n", __FILE__, __LINE__, #condition, (long)(at), strerror(errno)); \
			_exit(1);                                                                 \
		}                                                                                 \
	} while (0)
