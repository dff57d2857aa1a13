// SPDX-License-Identifier: GPL-2.0-only
/*
 * A private heap: allocation calls of the compartment's code go to caches of its own, or to whole pages, which carry the
 * compartment's number in the owner shadow (see owned.c); a slab's pages also the size of its slots.
 *
 * The caches are not merged with others, as they have a usercopy region. Objects may be freed by anybody with kfree(),
 * which looks the cache up; for kmem_cache_free() by the compartment's code there is a redirection, since it would name
 * another cache.
 *
 * SLUB keeps the list of a slab's free objects inside of them, and whoever writes such a pointer chooses what the next
 * allocation returns. So the pointers are kept out of the objects, as SLUB does for SLAB_TYPESAFE_BY_RCU (calculate_sizes in
 * mm/slub.c of 6.1, mm/slab_common.c and slub.c of 6.12): a slot of 2^k bytes, naturally aligned, is an object of 2^k - 8
 * and its pointer. What may be written then follows from an address and its page's byte in the shadow.
 *
 * Handlers do not allocate: they only prepare the arguments, and the call goes to a function here, which runs in the
 * context of the caller.
 */
#include <linux/kasan.h>
#include <linux/kfence.h>
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>
#include <linux/delay.h>
#include <asm/text-patching.h>

#include "internal.h"

#define UNUSUAL_GFP (__GFP_DMA | __GFP_DMA32 | __GFP_HIGHMEM)
#define UNUSUAL_PAGE_GFP (__GFP_DMA | __GFP_DMA32 | __GFP_MOVABLE)

#define LARGEST 8192U			/* bytes of the largest request that a cache serves */
#define LARGEST_SLOT 14			/* log2 of bytes */
#define LARGEST_ORDER get_order(KMALLOC_MAX_SIZE)
#define FREE_POINTER sizeof(void *)

/* KASAN puts data of its own behind each object, of up to the object's size. */
#ifdef CONFIG_KASAN
#define SMALLEST_SLOT 7
#define OBJECT_SIZE(slot) ((slot) / 2)
#define SLOT_ALIGN(slot) (slot)
#else
#define SMALLEST_SLOT 4
#define OBJECT_SIZE(slot) ((slot) - FREE_POINTER)
#define SLOT_ALIGN(slot) FREE_POINTER
#endif
#define CLASSES (LARGEST_SLOT - SMALLEST_SLOT + 1)

struct o2c_private_heap {
	struct list_head list;		/* of all; guarded by heaps_lock */
	struct o2c_owned owned;
	struct kmem_cache *caches[CLASSES];
	char names[CLASSES][32];
	u8 owner;
	u16 ctor_offset;		/* of members of struct kmem_cache, which is the kernel's own; 0: not known */
	u16 flags_offset;
	bool closed;			/* no new objects; read by the probes without a lock */
	bool abandoned;			/* unloaded, with objects left */
	atomic_t inside;		/* calls that are in here */
	atomic64_t allocations;
	atomic64_t failures;
	atomic64_t passed;
};

static LIST_HEAD(heaps);
static DEFINE_MUTEX(heaps_lock);
static void look_after(struct work_struct *work);
static DECLARE_DELAYED_WORK(look_after_work, look_after);
static atomic_t generations = ATOMIC_INIT(0);

static void *allocate_slot(struct o2c_private_heap *heap, size_t size, gfp_t gfp)
{
	unsigned int slot = SMALLEST_SLOT, attempt;
	struct kmem_cache *cache;
	void *object;
	u8 value;

	while (OBJECT_SIZE(1UL << slot) < size)
		slot++;
	cache = heap->caches[slot - SMALLEST_SLOT];
	value = heap->owner + slot;
	/* such caches do not clear what they hand out where the kernel always does */
	if (want_init_on_alloc(gfp))
		gfp |= __GFP_ZERO;
	/* KFENCE's pool is everybody's; it takes one allocation in a while */
	for (attempt = 0; attempt < 4; attempt++) {
		object = kmem_cache_alloc(cache, gfp);
		if (!object)
			return NULL;
		if (!is_kfence_address(object) && IS_ALIGNED((unsigned long)object, 1UL << slot) &&
		    (o2c_owned_has(&heap->owned, virt_to_page(object), value) ||
		     o2c_owned_add(&heap->owned, virt_to_head_page(object), value)))
			return object;
		kmem_cache_free(cache, object);
		if (!is_kfence_address(object))
			return NULL;
	}
	return NULL;
}

/* Pages as kmalloc() takes them for what no cache serves: kfree() and ksize() know them. */
static void *allocate_large(struct o2c_private_heap *heap, size_t size, gfp_t gfp)
{
	void *object;

	BUILD_BUG_ON(KMALLOC_MAX_CACHE_SIZE > LARGEST);
	if (READ_ONCE(heap->owned.bytes) + size > heap->owned.limit)
		return NULL;
	object = kmalloc(size, gfp);
	if (!object)
		return NULL;
	if (o2c_owned_add(&heap->owned, virt_to_head_page(object), heap->owner))
		return object;
	kfree(object);
	return NULL;
}

static struct page *allocate_pages(struct o2c_private_heap *heap, unsigned int order, gfp_t gfp)
{
	struct page *page;

	if (READ_ONCE(heap->owned.bytes) + (PAGE_SIZE << order) > heap->owned.limit)
		return NULL;
	/* one reference for all pages of the block */
	page = alloc_pages(order ? gfp | __GFP_COMP : gfp, order);
	if (!page || o2c_owned_add(&heap->owned, page, heap->owner))
		return page;
	__free_pages(page, order);
	return NULL;
}

static void *allocate_once(struct o2c_private_heap *heap, size_t size, gfp_t gfp)
{
	return size > LARGEST ? allocate_large(heap, size, gfp) : allocate_slot(heap, size, gfp);
}

static void *allocate(struct o2c_private_heap *heap, size_t size, gfp_t gfp)
{
	void *object;

	if (!size)
		return ZERO_SIZE_PTR;
	object = allocate_once(heap, size, gfp);
	if (!object && o2c_owned_reclaim(&heap->owned))
		object = allocate_once(heap, size, gfp);
	atomic64_inc(object ? &heap->allocations : &heap->failures);
	return object;
}

static struct page *heap_pages(unsigned int order, gfp_t gfp, struct o2c_private_heap *heap)
{
	struct page *page = allocate_pages(heap, order, gfp);

	if (!page && o2c_owned_reclaim(&heap->owned))
		page = allocate_pages(heap, order, gfp);
	atomic64_inc(page ? &heap->allocations : &heap->failures);
	atomic_dec(&heap->inside);
	return page;
}

static void *heap_pages_address(unsigned int order, gfp_t gfp, struct o2c_private_heap *heap)
{
	/* the count of calls is given back there: nothing here touches the heap afterwards */
	struct page *page = heap_pages(order, gfp, heap);

	return page ? page_address(page) : NULL;
}

static void *heap_allocate(size_t size, gfp_t gfp, struct o2c_private_heap *heap)
{
	void *object = allocate(heap, size, gfp);

	atomic_dec(&heap->inside);
	return object;
}

static void *heap_reallocate(void *old, size_t size, gfp_t gfp, struct o2c_private_heap *heap)
{
	void *object;

	object = allocate(heap, size, gfp);
	if (object && !ZERO_OR_NULL_PTR(old)) {
		if (size) {
			/* as krealloc() does: all that was allocated, whatever was asked for */
			kasan_disable_current();
			memcpy(object, old, min(size, ksize(old)));
			kasan_enable_current();
		}
		kfree(old);
	}
	atomic_dec(&heap->inside);
	return object;
}

static void *heap_duplicate(const void *source, size_t size, gfp_t gfp, struct o2c_private_heap *heap)
{
	void *object = allocate(heap, size, gfp);

	if (object && size)
		memcpy(object, source, size);
	atomic_dec(&heap->inside);
	return object;
}

static int heap_allocate_bulk(size_t size, gfp_t gfp, size_t count, void **objects, struct o2c_private_heap *heap)
{
	size_t i;

	for (i = 0; i < count; i++) {
		objects[i] = allocate(heap, size, gfp);
		if (!objects[i])
			break;
	}
	if (i < count) {
		kmem_cache_free_bulk(NULL, i, objects);
		count = 0;
	}
	atomic_dec(&heap->inside);
	return count;
}

static void heap_free(void *object, struct o2c_private_heap *heap)
{
	kfree(object);
	atomic_dec(&heap->inside);
}

static void heap_free_bulk(size_t count, void **objects, struct o2c_private_heap *heap)
{
	kmem_cache_free_bulk(NULL, count, objects);
	atomic_dec(&heap->inside);
}

/* Objects of a cache with a constructor, or that are looked at after they were freed, must come from there. */
static bool is_plain(const struct o2c_private_heap *heap, unsigned long cache)
{
	unsigned long constructor;
	u32 flags;

	return heap->ctor_offset && heap->flags_offset &&
	       !get_kernel_nofault(constructor, (unsigned long *)(cache + heap->ctor_offset)) && !constructor &&
	       !get_kernel_nofault(flags, (u32 *)(cache + heap->flags_offset)) &&
	       !(flags & (__force u32)SLAB_TYPESAFE_BY_RCU);
}

/* What the arguments of an allocation are; false when the kernel's own function is to run. */
static bool read_request(const struct o2c_probe *probe, const struct o2c_private_heap *heap, struct pt_regs *regs,
			 unsigned long *size, unsigned long *gfp)
{
	bool of_pages = probe->heap.op == O2C_HEAP_PAGES || probe->heap.op == O2C_HEAP_PAGES_ADDRESS;
	gfp_t unusual = of_pages ? UNUSUAL_PAGE_GFP : UNUSUAL_GFP;

	if (READ_ONCE(heap->closed))
		return false;
	*gfp = *o2c_register(regs, probe->heap.gfp);
	*size = probe->heap.size == O2C_REG_NONE ? probe->heap.constant : *o2c_register(regs, probe->heap.size);
	if (*gfp & (__force unsigned long)unusual)
		return false;
	switch (probe->heap.op) {
	case O2C_HEAP_PAGES:
	case O2C_HEAP_PAGES_ADDRESS:
		*size = (u32)*size;
		if (probe->heap.zero)
			*gfp |= (__force unsigned long)__GFP_ZERO;
		return *size <= LARGEST_ORDER;
	case O2C_HEAP_ALLOC_CACHE:
	case O2C_HEAP_BULK_ALLOC:
		if (!is_plain(heap, *size))
			return false;
		*size = kmem_cache_size((struct kmem_cache *)*size);
		break;
	case O2C_HEAP_KVALLOC:
		*gfp |= (__force unsigned long)__GFP_NOWARN;
		break;
	}
	return *size <= KMALLOC_MAX_SIZE;
}
NOKPROBE_SYMBOL(read_request);

/* At a breakpoint on a call or tail jump; returns false when the kernel's own function is to run. */
bool o2c_heap_redirect(const struct o2c_probe *probe, struct pt_regs *regs)
{
	struct o2c_private_heap *heap = probe->compartment->heap;
	unsigned long size = 0, gfp = 0, function;

	if (probe->heap.op != O2C_HEAP_FREE_CACHE && probe->heap.op != O2C_HEAP_BULK_FREE &&
	    !read_request(probe, heap, regs, &size, &gfp)) {
		atomic64_inc(&heap->passed);
		return false;
	}
	switch (probe->heap.op) {
	case O2C_HEAP_FREE_CACHE:
		regs->di = regs->si;
		regs->si = (unsigned long)heap;
		function = (unsigned long)heap_free;
		break;
	case O2C_HEAP_BULK_FREE:
		regs->di = regs->si;
		regs->si = regs->dx;
		regs->dx = (unsigned long)heap;
		function = (unsigned long)heap_free_bulk;
		break;
	case O2C_HEAP_BULK_ALLOC:	/* how many and where to are in their places */
		regs->di = size;
		regs->si = gfp;
		regs->r8 = (unsigned long)heap;
		function = (unsigned long)heap_allocate_bulk;
		break;
	case O2C_HEAP_REALLOC:
		regs->si = size;
		regs->dx = gfp;
		regs->cx = (unsigned long)heap;
		function = (unsigned long)heap_reallocate;
		break;
	case O2C_HEAP_DUPLICATE:
		regs->si = size;
		regs->dx = gfp;
		regs->cx = (unsigned long)heap;
		function = (unsigned long)heap_duplicate;
		break;
	default:
		regs->di = size;
		regs->si = gfp;
		regs->dx = (unsigned long)heap;
		function = probe->heap.op == O2C_HEAP_PAGES	    ? (unsigned long)heap_pages
			 : probe->heap.op == O2C_HEAP_PAGES_ADDRESS ? (unsigned long)heap_pages_address
								    : (unsigned long)heap_allocate;
		break;
	}
	atomic_inc(&heap->inside);
	if (probe->insn.form == O2C_FORM_CALL)
		int3_emulate_push(regs, (unsigned long)probe->kp.addr + probe->insn.length);
	int3_emulate_jmp(regs, function);
	return true;
}
NOKPROBE_SYMBOL(o2c_heap_redirect);

static void put_caches(struct o2c_private_heap *heap)
{
	unsigned int i;

	for (i = 0; i < CLASSES; i++)
		kmem_cache_destroy(heap->caches[i]);
	kfree(heap);
}

int o2c_heap_create(struct o2c_compartment *compartment, struct o2c_heap *request)
{
	struct o2c_private_heap *heap;
	unsigned int i;
	int ret;

	if (compartment->heap || compartment->live)
		return -EBUSY;
	if (request->generation || !request->owner || request->owner > O2C_OWNER_MAX || !request->limit ||
	    request->limit > S64_MAX)
		return -EINVAL;
	heap = kzalloc(sizeof(*heap), GFP_KERNEL);
	if (!heap)
		return -ENOMEM;
	heap->owner = request->owner;
	heap->ctor_offset = request->ctor_offset;
	heap->flags_offset = request->flags_offset;
	ret = o2c_owned_init(&heap->owned, compartment, request->shadow, request->limit);
	if (ret) {
		kfree(heap);
		return ret;
	}
	request->generation = atomic_inc_return(&generations);
	for (i = 0; i < CLASSES; i++) {
		unsigned int slot = 1U << (i + SMALLEST_SLOT);

		/* copies to and from user space are allowed for the whole object */
		snprintf(heap->names[i], sizeof(heap->names[i]), "o2c-%u-%u", request->generation, slot);
		heap->caches[i] = kmem_cache_create_usercopy(heap->names[i], OBJECT_SIZE(slot), SLOT_ALIGN(slot),
							     SLAB_TYPESAFE_BY_RCU, 0, OBJECT_SIZE(slot), NULL);
		if (!heap->caches[i]) {
			o2c_owned_clear(&heap->owned);
			put_caches(heap);
			return -ENOMEM;
		}
	}
	compartment->heap = heap;
	mutex_lock(&heaps_lock);
	list_add_tail(&heap->list, &heaps);
	mutex_unlock(&heaps_lock);
	schedule_delayed_work(&look_after_work, HZ);
	return 0;
}

/* True when no object is left: a cache says so by having no slab after shrinking. */
static bool is_empty(struct o2c_private_heap *heap)
{
	bool empty = true;
	unsigned int i;

	for (i = 0; i < CLASSES; i++)
		empty &= !kmem_cache_shrink(heap->caches[i]);
	return empty;
}

/* Once a second: gives back what others have freed, and the caches of compartments that are gone. */
static void look_after(struct work_struct *work)
{
	struct o2c_private_heap *heap, *next;

	mutex_lock(&heaps_lock);
	list_for_each_entry_safe(heap, next, &heaps, list) {
		if (!heap->abandoned) {
			o2c_owned_reclaim(&heap->owned);
		} else if (is_empty(heap)) {
			list_del(&heap->list);
			put_caches(heap);
			module_put(THIS_MODULE);
		}
	}
	if (!list_empty(&heaps))
		schedule_delayed_work(&look_after_work, HZ);
	mutex_unlock(&heaps_lock);
}

/* From the return on, no allocation begins that is served from here. May sleep. */
void o2c_heap_close(struct o2c_private_heap *heap)
{
	if (heap->closed)
		return;
	WRITE_ONCE(heap->closed, true);
	/* handlers run with interrupts off: those that did not see it have counted their call */
	synchronize_rcu();
}

/* Bytes in blocks with something left in them, of a heap that is closed. May sleep. */
u64 o2c_heap_remaining(struct o2c_private_heap *heap)
{
	if (atomic_read(&heap->inside))
		return max_t(u64, READ_ONCE(heap->owned.bytes), 1);
	is_empty(heap);
	rcu_barrier();	/* objects on their way through kfree_rcu(), and the slabs themselves */
	o2c_owned_reclaim(&heap->owned);
	return READ_ONCE(heap->owned.bytes);
}

/* After the compartment's sites are gone. Objects that still live keep their caches, and o2c.ko, until they are freed. */
void o2c_heap_destroy(struct o2c_private_heap *heap)
{
	while (atomic_read(&heap->inside))
		msleep(20);
	mutex_lock(&heaps_lock);
	list_del(&heap->list);
	mutex_unlock(&heaps_lock);
	o2c_owned_clear(&heap->owned);
	rcu_barrier();
	if (is_empty(heap)) {
		put_caches(heap);
		return;
	}
	__module_get(THIS_MODULE);
	heap->abandoned = true;
	mutex_lock(&heaps_lock);
	list_add_tail(&heap->list, &heaps);
	mutex_unlock(&heaps_lock);
	schedule_delayed_work(&look_after_work, HZ);
}

void o2c_heap_stats(const struct o2c_private_heap *heap, struct o2c_heap_stats *stats)
{
	stats->bytes = READ_ONCE(heap->owned.bytes);
	stats->allocations = atomic64_read(&heap->allocations);
	stats->failures = atomic64_read(&heap->failures);
	stats->passed = atomic64_read(&heap->passed);
}

void o2c_heap_exit(void)
{
	cancel_delayed_work_sync(&look_after_work);
	/* a task may have been preempted between its last count and the return from here */
	synchronize_rcu_tasks();
}
