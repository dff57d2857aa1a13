// SPDX-License-Identifier: GPL-2.0-only
/*
 * A deliberately vulnerable module: every function below does what an exploited bug would do, with addresses
 * that the caller chose, or the proper thing with objects of its own.
 */
#include <linux/cred.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "bystander.h"
#include "victim.h"

struct victim_object {
	u64 words[8];
	struct list_head link;
	void (*action)(void);
};

/* Of a cache of its own; freed by RCU. */
struct victim_node {
	u64 words[4];
	struct rcu_head rcu;
};

static struct kmem_cache *nodes;
static struct victim_node *kept;
static struct victim_object *old_object;
static void *old_foreign;
static u32 actions;
static struct timer_list victim_timer, spare_timer;
static struct {
	void (*free)(const void *object);
	void *(*copy)(void *destination, const void *source, size_t length);
} helpers = { kfree, memcpy };

/* Places of attack.  Not inlined, so that a report names them. */

static noinline void store_word(u64 *place, u64 value)
{
	WRITE_ONCE(*place, value);
}

static noinline void store_indexed(struct victim_object *object, long index, u64 value)
{
	object->words[index] = value;
}

static noinline void copy_bytes(void *destination, const void *source, size_t length)
{
	memcpy(destination, source, length);
}

static noinline void copy_string(void *destination, const void *source, size_t length)
{
	asm volatile("rep movsb" : "+D"(destination), "+S"(source), "+c"(length) : : "memory");
}

static noinline void set_a_bit(unsigned long *bitmap, long bit)
{
	set_bit(bit, bitmap);
}

static noinline void store_shared(struct bystander_shared *shared, bool forbidden)
{
	if (forbidden)
		WRITE_ONCE(shared->forbidden, 1);
	else
		WRITE_ONCE(shared->granted, 1);
}

/* Writes the return address that is there already, so that the machine survives without a policy. */
static noinline void store_return_address(bool attack)
{
	unsigned long local = 0;
	unsigned long *frame = __builtin_frame_address(0);
	unsigned long *place = attack ? frame + 1 : &local;

	OPTIMIZER_HIDE_VAR(place);
	WRITE_ONCE(*place, READ_ONCE(*place));
}

static noinline void call_action(struct victim_object *object)
{
	object->action();
}

static noinline void call_free(void *object)
{
	READ_ONCE(helpers.free)(object);
}

static noinline void call_copy(void *destination, const void *source, size_t length)
{
	READ_ONCE(helpers.copy)(destination, source, length);
}

static noinline void call_update(struct bystander_shared *shared)
{
	bystander_update(shared);
}

static noinline void become_somebody(void)
{
	struct cred *credentials = prepare_creds();

	if (credentials)
		commit_creds(credentials);
}

static noinline void free_packet(struct sk_buff *packet)
{
	kfree_skb(packet);
}

static noinline void unlink_node(struct list_head *node)
{
	/* What list_del does, without the debugging checks of some kernels. */
	WRITE_ONCE(node->next->prev, node->prev);
	WRITE_ONCE(node->prev->next, node->next);
}

static noinline void free_object(void *object)
{
	kfree(object);
}

static noinline void start_timer(struct timer_list *timer)
{
	mod_timer(timer, jiffies + 1);
}

static noinline void stop_timer(struct timer_list *timer)
{
	del_timer(timer);
}

static noinline size_t copy_out(const void *source, size_t length, struct iov_iter *to)
{
	return _copy_to_iter(source, length, to);
}

static noinline void own_action(void)
{
	WRITE_ONCE(actions, actions + 1);
}

static void own_timer(struct timer_list *timer)
{
	WRITE_ONCE(actions, actions + 1);
}

static int proper_use(struct victim_object *object)
{
	struct victim_object *second = kzalloc(sizeof(*second), GFP_KERNEL);
	struct sk_buff *packet = alloc_skb(256, GFP_KERNEL);
	u64 bytes[4] = { 1, 2, 3, 4 };

	if (!second || !packet) {
		kfree(second);
		kfree_skb(packet);
		return -ENOMEM;
	}
	store_word(&object->words[0], 1);
	store_word(&bytes[1], 7);
	store_indexed(object, 3, 1);
	copy_bytes(object->words, bytes, sizeof(bytes));
	copy_bytes(bytes, object->words, sizeof(bytes));
	copy_string(second->words, bytes, sizeof(bytes));
	set_a_bit((unsigned long *)object->words, 70);
	store_shared(bystander_get_shared(), false);
	store_return_address(false);
	object->action = own_action;
	call_action(object);
	call_update(bystander_get_shared());
	skb_put_data(packet, bytes, sizeof(bytes));
	free_packet(packet);
	INIT_LIST_HEAD(&object->link);
	list_add(&second->link, &object->link);
	unlink_node(&second->link);
	call_copy(second->words, object->words, sizeof(second->words));
	call_copy(bytes, second->words, sizeof(bytes));
	call_free(second);
	free_object(kzalloc(64, GFP_KERNEL));
	start_timer(&victim_timer);
	start_timer(&victim_timer);
	stop_timer(&victim_timer);
	start_timer(&victim_timer);
	return 0;
}

static int forged_packet(void)
{
	/* Large enough that the buffer comes from kmalloc in every kernel, as the forged one seems to. */
	struct sk_buff *packet = alloc_skb(2048, GFP_KERNEL);
	unsigned char *head;
	void *sacrifice;

	if (!packet)
		return -ENOMEM;
	head = packet->head;
	sacrifice = bystander_sacrifice();
	if (!sacrifice || skb_end_offset(packet) + sizeof(struct skb_shared_info) > BYSTANDER_SACRIFICE_SIZE) {
		kfree_skb(packet);
		return -ENOMEM;
	}
	memcpy(sacrifice, head, skb_end_offset(packet) + sizeof(struct skb_shared_info));
	store_word((u64 *)&packet->head, (u64)sacrifice);
	free_packet(packet);
	return 0;
}

static int forged_list(struct victim_object *object)
{
	object->link.next = bystander_list_head();
	object->link.prev = bystander_foreign();
	unlink_node(&object->link);
	return 0;
}

static int forged_timer(void)
{
	timer_setup(&spare_timer, own_timer, 0);
	spare_timer.entry.next = NULL;
	spare_timer.entry.pprev = bystander_foreign();
	stop_timer(&spare_timer);
	spare_timer.entry.pprev = NULL;
	return 0;
}

static int forged_iterator(struct victim_object *object)
{
	struct kvec segment = { bystander_foreign(), 16 };
	struct iov_iter to = { .iter_type = ITER_KVEC, .kvec = &segment, .nr_segs = 1, .count = 16 };

	copy_out(object->words, 16, &to);
	return 0;
}

static int use_after_free(void)
{
	struct victim_object *object = kzalloc(sizeof(*object), GFP_KERNEL);

	if (!object)
		return -ENOMEM;
	free_object(object);
	/* Bytes in the middle: SLUB keeps its free pointer there in some kernels, so write what is there. */
	store_word(&object->words[1], READ_ONCE(object->words[1]));
	return 0;
}

static int stale_neighbour(void)
{
	struct victim_object *object = kzalloc(sizeof(*object), GFP_KERNEL);

	if (!object)
		return -ENOMEM;
	free_object(object);
	bystander_take(object, sizeof(*object));
	/* not what SLUB may keep in a free object, should nobody have taken it */
	store_word(&object->words[0], 1);
	return 0;
}

static noinline void fill_bytes(u64 *words, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		WRITE_ONCE(words[i], i);
}

static int use_allocators(void)
{
	struct victim_node *node = kmem_cache_alloc(nodes, GFP_KERNEL);
	struct victim_node *other = kmem_cache_zalloc(nodes, GFP_KERNEL);
	u64 *array = kmalloc(64, GFP_KERNEL), *larger, *copy, *large, *either, *page;
	int result = -ENOMEM;

	larger = array ? krealloc(array, 600, GFP_KERNEL) : NULL;
	copy = larger ? kmemdup(larger, 64, GFP_KERNEL) : NULL;
	large = kmalloc(20000, GFP_KERNEL);
	either = kvmalloc(3000, GFP_KERNEL);
	page = (u64 *)__get_free_page(GFP_KERNEL);
	if (node && other && copy && large && either && page) {
		fill_bytes(node->words, ARRAY_SIZE(node->words));
		fill_bytes(other->words, ARRAY_SIZE(other->words));
		fill_bytes(larger, 600 / 8);
		fill_bytes(copy, 64 / 8);
		fill_bytes(large, 20000 / 8);
		fill_bytes(either, 3000 / 8);
		fill_bytes(page, PAGE_SIZE / 8);
		result = 0;
	}
	free_page((unsigned long)page);
	kvfree(either);
	kfree(large);
	kfree(copy);
	kfree(larger ?: array);
	if (node)
		kmem_cache_free(nodes, node);
	if (other)
		kfree_rcu(other, rcu);
	return result;
}

static int fill_heap(void)
{
	void **first = NULL, **object;
	int count = 0;

	while (count < 4096) {
		object = kmalloc(1000, GFP_KERNEL);
		if (!object)
			break;
		store_word((u64 *)object, (u64)first);
		first = object;
		count++;
	}
	while (first) {
		object = *first;
		free_object(first);
		first = object;
	}
	return count;
}

static int keep(unsigned int command)
{
	if (command == VICTIM_KEEP && !kept) {
		kept = kmem_cache_zalloc(nodes, GFP_KERNEL);
		return kept ? 0 : -ENOMEM;
	}
	if (!kept)
		return -ENOENT;
	if (command == VICTIM_USE_KEPT) {
		store_word(&kept->words[0], 1);
		return kept->words[0];
	}
	kfree_rcu(kept, rcu);
	kept = NULL;
	return 0;
}

static int renew_old(void)
{
	kfree(old_object);
	old_object = kzalloc(sizeof(*old_object), GFP_KERNEL);
	return old_object ? 0 : -ENOMEM;
}

static int attack(unsigned int command, struct victim_object *object)
{
	u64 *foreign = bystander_foreign();

	switch (command) {
	case VICTIM_HEAP_OVERFLOW:
		store_indexed(object, foreign - object->words, 1);
		return 0;
	case VICTIM_USE_AFTER_FREE:
		return use_after_free();
	case VICTIM_ARBITRARY_STORE:
		store_word(foreign, 1);
		return 0;
	case VICTIM_MEMCPY:
		copy_bytes(foreign, object->words, 16);
		return 0;
	case VICTIM_REP_MOVS:
		copy_string(foreign, object->words, 16);
		return 0;
	case VICTIM_BIT_OPERATION:
		set_a_bit((unsigned long *)foreign, 7);
		return 0;
	case VICTIM_SHARED_FIELD:
		store_shared(bystander_get_shared(), true);
		return 0;
	case VICTIM_RETURN_ADDRESS:
		store_return_address(true);
		return 0;
	case VICTIM_FUNCTION_POINTER:
		object->action = bystander_secret;
		call_action(object);
		return 0;
	case VICTIM_DANGEROUS_CALL:
		become_somebody();
		return 0;
	case VICTIM_FOREIGN_ARGUMENT:
		call_update(bystander_foreign());
		return 0;
	case VICTIM_WRONG_TYPE:
		call_update((struct bystander_shared *)bystander_get_other());
		return 0;
	case VICTIM_FORGED_SKB:
		return forged_packet();
	case VICTIM_FORGED_LIST:
		return forged_list(object);
	case VICTIM_FORGED_ITERATOR:
		return forged_iterator(object);
	case VICTIM_FORGED_TIMER:
		return forged_timer();
	case VICTIM_FOREIGN_FREE:
		free_object(bystander_sacrifice());
		return 0;
	case VICTIM_TIMER_CALLBACK:
		victim_timer.function = (void (*)(struct timer_list *))bystander_timer;
		start_timer(&victim_timer);
		msleep(40);
		return 0;
	case VICTIM_PENDING_TIMER:
		mod_timer(&victim_timer, jiffies + HZ / 10);
		WRITE_ONCE(victim_timer.function, (void (*)(struct timer_list *))bystander_timer);
		msleep(250);
		return 0;
	case VICTIM_POINTER_TO_FREE:
		call_free(bystander_sacrifice());
		return 0;
	case VICTIM_POINTER_TO_COPY:
		call_copy(foreign, object->words, 16);
		return 0;
	case VICTIM_FORGED_OBJECT:
		call_update((struct bystander_shared *)object);
		return 0;
	case VICTIM_OLD_OBJECT:
		if (!old_object)
			return -ENOENT;
		store_word(&old_object->words[0], 1);
		return 0;
	case VICTIM_RENEW_OLD:
		return renew_old();
	case VICTIM_OLD_FOREIGN:
		store_word(old_foreign, 1);
		return 0;
	case VICTIM_STALE_NEIGHBOUR:
		return stale_neighbour();
	case VICTIM_ALLOCATORS:
		return use_allocators();
	case VICTIM_FILL:
		return fill_heap();
	case VICTIM_KEEP:
	case VICTIM_USE_KEPT:
	case VICTIM_RELEASE:
		return keep(command);
	default:
		return -ENOTTY;
	}
}

static long victim_ioctl(struct file *file, unsigned int command, unsigned long unused)
{
	struct victim_object *object = kzalloc(sizeof(*object), GFP_KERNEL);
	long result;

	if (!object)
		return -ENOMEM;
	result = command == VICTIM_PROPER ? proper_use(object) : attack(command, object);
	del_timer_sync(&victim_timer);
	victim_timer.function = own_timer;
	kfree(object);
	return result;
}

/* Proper use of an iterator: the user's, who reads from the device. */
static ssize_t victim_read(struct kiocb *request, struct iov_iter *to)
{
	u64 words[4] = { 1, 2, 3, 4 };

	return copy_out(words, min(sizeof(words), iov_iter_count(to)), to);
}

static const struct file_operations victim_operations = {
	.owner = THIS_MODULE,
	.read_iter = victim_read,
	.unlocked_ioctl = victim_ioctl,
};

static struct miscdevice victim_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "victim",
	.fops = &victim_operations,
	.mode = 0600,
};

static int __init victim_init(void)
{
	int result;

	nodes = KMEM_CACHE(victim_node, 0);
	if (!nodes)
		return -ENOMEM;
	old_object = kzalloc(sizeof(*old_object), GFP_KERNEL);
	if (!old_object) {
		kmem_cache_destroy(nodes);
		return -ENOMEM;
	}
	old_foreign = bystander_get_other();
	timer_setup(&victim_timer, own_timer, 0);
	result = misc_register(&victim_device);
	if (result) {
		kfree(old_object);
		kmem_cache_destroy(nodes);
	}
	return result;
}

static void __exit victim_exit(void)
{
	misc_deregister(&victim_device);
	del_timer_sync(&victim_timer);
	kfree(old_object);
	if (kept)
		kmem_cache_free(nodes, kept);
	rcu_barrier();
	kmem_cache_destroy(nodes);
}

module_init(victim_init);
module_exit(victim_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Deliberately vulnerable module, for tests of O2C only");
