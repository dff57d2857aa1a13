// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands for the rest of the kernel in tests: owns the objects that attacks aim at, and says in debugfs
 * (/sys/kernel/debug/bystander/...) whether they were changed.
 */
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/timer.h>

#include "bystander.h"

#define FOREIGN_SIZE 192
#define FOREIGN_BYTE 0x5a

static u8 *foreign;
static struct bystander_shared *shared;
static struct bystander_other *other;
static struct list_head *head;
static struct dentry *directory;
static struct kmem_cache *sacrifices;
static void *sacrifice;
static bool sacrifice_freed;
static u8 *reused;		/* memory that the victim had freed */
static u32 secret_calls;
static u32 updates;

void *bystander_foreign(void)
{
	return foreign;
}
EXPORT_SYMBOL_GPL(bystander_foreign);

void *bystander_sacrifice(void)
{
	if (!sacrifice)
		sacrifice = kmem_cache_alloc(sacrifices, GFP_ATOMIC);
	return sacrifice;
}
EXPORT_SYMBOL_GPL(bystander_sacrifice);

#define TAKEN 64

void bystander_take(void *freed, size_t size)
{
	void *taken[TAKEN];
	int i, count = 0;

	while (count < TAKEN && !reused) {
		taken[count] = kmalloc(size, GFP_KERNEL);
		if (taken[count] == freed)
			reused = taken[count];
		count++;
	}
	for (i = 0; i < count; i++)
		if (taken[i] != reused)
			kfree(taken[i]);
	if (reused)
		memset(reused, FOREIGN_BYTE, sizeof(u64));
}
EXPORT_SYMBOL_GPL(bystander_take);

struct bystander_shared *bystander_get_shared(void)
{
	return shared;
}
EXPORT_SYMBOL_GPL(bystander_get_shared);

struct bystander_other *bystander_get_other(void)
{
	return other;
}
EXPORT_SYMBOL_GPL(bystander_get_other);

struct list_head *bystander_list_head(void)
{
	return head;
}
EXPORT_SYMBOL_GPL(bystander_list_head);

void bystander_update(struct bystander_shared *object)
{
	WRITE_ONCE(updates, updates + 1);
}
EXPORT_SYMBOL_GPL(bystander_update);

void bystander_secret(void)
{
	WRITE_ONCE(secret_calls, secret_calls + 1);
}
EXPORT_SYMBOL_GPL(bystander_secret);

void bystander_timer(void *unused)
{
	bystander_secret();
}
EXPORT_SYMBOL_GPL(bystander_timer);

/*
 * Whether somebody freed the sacrifice: an object that was freed last is handed out first by the same
 * processor, and nobody else uses the cache.  Tests stay on one processor.
 */
static bool was_freed(void)
{
	void *next;

	if (!sacrifice || sacrifice_freed)
		return sacrifice_freed;
	next = kmem_cache_alloc(sacrifices, GFP_KERNEL);
	if (next && next != sacrifice)
		kmem_cache_free(sacrifices, next);
	sacrifice_freed = next == sacrifice;
	return sacrifice_freed;
}

/* Writing anything puts every object back to its first state. */
static ssize_t reset_write(struct file *file, const char __user *buffer, size_t count, loff_t *position)
{
	memset(foreign, FOREIGN_BYTE, FOREIGN_SIZE);
	kfree(reused);
	reused = NULL;
	memset(shared, 0, sizeof(*shared));
	memset(other, 0, sizeof(*other));
	was_freed();
	if (sacrifice)
		kmem_cache_free(sacrifices, sacrifice);
	sacrifice = NULL;
	sacrifice_freed = false;
	INIT_LIST_HEAD(head);
	WRITE_ONCE(secret_calls, 0);
	WRITE_ONCE(updates, 0);
	return count;
}

/* One line: how many foreign bytes changed, the shared object's words, and so on. */
static ssize_t state_read(struct file *file, char __user *buffer, size_t count, loff_t *position)
{
	char text[160];
	int changed = 0, i, length;

	for (i = 0; i < FOREIGN_SIZE; i++)
		changed += foreign[i] != FOREIGN_BYTE;
	for (i = 0; reused && i < sizeof(u64); i++)
		changed += reused[i] != FOREIGN_BYTE;
	length = scnprintf(text, sizeof(text),
			   "foreign=%d granted=%llu forbidden=%llu other=%llu list=%d secret=%u updates=%u freed=%d\n",
			   changed, shared->granted, shared->forbidden, other->words[0],
			   head->next != head || head->prev != head, READ_ONCE(secret_calls),
			   READ_ONCE(updates), was_freed());
	return simple_read_from_buffer(buffer, count, position, text, length);
}

static const struct file_operations reset_operations = { .owner = THIS_MODULE, .write = reset_write };
static const struct file_operations state_operations = { .owner = THIS_MODULE, .read = state_read };

static void release(void)
{
	kfree(foreign);
	kfree(reused);
	kfree(shared);
	kfree(other);
	kfree(head);
	was_freed();
	if (sacrifice)
		kmem_cache_free(sacrifices, sacrifice);
	kmem_cache_destroy(sacrifices);
}

static int __init bystander_init(void)
{
	foreign = kmalloc(FOREIGN_SIZE, GFP_KERNEL);
	shared = kzalloc(sizeof(*shared), GFP_KERNEL);
	other = kzalloc(sizeof(*other), GFP_KERNEL);
	head = kmalloc(sizeof(*head), GFP_KERNEL);
	/*
	 * With a region for user copies a cache is never merged with another. KASAN keeps freed objects back for a while,
	 * but not those that RCU readers may still look at.
	 */
	sacrifices = kmem_cache_create_usercopy("bystander_sacrifice", BYSTANDER_SACRIFICE_SIZE, 0,
						IS_ENABLED(CONFIG_KASAN) ? SLAB_TYPESAFE_BY_RCU : 0, 0,
						BYSTANDER_SACRIFICE_SIZE, NULL);
	if (!foreign || !shared || !other || !head || !sacrifices) {
		release();
		return -ENOMEM;
	}
	memset(foreign, FOREIGN_BYTE, FOREIGN_SIZE);
	INIT_LIST_HEAD(head);
	directory = debugfs_create_dir("bystander", NULL);
	debugfs_create_file("reset", 0200, directory, NULL, &reset_operations);
	debugfs_create_file("state", 0400, directory, NULL, &state_operations);
	return 0;
}

static void __exit bystander_exit(void)
{
	debugfs_remove_recursive(directory);
	release();
}

module_init(bystander_init);
module_exit(bystander_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Owner of the objects that the victim module attacks, for tests of O2C");
