/*
 * y = a * x + y on a device, over ordinary memory from malloc, then a linked list that the CPU built, summed by the device
 * through its own pointers, and a histogram with atomics. Everything is checked against the CPU.
 *
 *   cc saxpy.c -I../include -L../../../target/release -lhmm_c && LD_LIBRARY_PATH=../../../target/release ./a.out
 */
#include <hmm.h>
#include <stdio.h>
#include <stdlib.h>

struct saxpy {
	float a;
	const float *x;
	float *y;
	size_t n;
};

#define TRY(access) do { int error_ = (access); if (error_) return error_; } while (0)

static int saxpy(hmm_unit *unit, void *argument)
{
	const struct saxpy *s = argument;
	size_t from = s->n / hmm_unit_count(unit) * hmm_unit_id(unit);
	size_t to = hmm_unit_id(unit) + 1 == hmm_unit_count(unit) ? s->n : from + s->n / hmm_unit_count(unit);

	for (size_t i = from; i < to; i++) {
		float x, y;

		TRY(hmm_load_f32(unit, &s->x[i], &x));
		TRY(hmm_load_f32(unit, &s->y[i], &y));
		TRY(hmm_store_f32(unit, &s->y[i], s->a * x + y));
	}
	return 0;
}

struct node {
	struct node *next;
	uint64_t value;
};

struct list {
	struct node *first;
	uint64_t sum;
};

static int sum(hmm_unit *unit, void *argument)
{
	struct list *list = argument;
	struct node *node = list->first;

	if (hmm_unit_id(unit) > 0)
		return 0;
	while (node) {
		uint64_t value;
		void *next;

		TRY(hmm_load_u64(unit, &node->value, &value));
		TRY(hmm_add_u64(unit, &list->sum, value, NULL));
		TRY(hmm_load_ptr(unit, (void *const *)&node->next, &next));
		node = next;
	}
	return 0;
}

struct histogram {
	const unsigned char *bytes;
	size_t n;
	uint32_t counts[256];
};

static int histogram(hmm_unit *unit, void *argument)
{
	struct histogram *h = argument;
	unsigned char bytes[512];

	for (size_t i = hmm_unit_id(unit) * sizeof(bytes); i < h->n; i += hmm_unit_count(unit) * sizeof(bytes)) {
		size_t n = h->n - i < sizeof(bytes) ? h->n - i : sizeof(bytes);

		TRY(hmm_read(unit, h->bytes + i, bytes, n));
		for (size_t k = 0; k < n; k++)
			TRY(hmm_add_u32(unit, &h->counts[bytes[k]], 1, NULL));
	}
	return 0;
}

static int touch_nothing(hmm_unit *unit, void *argument)
{
	uint32_t value;

	return hmm_load_u32(unit, argument, &value);
}

#define CHECK(good, what) do { if (!(good)) { fprintf(stderr, "%s: %s\n", what, hmm_last_error()); return 1; } } while (0)

int main(void)
{
	enum { N = 1 << 20, NR_NODES = 20000 };
	hmm_space *space = hmm_space_new();
	CHECK(space, "no space");
	/* A third of what saxpy works on. */
	hmm_device *device = hmm_soft_new(space, N * sizeof(float) * 2 / 3, 2);
	CHECK(device, "no device");

	struct saxpy *s = malloc(sizeof(*s));
	float *x = malloc(N * sizeof(*x)), *y = malloc(N * sizeof(*y));
	for (size_t i = 0; i < N; i++) {
		x[i] = (float)(i % 1000);
		y[i] = (float)(i % 7);
	}
	*s = (struct saxpy){ .a = 2, .x = x, .y = y, .n = N };
	CHECK(hmm_launch(device, saxpy, s) == 0, "saxpy");
	CHECK(hmm_resident_pages(device) > 0, "nothing came to the device");
	for (size_t i = 0; i < N; i++)
		CHECK(y[i] == 2 * (float)(i % 1000) + (float)(i % 7), "a wrong sum");

	struct list *list = calloc(1, sizeof(*list));
	uint64_t expected = 0;
	for (uint64_t i = 0; i < NR_NODES; i++) {
		struct node *node = malloc(sizeof(*node));

		*node = (struct node){ .next = list->first, .value = i * i };
		list->first = node;
		expected += i * i;
	}
	CHECK(hmm_launch(device, sum, list) == 0, "list");
	CHECK(list->sum == expected, "the list has a wrong sum");

	struct histogram *h = calloc(1, sizeof(*h));
	unsigned char *bytes = malloc(N);
	for (size_t i = 0; i < N; i++)
		bytes[i] = (unsigned char)(i * 2654435761u >> 13);
	h->bytes = bytes;
	h->n = N;
	CHECK(hmm_advise(device, bytes, N, HMM_READ_MOSTLY) == 0, "advice");
	CHECK(hmm_launch(device, histogram, h) == 0, "histogram");
	for (size_t i = 0; i < N; i++)
		h->counts[bytes[i]]--;
	for (int i = 0; i < 256; i++)
		CHECK(h->counts[i] == 0, "a wrong count");

	CHECK(hmm_launch(device, touch_nothing, (void *)64) < 0, "a kernel read where nothing is");
	CHECK(hmm_last_error()[0], "an error without a text");
	CHECK(hmm_advise(device, bytes, N, (enum hmm_advice)99) < 0, "wrong advice was taken");
	CHECK(!hmm_soft_new(NULL, 1 << 20, 1), "a device without a space");
	hmm_device_free(device);
	hmm_space_free(space);
	printf("hmm %s: saxpy, a list and a histogram are right\n", hmm_version());
	return 0;
}
