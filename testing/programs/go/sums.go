// Goroutines that fill slices again and again, and C that adds up what is in them.
package main

/*
#include <stdint.h>
#include <stdlib.h>

static uint64_t sum(const uint64_t *words, size_t n)
{
	uint64_t total = 0;

	for (size_t i = 0; i < n; i++)
		total = total * 31 + words[i];
	return total;
}
*/
import "C"

import (
	"fmt"
	"sync"
	"unsafe"
)

func main() {
	const nrChunks, nrWords, nrWorkers = 512, 16 << 10, 4
	chunks := make([][]uint64, nrChunks)
	totals := make([]uint64, nrWorkers)
	var group sync.WaitGroup
	for worker := 0; worker < nrWorkers; worker++ {
		group.Add(1)
		go func(worker int) {
			defer group.Done()
			for round := 0; round < 4; round++ {
				for at := worker; at < nrChunks; at += nrWorkers {
					chunk := make([]uint64, nrWords)
					for i := range chunk {
						chunk[i] = uint64(i*7+round*nrChunks+at) * 0x9e3779b97f4a7c15
					}
					chunks[at] = chunk
				}
				for at := worker; at < nrChunks; at += nrWorkers {
					words := (*C.uint64_t)(unsafe.Pointer(&chunks[at][0]))
					totals[worker] = totals[worker]*31 + uint64(C.sum(words, nrWords))
				}
			}
		}(worker)
	}
	group.Wait()
	fmt.Println(totals)
}
