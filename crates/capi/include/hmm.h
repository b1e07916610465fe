/*
 * hmm: heterogeneous memory management in user space. The C interface.
 *
 * A space mirrors the memory of this process for devices. A device runs kernels: functions of yours that are called on
 * each of its compute units, and access your memory through the unit, by the pointers that you use yourself.
 *
 * Link with libhmm_c.so (or libhmm_c.a with -lpthread -ldl -lm). All functions may be called from any thread. Those that
 * return a pointer return NULL when they fail, those that return an int return a negative errno; then
 * hmm_last_error() says in this thread what happened, and what to do.
 */
#ifndef HMM_H
#define HMM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hmm_space hmm_space;
typedef struct hmm_device hmm_device;
typedef struct hmm_unit hmm_unit;

/* The version of the library, as MAJOR.MINOR.PATCH. */
const char *hmm_version(void);

/* What the last call of this thread that failed says. Never NULL; valid until the next call of this thread. */
const char *hmm_last_error(void);

/* Mirrors this process's memory. Ends with hmm_space_free and its last device. */
hmm_space *hmm_space_new(void);
void hmm_space_free(hmm_space *space);

/* A software accelerator with so many bytes of memory and compute units (threads). Its memory may be smaller than the data. */
hmm_device *hmm_soft_new(hmm_space *space, size_t memory_bytes, unsigned nr_units);
/* What is on the device comes home first. No kernel may be running on it. */
void hmm_device_free(hmm_device *device);

/*
 * What runs on each unit. To end early return what an access returned, or any other negative number but -EAGAIN; the other
 * units run on.
 */
typedef int (*hmm_kernel)(hmm_unit *unit, void *argument);

/*
 * Runs a kernel on all units, and returns when it has ended on all of them: 0, or what the first that ended early returned.
 * The memory that the kernel accesses has to be treated as if its units were threads of yours.
 */
int hmm_launch(hmm_device *device, hmm_kernel kernel, void *argument);

/* Number of this unit, from 0, and how many there are. */
unsigned hmm_unit_id(const hmm_unit *unit);
unsigned hmm_unit_count(const hmm_unit *unit);

/*
 * Accesses of a kernel. A page that is not there is brought, or mapped where it is. Words are aligned to their size; they are
 * accessed atomically, without order. Errors: -EFAULT (no memory there, or it was unmapped meanwhile), -EACCES (read-only),
 * -ENOMEM, -EINVAL (not aligned). Then nothing was accessed.
 */
int hmm_load_u32(hmm_unit *unit, const uint32_t *from, uint32_t *value);
int hmm_load_u64(hmm_unit *unit, const uint64_t *from, uint64_t *value);
int hmm_load_f32(hmm_unit *unit, const float *from, float *value);
int hmm_load_f64(hmm_unit *unit, const double *from, double *value);
int hmm_load_ptr(hmm_unit *unit, void *const *from, void **value);
int hmm_store_u32(hmm_unit *unit, uint32_t *to, uint32_t value);
int hmm_store_u64(hmm_unit *unit, uint64_t *to, uint64_t value);
int hmm_store_f32(hmm_unit *unit, float *to, float value);
int hmm_store_f64(hmm_unit *unit, double *to, double value);
int hmm_store_ptr(hmm_unit *unit, void **to, void *value);

/* Adds, acquiring and releasing; *before, if it is not NULL, is what was there. */
int hmm_add_u32(hmm_unit *unit, uint32_t *at, uint32_t value, uint32_t *before);
int hmm_add_u64(hmm_unit *unit, uint64_t *at, uint64_t value, uint64_t *before);

/* Many bytes, page by page; not atomic. `into` and `bytes` are the kernel's own memory, its stack for example. */
int hmm_read(hmm_unit *unit, const void *from, void *into, size_t nr_bytes);
int hmm_write(hmm_unit *unit, void *to, const void *bytes, size_t nr_bytes);

/* Brings memory to the device before it is used, or home; as far as it fits and can migrate. Returns pages. */
size_t hmm_prefetch(hmm_device *device, const void *start, size_t nr_bytes);
size_t hmm_evict(hmm_device *device, const void *start, size_t nr_bytes);

/* Pages that are on the device now. */
size_t hmm_resident_pages(const hmm_device *device);

/* Hints; they change no result, only what it costs. They are forgotten when the memory is unmapped. */
enum hmm_advice {
	HMM_NO_ADVICE = 0,        /* takes back what was said */
	HMM_PREFER_SYSTEM = 1,    /* devices access it where the CPU does, as long as they can */
	HMM_PREFER_DEVICE = 2,    /* the device fetches what it accesses, reads included */
	HMM_READ_MOSTLY = 3,      /* nobody takes it for himself */
	HMM_ACCESSED_BY = 4       /* the device accesses it now and then, in place */
};
int hmm_advise(hmm_device *device, const void *start, size_t nr_bytes, enum hmm_advice advice);

#ifdef __cplusplus
}
#endif

#endif
