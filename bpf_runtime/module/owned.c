// SPDX-License-Identifier: GPL-2.0-only
/*
 * Blocks of pages that belong to a compartment, and their bytes in its owner shadow.
 *
 * A block is a slab of a private heap, or the pages behind one allocation. Its bytes are set before anything in it is
 * handed out. o2c.ko holds a reference to its pages, so that whoever gives the block back, and however (kfree(),
 * __free_pages(), RCU, a shrunk cache), it does not reach the page allocator while it is marked: a block that only
 * o2c.ko still holds is unmarked first and freed then.
 *
 * A check that saw the mark may have its store still to come. Up to the copy of the instruction interrupts are off at a
 * breakpoint, and a task may be preempted in an optimized probe's detour. So between the two lies a grace period of tasks
 * RCU, which ends only when every task has left the kernel or gone to sleep by itself, and which holds one of RCU's own,
 * for code that interrupts run.
 */
#include <linux/mm.h>
#include <linux/page_ref.h>
#include <linux/rcupdate.h>
#include <linux/xarray.h>

#include "internal.h"

/* A map that a program of the compartment uses: nobody else has a say in what it allows. */
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

/*
 * The array map of that id, and where its one value is. The caller puts the map. -ENOENT: no program of the compartment uses
 * it; -EINVAL: it is of another kind.
 */
struct bpf_map *o2c_map_value(const struct o2c_compartment *compartment, u32 id, u8 **value)
{
	struct bpf_map *map = find_map(compartment, id);
	u64 address;
	int ret = -EINVAL;

	if (!map)
		return ERR_PTR(-ENOENT);
	if (map->map_type == BPF_MAP_TYPE_ARRAY && map->max_entries == 1 && map->ops->map_direct_value_addr)
		ret = map->ops->map_direct_value_addr(map, &address, 0);
	if (ret) {
		bpf_map_put(map);
		return ERR_PTR(ret);
	}
	*value = (u8 *)address;
	return map;
}

int o2c_owned_init(struct o2c_owned *owned, const struct o2c_compartment *compartment, u32 id, u64 limit)
{
	struct bpf_map *map = o2c_map_value(compartment, id, &owned->shadow);

	if (IS_ERR(map))
		return PTR_ERR(map);
	owned->map = map;
	owned->frames = map->value_size;
	owned->limit = limit;
	owned->bytes = 0;
	atomic64_set(&owned->leaving, 0);
	xa_init_flags(&owned->blocks, XA_FLAGS_LOCK_IRQ);
	return 0;
}

/* From the last page to the first: when an object's first page is seen to be marked, so are its others. */
static void set_bytes(struct o2c_owned *owned, u64 first, u64 count, u8 value)
{
	/* pairs with o2c_owned_has() */
	while (count--)
		smp_store_release(&owned->shadow[first + count], value);
}

/*
 * Marks the block that `page` is the head of, unless it is marked. False when that would go over the limit or cannot be
 * recorded. The caller has just got something in it from an allocator, so it stays. Any context.
 *
 * What waits for its grace period does not count, or steady use near the limit would fail; as much again may.
 */
bool o2c_owned_add(struct o2c_owned *owned, struct page *head, u8 value)
{
	u64 first = page_to_pfn(head);
	u64 count = 1UL << compound_order(head);
	u64 bytes = count << PAGE_SHIFT;
	unsigned long flags;
	bool added, fits;

	if (first + count > owned->frames)
		return false;
	xa_lock_irqsave(&owned->blocks, flags);
	added = xa_load(&owned->blocks, first);
	fits = owned->bytes + bytes <= owned->limit &&
	       owned->bytes + bytes + atomic64_read(&owned->leaving) <= 2 * owned->limit;
	if (!added && fits && get_page_unless_zero(head)) {
		added = !xa_is_err(__xa_store(&owned->blocks, first, xa_mk_value(compound_order(head)),
					      GFP_ATOMIC | __GFP_NOWARN));
		if (added) {
			WRITE_ONCE(owned->bytes, owned->bytes + bytes);
			set_bytes(owned, first, count, value);
		} else {
			put_page(head);
		}
	}
	xa_unlock_irqrestore(&owned->blocks, flags);
	return added;
}

/* True when `page` carries `value`, in a block that is marked as far as an object that begins in that page may reach. */
bool o2c_owned_has(const struct o2c_owned *owned, const struct page *page, u8 value)
{
	u64 frame = page_to_pfn(page);

	/* pairs with set_bytes() */
	return frame < owned->frames && smp_load_acquire(&owned->shadow[frame]) == value;
}

/* No store that the mark allowed is still to come. */
static void free_block(struct rcu_head *rcu)
{
	struct page *head = container_of(rcu, struct page, rcu_head);
	struct o2c_owned *owned = (struct o2c_owned *)page_private(head);
	unsigned int order = compound_order(head);

	set_page_private(head, 0);
	__free_pages(head, order);
	/* the last touch of `owned`, for which o2c_owned_clear() waits */
	atomic64_sub(PAGE_SIZE << order, &owned->leaving);
}

/* Gives one block back, if only o2c.ko holds it or `always`: there are no checks any more. */
static bool drop(struct o2c_owned *owned, u64 first, bool always)
{
	struct page *head = pfn_to_page(first);
	unsigned int order;
	unsigned long flags;
	void *entry;

	/* under the lock: the block may be gone, and its pages in a new one */
	xa_lock_irqsave(&owned->blocks, flags);
	entry = xa_load(&owned->blocks, first);
	if (!entry || (!always && page_ref_count(head) != 1)) {
		xa_unlock_irqrestore(&owned->blocks, flags);
		return false;
	}
	order = xa_to_value(entry);
	__xa_erase(&owned->blocks, first);
	set_bytes(owned, first, 1UL << order, 0);
	WRITE_ONCE(owned->bytes, owned->bytes - (PAGE_SIZE << order));
	xa_unlock_irqrestore(&owned->blocks, flags);
	if (always) {
		__free_pages(head, order);
		return true;
	}
	/* nobody else holds the pages, so these members of the first are ours */
	atomic64_add(PAGE_SIZE << order, &owned->leaving);
	set_page_private(head, (unsigned long)owned);
	call_rcu_tasks(&head->rcu_head, free_block);
	return true;
}

/* Gives the blocks back that nobody but o2c.ko holds; true when there was one. Any context. */
bool o2c_owned_reclaim(struct o2c_owned *owned)
{
	unsigned long first;
	bool found = false;
	void *entry;

	xa_for_each(&owned->blocks, first, entry)
		if (page_ref_count(pfn_to_page(first)) == 1)
			found |= drop(owned, first, false);
	return found;
}

/* Lets go of all blocks and the shadow. What lives on in them is ordinary memory from here on. May sleep. */
void o2c_owned_clear(struct o2c_owned *owned)
{
	unsigned long first;
	void *entry;

	xa_for_each(&owned->blocks, first, entry) {
		drop(owned, first, true);
		cond_resched();
	}
	/* also before the module that free_block() is in can go */
#ifdef CONFIG_TASKS_RCU
	rcu_barrier_tasks();
#else
	rcu_barrier();
#endif
	xa_destroy(&owned->blocks);
	bpf_map_put(owned->map);
	owned->map = NULL;
}
