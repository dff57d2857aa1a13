/* SPDX-License-Identifier: GPL-2.0-only */
/* The rest of the kernel, as far as the victim can reach it. */
#ifndef O2C_TEST_BYSTANDER_H
#define O2C_TEST_BYSTANDER_H

#include <linux/list.h>
#include <linux/types.h>

struct bystander_shared {
	u64 granted;
	u64 forbidden;
	void (*callback)(void);
	u8 rest[40];
};

struct bystander_other {
	u64 words[8];
};

/* Memory that is not the victim's; the bytes start as 0x5a. */
void *bystander_foreign(void);
#define BYSTANDER_SACRIFICE_SIZE 4096

/* Another foreign object, for attacks that free what is not theirs: the bystander notices and lives on. */
void *bystander_sacrifice(void);
/* Takes memory for objects of that size until it gets the one at `freed`, or has tried often; it then keeps what is at
 * the foreign memory there: what changes in it counts as changed. */
void bystander_take(void *freed, size_t size);
struct bystander_shared *bystander_get_shared(void);
struct bystander_other *bystander_get_other(void);
struct list_head *bystander_list_head(void);

/* A gate: counts in an object that the caller must hold. */
void bystander_update(struct bystander_shared *shared);
/* A function that nobody should be able to call through the victim. */
void bystander_secret(void);
void bystander_timer(void *unused);

#endif
