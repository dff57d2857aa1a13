// SPDX-License-Identifier: GPL-2.0-only
/*
 * Deny at poison sites: the base register gets a value that is no address, the copied store faults, and the die
 * notifier puts the register back and steps over the store.
 *
 * The detour of an optimized probe ignores the instruction pointer that a handler leaves, but restores all general
 * registers and the flags. Interrupts stay off from the denial to the notifier, so the record of it can be per CPU;
 * only an NMI can come in between, for which the record is a small stack.
 *
 * The store runs as one of two copies: in the optimized probe's buffer (the fault is exactly there), or in the
 * single-step slot, for which kprobe_fault_handler() in arch/x86/kernel/kprobes/core.c has set the instruction
 * pointer back to the probed address before the notifier runs. A kernel without CONFIG_PREEMPTION is through with
 * its probe before the slot runs ("boosting"): there the fault is in the slot.
 */
#include <linux/kdebug.h>
#include <linux/percpu.h>
#include <linux/uaccess.h>
#include <asm/text-patching.h>
#include <asm/trapnr.h>

#include "internal.h"

/* Not canonical with 48-bit and with 57-bit addresses, nor is it after adding any 32-bit displacement. */
#define POISON 0x4000000000000000UL
#define MAX_DEPTH 4

struct denial {
	const struct o2c_probe *probe;
	const struct pt_regs *regs;
	unsigned long base;
	unsigned long flags;
};

struct denials {
	unsigned int depth;
	struct denial entries[MAX_DEPTH];
};

static DEFINE_PER_CPU(struct denials, denials);

/* rsp and rbp would raise #SS, which does not come with the kprobe's state repaired. */
bool o2c_can_poison(const struct o2c_insn *insn)
{
	return insn->form == O2C_FORM_STORE && insn->base < 16 && insn->base != 4 && insn->base != 5 &&
	       insn->index == O2C_REG_NONE && insn->segment == O2C_SEG_NONE;
}

/*
 * Where the copy of the instruction lies in the buffer of the optimized probe, 0 when there is no such buffer. The
 * buffer is a template, the copied instructions, and a jump to behind them; the template's length is the kernel's
 * secret, so the jump is searched for.
 */
unsigned long o2c_find_detour(const struct kprobe *kp, unsigned int length)
{
	const struct kprobe *parent;
	const struct optimized_kprobe *optimized;
	u8 original[O2C_INSN_MAX], copy[O2C_INSN_MAX];
	unsigned int at;

	/*
	 * The parent is the head of a list, into which each new probe comes first: that list must hold us alone, or what
	 * follows us may be another probe, which looks the same.
	 */
	if (!list_is_singular(&kp->list))
		return 0;
	parent = list_first_entry(&kp->list, struct kprobe, list);
	if (parent->addr != kp->addr || parent->pre_handler == o2c_pre_handler)
		return 0;
	optimized = container_of(parent, struct optimized_kprobe, kp);
	if (!optimized->optinsn.insn || optimized->optinsn.size < length ||
	    optimized->optinsn.size > 2 * O2C_INSN_MAX)
		return 0;
	if (o2c_text_read((unsigned long)kp->addr, original, length))
		return 0;
	for (at = optimized->optinsn.size; at < 512; at++) {
		unsigned long jump = (unsigned long)optimized->optinsn.insn + at;
		unsigned long start = jump - optimized->optinsn.size;
		struct { u8 opcode; s32 relative; } __packed instruction;

		if (copy_from_kernel_nofault(&instruction, (void *)jump, sizeof(instruction)))
			return 0;
		if (instruction.opcode != 0xe9 ||
		    jump + 5 + instruction.relative != (unsigned long)kp->addr + optimized->optinsn.size)
			continue;
		if (!copy_from_kernel_nofault(copy, (void *)start, length) && !memcmp(copy, original, length))
			return start;
	}
	return 0;
}

/* True when another handler of the same hit has denied the store already. */
bool o2c_poison_pending(const struct pt_regs *regs)
{
	const struct denials *here = this_cpu_ptr(&denials);
	const struct denial *entry;

	if (!here->depth)
		return false;
	entry = &here->entries[here->depth - 1];
	return entry->regs == regs && regs->ip == (unsigned long)entry->probe->kp.addr + INT3_INSN_SIZE;
}
NOKPROBE_SYMBOL(o2c_poison_pending);

/* Poisons the base register. Returns false when too many denials are open on this CPU. Interrupts are off. */
bool o2c_poison(const struct o2c_probe *probe, struct pt_regs *regs)
{
	struct denials *here = this_cpu_ptr(&denials);
	unsigned long *base = o2c_register(regs, probe->insn.base);
	struct denial *entry;

	if (here->depth >= MAX_DEPTH)
		return false;
	entry = &here->entries[here->depth];
	entry->probe = probe;
	entry->base = *base;
	entry->flags = regs->flags;
	entry->regs = regs;
	barrier();
	here->depth++;
	*base = POISON;
	regs->flags &= ~X86_EFLAGS_IF;
	return true;
}
NOKPROBE_SYMBOL(o2c_poison);

static int repair(struct notifier_block *self, unsigned long event, void *data)
{
	struct die_args *args = data;
	struct pt_regs *regs = args->regs;
	struct denials *here;
	const struct denial *entry;
	unsigned long *base;

	if (event != DIE_GPF || args->trapnr != X86_TRAP_GP || user_mode(regs) || preemptible())
		return NOTIFY_DONE;
	here = this_cpu_ptr(&denials);
	if (!here->depth)
		return NOTIFY_DONE;
	entry = &here->entries[here->depth - 1];
	base = o2c_register(regs, entry->probe->insn.base);
	if (*base != POISON)
		return NOTIFY_DONE;
	if (!IS_ENABLED(CONFIG_PREEMPTION) && regs->ip == (unsigned long)entry->probe->kp.ainsn.insn)
		regs->ip = (unsigned long)entry->probe->kp.addr;
	if (regs->ip != (unsigned long)entry->probe->kp.addr && regs->ip != entry->probe->detour)
		return NOTIFY_DONE;
	*base = entry->base;
	regs->ip += entry->probe->insn.length;
	regs->flags = (regs->flags & ~X86_EFLAGS_IF) | (entry->flags & X86_EFLAGS_IF);
	barrier();
	here->depth--;
	return NOTIFY_STOP;
}
NOKPROBE_SYMBOL(repair);

static struct notifier_block repair_block = {
	.notifier_call = repair,
	.priority = INT_MAX - 1,	/* right after kprobes' own */
};

int o2c_poison_init(void)
{
	return register_die_notifier(&repair_block);
}

void o2c_poison_exit(void)
{
	unregister_die_notifier(&repair_block);
}
