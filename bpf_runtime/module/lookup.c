// SPDX-License-Identifier: GPL-2.0-only
/*
 * Remembers, while sites are attached, which function the kernel has just been asked for.
 *
 * To register one probe kprobes decodes its function from the beginning (can_probe() in arch/x86/kernel/kprobes/core.c),
 * and once more whole for the jump (can_optimize() in opt.c). At each instruction it asks ftrace_location(), which asks
 * kallsyms_lookup_size_offset(), which for a module's text walks the module's whole symbol table: thousands of entries,
 * hundreds of times a probe (6.1 and 6.12). All of these questions have one answer, the function that holds the site.
 *
 * So a probe at that look-up gives this answer, to the task that attaches and to no other, and is there only as long as
 * one batch takes. The answer comes from the kernel itself, by sprint_symbol(). Where the probe cannot be placed, or is
 * passed by (a livepatch has the function), the kernel looks for itself, as without this file.
 *
 * It is a breakpoint behind ftrace's place, not a probe through ftrace: that would run with interrupts on, and kprobes would
 * skip the checks of whatever an interrupt runs meanwhile; and one with a post_handler that joins another's there leaves it
 * broken (kprobe_ipmodify_ops, kernel/kprobes.c).
 */
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

static DEFINE_MUTEX(one_batch);
static struct kprobe lookup;
static unsigned long behind_entry;	/* of the look-up; 0: not known, or the probe there is stuck */

/* Written by `task` alone. Interrupts on top of it may look, too, so nothing is known unless `end` is set, which is set last. */
static struct {
	struct task_struct *task;
	unsigned long begin;
	unsigned long end;
} known;

/* Where the look-up's caller finds itself: its callee has returned true. */
static noinline notrace unsigned long found(void)
{
	return 1;
}
NOKPROBE_SYMBOL(found);

/* unsigned long kallsyms_lookup_size_offset(unsigned long addr, unsigned long *symbolsize, unsigned long *offset) */
static int answer(struct kprobe *kp, struct pt_regs *regs)
{
	unsigned long *size = (unsigned long *)regs->si, *offset = (unsigned long *)regs->dx;
	unsigned long address = regs->di, begin, end;

	if (READ_ONCE(known.task) != current)
		return 0;
	end = READ_ONCE(known.end);
	begin = READ_ONCE(known.begin);
	if (address < begin || address >= end)
		return 0;
	if (size)
		*size = end - begin;
	if (offset)
		*offset = address - begin;
	instruction_pointer_set(regs, (unsigned long)found);
	return 1;
}
NOKPROBE_SYMBOL(answer);

/* Its presence keeps the probe a breakpoint: a jump could not change where the function goes on. */
static void answered(struct kprobe *kp, struct pt_regs *regs, unsigned long flags)
{
}
NOKPROBE_SYMBOL(answered);

/* Called before a batch. False: another task's batch has it, or the kernel did not let us; then all is done the slow way. */
bool o2c_lookup_begin(void)
{
	if (!mutex_trylock(&one_batch))
		return false;
	memset(&lookup, 0, sizeof(lookup));
	lookup.addr = (kprobe_opcode_t *)behind_entry;
	lookup.pre_handler = answer;
	lookup.post_handler = answered;
	if (!behind_entry || register_kprobe(&lookup)) {
		mutex_unlock(&one_batch);
		return false;
	}
	WRITE_ONCE(known.task, current);
	return true;
}

/*
 * What will be asked for is the function that holds the address. The caller holds its module, so that neither its text nor its
 * symbols change.
 */
void o2c_lookup_prepare(unsigned long address)
{
	unsigned long offset, size;
	char *text, *plus;

	if (address >= known.begin && address < known.end)
		return;
	WRITE_ONCE(known.end, 0);
	text = kmalloc(KSYM_SYMBOL_LEN, GFP_KERNEL);
	if (!text)
		return;
	sprint_symbol(text, address);	/* name+0xoffset/0xsize [module] */
	plus = strrchr(text, '+');
	if (plus && sscanf(plus, "+%lx/%lx", &offset, &size) == 2 && offset < size) {
		WRITE_ONCE(known.begin, address - offset);
		WRITE_ONCE(known.end, address - offset + size);
	}
	kfree(text);
}

void o2c_lookup_end(void)
{
	WRITE_ONCE(known.end, 0);
	WRITE_ONCE(known.task, NULL);
	unregister_kprobe(&lookup);
	if (!o2c_unregistered(&lookup))
		behind_entry = 0;
	mutex_unlock(&one_batch);
}

/* Finds the look-up, by a probe that is never armed: its address is not exported. */
void o2c_lookup_init(void)
{
	struct kprobe finder = {
		.symbol_name = "kallsyms_lookup_size_offset",
		.flags = KPROBE_FLAG_DISABLED,
	};
	unsigned long address;
	unsigned int length;

	if (register_kprobe(&finder))
		return;
	address = (unsigned long)finder.addr;
	unregister_kprobe(&finder);
	length = o2c_ftrace_entry(address);
	if (length)
		behind_entry = address + length;
}
