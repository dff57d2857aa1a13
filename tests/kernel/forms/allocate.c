// SPDX-License-Identifier: GPL-2.0-only
/* Functions that allocate and free, each with one call or tail jump to redirect, and the same without. */
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "forms.h"

#define CONSTANT 200
#define CACHE_SIZE 72
#define BULK 32

long form_allocate(void __user *argument);
int form_allocate_init(void);
void form_allocate_exit(void);

static struct kmem_cache *cache;

static noinline void *call_kmalloc(size_t size)
{
	void *object = kmalloc(size, GFP_KERNEL | __GFP_ZERO);

	barrier();
	return object;
}

static noinline void *tail_kmalloc(size_t size)
{
	return kmalloc(size, GFP_KERNEL | __GFP_ZERO);
}

static noinline void *constant_kmalloc(void)
{
	void *object = kmalloc(CONSTANT, GFP_KERNEL);

	barrier();
	return object;
}

static noinline void *call_cache_alloc(struct kmem_cache *from)
{
	void *object = kmem_cache_alloc(from, GFP_KERNEL);

	barrier();
	return object;
}

static noinline void call_cache_free(struct kmem_cache *to, void *object)
{
	kmem_cache_free(to, object);
	barrier();
}

static noinline void *call_krealloc(void *object, size_t size)
{
	void *larger = krealloc(object, size, GFP_KERNEL);

	barrier();
	return larger;
}

static noinline void *call_kmemdup(void *object, size_t size)
{
	void *copy = kmemdup(object, size, GFP_KERNEL);

	barrier();
	return copy;
}

static noinline void *call_kvmalloc(size_t size)
{
	void *object = kvmalloc(size, GFP_KERNEL | __GFP_ZERO);

	barrier();
	return object;
}

static noinline struct page *call_alloc_pages(unsigned int order)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_ZERO, order);

	barrier();
	return page;
}

static noinline unsigned long call_get_free_pages(unsigned int order)
{
	unsigned long address = __get_free_pages(GFP_KERNEL | __GFP_ZERO, order);

	barrier();
	return address;
}

static noinline unsigned long call_get_zeroed_page(void)
{
	unsigned long address = get_zeroed_page(GFP_KERNEL);

	barrier();
	return address;
}

static void *bulk[BULK];

static noinline int call_alloc_bulk(struct kmem_cache *from, size_t count)
{
	int allocated = kmem_cache_alloc_bulk(from, GFP_KERNEL, count, bulk);

	barrier();
	return allocated;
}

static noinline void call_free_bulk(struct kmem_cache *to, size_t count)
{
	kmem_cache_free_bulk(to, count, bulk);
	barrier();
}

struct rcu_freed {
	u64 data;
	struct rcu_head rcu;
};

static void *const functions[] = {
	[FORM_KMALLOC] = call_kmalloc,
	[FORM_KMALLOC_TAIL] = tail_kmalloc,
	[FORM_KMALLOC_CONSTANT] = constant_kmalloc,
	[FORM_CACHE_ALLOC] = call_cache_alloc,
	[FORM_CACHE_FREE] = call_cache_free,
	[FORM_KREALLOC] = call_krealloc,
	[FORM_KMEMDUP] = call_kmemdup,
	[FORM_KVMALLOC] = call_kvmalloc,
	[FORM_PAGES] = call_alloc_pages,
	[FORM_PAGES_ADDRESS] = call_get_free_pages,
	[FORM_ZEROED_PAGE] = call_get_zeroed_page,
	[FORM_BULK_ALLOC] = call_alloc_bulk,
	[FORM_BULK_FREE] = call_free_bulk,
};

/* Allocates and frees through the redirected functions, with the kernel's own in between; 0 when all was right. */
static long churn(u64 rounds)
{
	u8 *objects[32] = {};
	size_t lengths[32] = {};
	long wrong = 0;
	u64 i;

	for (i = 0; i < rounds && !fatal_signal_pending(current); i++) {
		unsigned int slot = (i * 7 + i / 5) % 32;
		size_t length = 1 + (i * 37) % 3000;

		if (objects[slot]) {
			if (memchr_inv(objects[slot], slot + 1, lengths[slot]))
				wrong++;
			kfree(objects[slot]);
			objects[slot] = NULL;
			continue;
		}
		objects[slot] = i % 3 ? call_kmalloc(length) : kmalloc(length, GFP_KERNEL);
		if (!objects[slot])
			continue;
		lengths[slot] = length;
		memset(objects[slot], slot + 1, length);
		cond_resched();
	}
	for (i = 0; i < 32; i++)
		kfree(objects[i]);
	return wrong;
}

/* The same with pages and large objects, filled from end to end. */
static long churn_pages(u64 rounds)
{
	u64 *blocks[16] = {};
	unsigned int orders[16] = {};
	long wrong = 0;
	u64 i;

	for (i = 0; i < rounds && !fatal_signal_pending(current); i++) {
		unsigned int slot = (i * 7 + i / 5) % 16;
		unsigned int order = i % 3;
		size_t length = PAGE_SIZE << order;

		if (blocks[slot]) {
			length = PAGE_SIZE << orders[slot];
			if (memchr_inv(blocks[slot], slot + 1, length))
				wrong++;
			free_pages((unsigned long)blocks[slot], orders[slot]);
			blocks[slot] = NULL;
			continue;
		}
		blocks[slot] = (void *)(i % 2 ? call_get_free_pages(order) : __get_free_pages(GFP_KERNEL, order));
		if (!blocks[slot])
			continue;
		orders[slot] = order;
		memset(blocks[slot], slot + 1, length);
		cond_resched();
	}
	for (i = 0; i < 16; i++)
		free_pages((unsigned long)blocks[i], orders[i]);
	return wrong;
}

/* In an interrupt. */
static void free_here(void *object)
{
	kfree(object);
}

long form_allocate(void __user *argument)
{
	struct form_alloc request;
	struct page *page;
	void *object, *result = NULL;
	long wrong = 0;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	object = (void *)request.pointer;
	if (object && request.operation <= FORM_KERNEL_KMALLOC)
		memcpy(object, request.data, min_t(size_t, ksize(object), sizeof(request.data)));
	switch (request.operation) {
	case FORM_KMALLOC:
		result = call_kmalloc(request.size);
		break;
	case FORM_KMALLOC_TAIL:
		result = tail_kmalloc(request.size);
		break;
	case FORM_KMALLOC_CONSTANT:
		result = constant_kmalloc();
		request.size = CONSTANT;
		break;
	case FORM_CACHE_ALLOC:
		result = call_cache_alloc(cache);
		request.size = CACHE_SIZE;
		break;
	case FORM_CACHE_FREE:
		if (object)
			call_cache_free(cache, object);
		break;
	case FORM_KREALLOC:
		result = call_krealloc(object, request.size);
		break;
	case FORM_KMEMDUP:
		if (object)
			result = call_kmemdup(object, request.size);
		break;
	case FORM_KVMALLOC:
		result = call_kvmalloc(request.size);
		break;
	case FORM_PAGES:
		page = call_alloc_pages(request.size);
		result = page ? page_address(page) : NULL;
		request.size = PAGE_SIZE << request.size;
		break;
	case FORM_PAGES_ADDRESS:
		result = (void *)call_get_free_pages(request.size);
		request.size = PAGE_SIZE << request.size;
		break;
	case FORM_ZEROED_PAGE:
		result = (void *)call_get_zeroed_page();
		request.size = PAGE_SIZE;
		break;
	case FORM_BULK_ALLOC:
		if (request.size > BULK)
			return -EINVAL;
		request.size = call_alloc_bulk(cache, request.size);
		result = request.size ? bulk[request.size - 1] : NULL;
		break;
	case FORM_BULK_FREE:
		if (request.size > BULK)
			return -EINVAL;
		if (request.size)
			call_free_bulk(cache, request.size);
		break;
	case FORM_KFREE:
		kfree(object);
		break;
	case FORM_KVFREE:
		kvfree(object);
		break;
	case FORM_FREE_PAGES:
		free_pages(request.pointer, request.size);
		break;
	case FORM_KFREE_RCU:
		if (object)
			kfree_rcu((struct rcu_freed *)object, rcu);
		break;
	case FORM_CHURN_PAGES:
		request.result = churn_pages(request.pointer);
		break;
	case FORM_KFREE_THERE:
		wrong = smp_call_function_single(request.size, free_here, object, true);
		if (wrong)
			return wrong;
		break;
	case FORM_PEEK:
		result = object;
		request.size = sizeof(request.data);
		break;
	case FORM_KERNEL_KMALLOC:
		result = kmalloc(request.size, GFP_KERNEL);
		break;
	case FORM_CHURN:
		wrong = churn(request.pointer);
		request.result = wrong;
		break;
	default:
		return -EINVAL;
	}
	if (request.operation != FORM_CHURN && request.operation != FORM_CHURN_PAGES)
		request.result = (unsigned long)result;
	request.frame = ZERO_OR_NULL_PTR(result) ? 0 : page_to_pfn(virt_to_page(result));
	memset(request.data, 0, sizeof(request.data));
	if (!ZERO_OR_NULL_PTR(result))
		memcpy(request.data, result, min_t(size_t, request.size, sizeof(request.data)));
	request.function = 0;
	if (request.operation < ARRAY_SIZE(functions)) {
		request.function = (unsigned long)functions[request.operation];
		memcpy(request.code, functions[request.operation], sizeof(request.code));
	}
	return copy_to_user(argument, &request, sizeof(request)) ? -EFAULT : 0;
}

int form_allocate_init(void)
{
	cache = kmem_cache_create("o2c_forms", CACHE_SIZE, 0, 0, NULL);
	return cache ? 0 : -ENOMEM;
}

void form_allocate_exit(void)
{
	kmem_cache_destroy(cache);
}
