// SPDX-License-Identifier: GPL-2.0-only
/*
 * A private heap: allocation calls of the compartment's code go to caches of its own, and the pages of their slabs carry
 * the compartment's number and the size of their slots in the owner shadow.
 *
 * The shadow is exact: a slab is marked before its first object is handed out, and slabs are never given back while the
 * compartment is loaded (their caches keep any number of empty ones, see struct o2c_heap). The caches are not merged with
 * others, as they have a usercopy region. Objects may be freed by anybody with kfree(), which looks the cache up; for
 * kmem_cache_free() by the compartment's code there is a redirection, since it would name another cache.
 *
 * SLUB keeps the list of a slab's free objects inside of them, and whoever writes such a pointer chooses what the next
 * allocation returns. So the pointers are kept out of the objects, as SLUB does for SLAB_TYPESAFE_BY_RCU (calculate_sizes in
 * mm/slub.c of 6.1, mm/slab_common.c and slub.c of 6.12): a slot of 2^k bytes, naturally aligned, is an object of 2^k - 8
 * and its pointer. What may be written then follows from an address and its page's byte in the shadow.
 *
 * Handlers do not allocate: they only prepare the arguments, and the call goes to a function here, which runs in the
 * context of the caller.
 */
#include <linux/bpf.h>
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

#define LARGEST 8192U			/* bytes of the largest request that is taken */
#define SMALLEST_SLOT 4			/* log2 of bytes */
#define LARGEST_SLOT 14
#define CLASSES (LARGEST_SLOT - SMALLEST_SLOT + 1)
#define FREE_POINTER sizeof(void *)

struct o2c_private_heap {
	struct list_head list;		/* of those that still have objects after unloading */
	struct kmem_cache *caches[CLASSES];
	char names[CLASSES][32];
	struct bpf_map *map;
	u8 *shadow;
	u64 frames;
	u64 limit;
	u8 owner;
	u16 ctor_offset;		/* of members of struct kmem_cache, which is the kernel's own; 0: not known */
	u16 flags_offset;
	atomic_t inside;		/* calls that are in here */
	atomic64_t bytes;
	atomic64_t allocations;
	atomic64_t failures;
	atomic64_t passed;
};

static LIST_HEAD(leftover);
static DEFINE_MUTEX(leftover_lock);
static void retry_leftover(struct work_struct *work);
static DECLARE_DELAYED_WORK(leftover_work, retry_leftover);
static atomic_t generations = ATOMIC_INIT(0);

/* Marks the slab of `object`. Returns false when that would go over the limit or cannot be recorded. */
static bool mark(struct o2c_private_heap *heap, void *object, unsigned int slot)
{
	u8 value = heap->owner + slot;
	u64 own = page_to_pfn(virt_to_page(object));
	struct page *head = virt_to_head_page(object);
	u64 first = page_to_pfn(head);
	u64 i, count = 1UL << compound_order(head);

	if (own >= heap->frames || first + count > heap->frames || (unsigned long)object & ((1UL << slot) - 1))
		return false;
	if (READ_ONCE(heap->shadow[own]) == value)
		return true;
	if (atomic64_add_return(count << PAGE_SHIFT, &heap->bytes) > heap->limit) {
		atomic64_sub(count << PAGE_SHIFT, &heap->bytes);
		return false;
	}
	/* of two that come here for one slab, one counts it */
	if (cmpxchg(&heap->shadow[first], 0, value) != 0)
		atomic64_sub(count << PAGE_SHIFT, &heap->bytes);
	for (i = 0; i < count; i++)
		WRITE_ONCE(heap->shadow[first + i], value);
	return true;
}

static void *allocate(struct o2c_private_heap *heap, size_t size, gfp_t gfp)
{
	unsigned int class, attempt;
	void *object = NULL;

	if (!size)
		return ZERO_SIZE_PTR;
	class = max_t(unsigned int, fls64(size + FREE_POINTER - 1), SMALLEST_SLOT) - SMALLEST_SLOT;
	/* such caches do not clear what they hand out where the kernel always does */
	if (want_init_on_alloc(gfp))
		gfp |= __GFP_ZERO;
	/* KFENCE's pool is everybody's; it takes one allocation in a while */
	for (attempt = 0; attempt < 4; attempt++) {
		object = kmem_cache_alloc(heap->caches[class], gfp);
		if (!object || !is_kfence_address(object))
			break;
		kmem_cache_free(heap->caches[class], object);
		object = NULL;
	}
	if (object && mark(heap, object, class + SMALLEST_SLOT)) {
		atomic64_inc(&heap->allocations);
		return object;
	}
	if (object)
		kmem_cache_free(heap->caches[class], object);
	atomic64_inc(&heap->failures);
	return NULL;
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
		if (size)
			memcpy(object, old, min(size, ksize(old)));
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

static void heap_free(void *object, struct o2c_private_heap *heap)
{
	kfree(object);
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

/* At a breakpoint on a call or tail jump; returns false when the kernel's own function is to run. */
bool o2c_heap_redirect(const struct o2c_probe *probe, struct pt_regs *regs)
{
	struct o2c_private_heap *heap = probe->compartment->heap;
	unsigned long size = 0, gfp = 0, function;

	if (probe->heap.op != O2C_HEAP_FREE_CACHE) {
		gfp = *o2c_register(regs, probe->heap.gfp);
		size = probe->heap.size == O2C_REG_NONE ? probe->heap.constant
							: *o2c_register(regs, probe->heap.size);
		if (probe->heap.op == O2C_HEAP_ALLOC_CACHE)
			size = is_plain(heap, size) ? kmem_cache_size((struct kmem_cache *)size) : ULONG_MAX;
		if (size > LARGEST || gfp & (__force unsigned long)UNUSUAL_GFP) {
			atomic64_inc(&heap->passed);
			return false;
		}
	}
	switch (probe->heap.op) {
	case O2C_HEAP_FREE_CACHE:
		regs->di = regs->si;
		regs->si = (unsigned long)heap;
		function = (unsigned long)heap_free;
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
		function = (unsigned long)heap_allocate;
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

/* The shadow must be a map that a program of the compartment uses: nobody else has a say in what it allows. */
static struct bpf_map *find_map(const struct o2c_compartment *compartment, u32 id)
{
	struct bpf_map *found = NULL;
	u32 i, n;

	for (i = 0; i < compartment->program_count && !found; i++) {
		struct bpf_prog_aux *aux = compartment->programs[i]->aux;

		mutex_lock(&aux->used_maps_mutex);
		for (n = 0; n < aux->used_map_cnt && !found; n++)
			if (aux->used_maps[n]->id == id)
				found = aux->used_maps[n];
		if (found)
			bpf_map_inc(found);
		mutex_unlock(&aux->used_maps_mutex);
	}
	return found;
}

static int attach_shadow(struct o2c_private_heap *heap, const struct o2c_compartment *compartment, u32 id)
{
	struct bpf_map *map = find_map(compartment, id);
	u64 address;
	int ret = -EINVAL;

	if (!map)
		return -ENOENT;
	if (map->map_type == BPF_MAP_TYPE_ARRAY && map->max_entries == 1 && map->ops->map_direct_value_addr)
		ret = map->ops->map_direct_value_addr(map, &address, 0);
	if (ret) {
		bpf_map_put(map);
		return ret;
	}
	heap->map = map;
	heap->shadow = (u8 *)address;
	heap->frames = map->value_size;
	return 0;
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
	heap->limit = request->limit;
	heap->ctor_offset = request->ctor_offset;
	heap->flags_offset = request->flags_offset;
	ret = attach_shadow(heap, compartment, request->shadow);
	if (ret)
		goto fail;
	request->generation = atomic_inc_return(&generations);
	for (i = 0; i < CLASSES; i++) {
		unsigned int slot = 1U << (i + SMALLEST_SLOT);

		/* copies to and from user space are allowed for the whole object */
		snprintf(heap->names[i], sizeof(heap->names[i]), "o2c-%u-%u", request->generation, slot);
		heap->caches[i] = kmem_cache_create_usercopy(heap->names[i], slot - FREE_POINTER, FREE_POINTER,
							     SLAB_TYPESAFE_BY_RCU, 0, slot - FREE_POINTER, NULL);
		if (!heap->caches[i]) {
			ret = -ENOMEM;
			goto fail;
		}
	}
	compartment->heap = heap;
	return 0;
fail:
	if (heap->map)
		bpf_map_put(heap->map);
	put_caches(heap);
	return ret;
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

static void retry_leftover(struct work_struct *work)
{
	struct o2c_private_heap *heap, *next;

	mutex_lock(&leftover_lock);
	list_for_each_entry_safe(heap, next, &leftover, list) {
		if (!is_empty(heap))
			continue;
		list_del(&heap->list);
		put_caches(heap);
		module_put(THIS_MODULE);
	}
	if (!list_empty(&leftover))
		schedule_delayed_work(&leftover_work, HZ);
	mutex_unlock(&leftover_lock);
}

/* After the compartment's sites are gone. Objects that still live keep their caches, and o2c.ko, until they are freed. */
void o2c_heap_destroy(struct o2c_private_heap *heap)
{
	u64 i;

	while (atomic_read(&heap->inside))
		msleep(1);
	for (i = 0; i < heap->frames; i++) {
		if (heap->shadow[i] >= heap->owner && heap->shadow[i] <= heap->owner + LARGEST_SLOT)
			WRITE_ONCE(heap->shadow[i], 0);
		if (!(i & 0xfffff))
			cond_resched();
	}
	bpf_map_put(heap->map);
	heap->shadow = NULL;
	rcu_barrier();	/* objects on their way through kfree_rcu() */
	if (is_empty(heap)) {
		put_caches(heap);
		return;
	}
	__module_get(THIS_MODULE);
	mutex_lock(&leftover_lock);
	list_add_tail(&heap->list, &leftover);
	mutex_unlock(&leftover_lock);
	schedule_delayed_work(&leftover_work, HZ);
}

void o2c_heap_stats(const struct o2c_private_heap *heap, struct o2c_heap_stats *stats)
{
	stats->bytes = atomic64_read(&heap->bytes);
	stats->allocations = atomic64_read(&heap->allocations);
	stats->failures = atomic64_read(&heap->failures);
	stats->passed = atomic64_read(&heap->passed);
}

void o2c_heap_exit(void)
{
	cancel_delayed_work_sync(&leftover_work);
	/* a task may have been preempted between its last count and the return from here */
	synchronize_rcu_tasks();
}
