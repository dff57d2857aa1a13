// SPDX-License-Identifier: GPL-2.0-only
/*
 * SIGKILL from a probe handler: through irq_work, since the handler may hold off anything.
 *
 * Only a denial in the context of an ordinary task kills: in an interrupt the current task is a bystander, kernel
 * threads do not take signals, and without pid 1 there is no system.
 */
#include <linux/irq_work.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "internal.h"

#define QUEUE_LENGTH 4

struct pending_kill {
	struct irq_work work;
	struct task_struct *task;
};

struct kill_queue {
	struct pending_kill entries[QUEUE_LENGTH];
};

static DEFINE_PER_CPU(struct kill_queue, kill_queue);

static void deliver(struct irq_work *work)
{
	struct pending_kill *kill = container_of(work, struct pending_kill, work);
	struct task_struct *task = kill->task;

	send_sig(SIGKILL, task, 1);
	put_task_struct(task);
	/* the entry can be taken again: pairs with the cmpxchg() in o2c_kill() */
	smp_store_release(&kill->task, NULL);
}

/* The context that the probe interrupted; a breakpoint has put one NMI level on top of it. */
static bool in_ordinary_task(bool from_int3)
{
	unsigned long count = preempt_count();

	if (from_int3)
		count -= NMI_OFFSET + HARDIRQ_OFFSET;
	if (count & (NMI_MASK | HARDIRQ_MASK | SOFTIRQ_OFFSET))
		return false;
	return !(current->flags & PF_KTHREAD) && !is_global_init(current);
}
NOKPROBE_SYMBOL(in_ordinary_task);

/* Runs with interrupts off. */
void o2c_kill(struct o2c_compartment *compartment, bool from_int3)
{
	struct kill_queue *queue = this_cpu_ptr(&kill_queue);
	unsigned int i;

	if (!in_ordinary_task(from_int3)) {
		atomic64_inc(&compartment->kills_lost);
		return;
	}
	for (i = 0; i < QUEUE_LENGTH; i++) {
		struct pending_kill *kill = &queue->entries[i];

		if (READ_ONCE(kill->task) == current)
			return;
		if (cmpxchg(&kill->task, NULL, current))
			continue;
		get_task_struct(current);
		irq_work_queue(&kill->work);
		atomic64_inc(&compartment->killed);
		return;
	}
	atomic64_inc(&compartment->kills_lost);
}
NOKPROBE_SYMBOL(o2c_kill);

void o2c_kill_init(void)
{
	unsigned int cpu, i;

	for_each_possible_cpu(cpu)
		for (i = 0; i < QUEUE_LENGTH; i++)
			init_irq_work(&per_cpu(kill_queue, cpu).entries[i].work, deliver);
}

void o2c_kill_exit(void)
{
	unsigned int cpu, i;

	for_each_possible_cpu(cpu)
		for (i = 0; i < QUEUE_LENGTH; i++)
			irq_work_sync(&per_cpu(kill_queue, cpu).entries[i].work);
}
