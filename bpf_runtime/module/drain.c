// SPDX-License-Identifier: GPL-2.0-only
/*
 * Draining: a compartment whose private heap takes in nothing new, and which stays in force until that heap is empty.
 *
 * With O2C_DRAIN_AUTO it is detached then, also when the loader is gone, if the compartment is one that is kept.
 */
#include <linux/workqueue.h>

#include "internal.h"

#define PERIOD (HZ / 2)

static struct workqueue_struct *queue;

static u64 remaining(struct o2c_compartment *compartment)
{
	return compartment->heap ? o2c_heap_remaining(compartment->heap) : 0;
}

/* Holds the reference that o2c_drain() took. */
static void look_again(struct work_struct *work)
{
	struct o2c_compartment *compartment = container_of(to_delayed_work(work), struct o2c_compartment, drain_work);
	bool again;

	mutex_lock(&compartment->lock);
	again = !compartment->dead && remaining(compartment);
	/* a request may have queued the next look, with a reference of its own, while this one waited for the lock */
	if (again)
		again = queue_delayed_work(queue, &compartment->drain_work, PERIOD);
	else
		o2c_compartment_detach(compartment);
	mutex_unlock(&compartment->lock);
	if (!again)
		o2c_compartment_put(compartment);
}

void o2c_drain_prepare(struct o2c_compartment *compartment)
{
	INIT_DELAYED_WORK(&compartment->drain_work, look_again);
}

/* The compartment is about to be taken down; its lock is held, so a running look waits and then finds it dead. */
void o2c_drain_cancel(struct o2c_compartment *compartment)
{
	if (cancel_delayed_work(&compartment->drain_work))
		o2c_compartment_put(compartment);
}

/* The caller holds the compartment's lock. */
int o2c_drain(struct o2c_compartment *compartment, struct o2c_drain *request)
{
	if (request->flags & ~(O2C_DRAIN_START | O2C_DRAIN_AUTO) || request->flags == O2C_DRAIN_AUTO ||
	    request->state || request->bytes || request->reserved[0] || request->reserved[1])
		return -EINVAL;
	if (request->flags & O2C_DRAIN_START) {
		if (!compartment->live)
			return -ENODATA;
		if (compartment->heap)
			o2c_heap_close(compartment->heap);
		compartment->draining = true;
	}
	if (request->flags & O2C_DRAIN_AUTO) {
		kref_get(&compartment->ref);
		if (!queue_delayed_work(queue, &compartment->drain_work, 0))
			o2c_compartment_put(compartment);	/* on its way already */
	}
	request->state = O2C_DRAIN_NOT;
	if (compartment->draining) {
		request->bytes = remaining(compartment);
		request->state = request->bytes ? O2C_DRAIN_GOING_ON : O2C_DRAIN_DONE;
	}
	return 0;
}

int o2c_drain_init(void)
{
	queue = alloc_workqueue("o2c", WQ_UNBOUND, 0);
	return queue ? 0 : -ENOMEM;
}

void o2c_drain_exit(void)
{
	destroy_workqueue(queue);
}
