// SPDX-License-Identifier: GPL-2.0-only
/*
 * What runs when a site is hit: the BPF program decides, this carries the verdict out. No allocation, no sleep.
 */
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/irqflags.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/version.h>

#include "internal.h"

/*
 * True in the detour of an optimized probe: there the registers are saved right below the interrupted stack
 * pointer, while a breakpoint puts the processor's frame in between.
 */
bool o2c_in_detour(const struct pt_regs *regs)
{
	return (unsigned long)(regs + 1) == regs->sp;
}
NOKPROBE_SYMBOL(o2c_in_detour);

/*
 * As trace_call_bpf() in kernel/trace/bpf_trace.c does it, with the site's cookie for bpf_get_attach_cookie().
 * Interrupts are off, so there is neither preemption nor migration.
 */
static u32 run_program(const struct o2c_probe *probe, struct pt_regs *regs)
{
	struct bpf_trace_run_ctx run_ctx = { .bpf_cookie = probe->cookie };
	struct bpf_run_ctx *old;
	u32 verdict;

	rcu_read_lock();
	old = bpf_set_run_ctx(&run_ctx.run_ctx);
	verdict = bpf_prog_run(probe->program, regs);
	bpf_reset_run_ctx(old);
	rcu_read_unlock();
	return verdict;
}
NOKPROBE_SYMBOL(run_program);

static struct o2c_counters *counters_of(const struct o2c_probe *probe)
{
	return &probe->compartment->rows[smp_processor_id()][probe->index];
}
NOKPROBE_SYMBOL(counters_of);

/* Kprobes itself skips a probe inside another's handler: found out at the site's next hit. */
static void look_for_missed(struct o2c_probe *probe, struct o2c_counters *counters, bool from_int3)
{
	u64 missed = READ_ONCE(probe->kp.nmissed);

	if (likely(missed == counters->missed_seen))
		return;
	counters->missed_seen = missed;
	if (probe->compartment->on_missed == O2C_MISSED_KILL && missed > probe->missed_before)
		o2c_kill(probe->compartment, from_int3);
}
NOKPROBE_SYMBOL(look_for_missed);

/* Returns true when the instruction was denied at a skip site, with the registers set to go on behind it. */
static bool carry_out(struct o2c_probe *probe, struct pt_regs *regs, struct o2c_counters *counters,
		      bool from_int3)
{
	counters->denied++;
	if (probe->action == O2C_ACTION_REPORT || probe->mode == O2C_MODE_OBSERVE)
		return false;
	if (probe->action == O2C_ACTION_PANIC)
		panic("o2c: %s: violation of line %u of the policy at %pS", probe->compartment->name, probe->line,
		      (void *)probe->address);
	if (probe->action == O2C_ACTION_KILL)
		o2c_kill(probe->compartment, from_int3);
	if (probe->mode == O2C_MODE_SKIP) {
		o2c_skip(probe, regs);
		return true;
	}
	if (!o2c_poison(probe, regs))
		counters->errors++;	/* cannot be, short of nested NMIs that all deny */
	return false;
}
NOKPROBE_SYMBOL(carry_out);

int o2c_pre_handler(struct kprobe *kp, struct pt_regs *regs)
{
	struct o2c_probe *probe = container_of(kp, struct o2c_probe, kp);
	struct o2c_counters *counters;
	bool detour, from_int3, skipped = false;
	unsigned long flags;
	u32 verdict;

	/* pairs with the release in o2c_compartment_commit() */
	if (!smp_load_acquire(&probe->compartment->live))
		return 0;
	/*
	 * An interrupt in here would run its own probed code without checks. A detour restores the flags itself when it
	 * is through, so there interrupts are left off.
	 */
	raw_local_irq_save(flags);
	detour = o2c_in_detour(regs);
	from_int3 = !detour && in_nmi();
	counters = counters_of(probe);
	counters->hits++;
	look_for_missed(probe, counters, from_int3);
	if (unlikely(probe->mode == O2C_MODE_SKIP && detour)) {
		/* another's optimized probe that was entered before ours joined it */
		counters->missed++;
		goto out;
	}
	if (unlikely(o2c_poison_pending(regs)))
		goto out;	/* another compartment's probe here has denied it */
	if (probe->kind == O2C_KIND_HEAP) {
		skipped = o2c_heap_redirect(probe, regs);
		goto out;
	}
	verdict = run_program(probe, regs);
	if (verdict == O2C_DENY)
		skipped = carry_out(probe, regs, counters, from_int3);
	else if (unlikely(verdict != O2C_ALLOW))
		counters->errors++;
out:
	if (!detour || !probe->detour)
		raw_local_irq_restore(flags);
	return skipped;
}
NOKPROBE_SYMBOL(o2c_pre_handler);

/* Its presence keeps a skip site from being optimized. */
void o2c_post_handler(struct kprobe *kp, struct pt_regs *regs, unsigned long flags)
{
}
NOKPROBE_SYMBOL(o2c_post_handler);

/*
 * Interrupts stay off: kprobes says that it is in a handler until this has returned, and what an interrupt runs then is not
 * checked. The trampoline restores the flags (arch/x86/kernel/rethook.c, 6.1 and 6.12).
 */
static int returned(struct o2c_probe *probe, struct pt_regs *regs)
{
	struct o2c_counters *counters;
	unsigned long flags;
	u32 verdict;

	/* pairs with the release in o2c_compartment_commit() */
	if (!smp_load_acquire(&probe->compartment->live))
		return 0;
	raw_local_irq_save(flags);
	counters = counters_of(probe);
	counters->hits++;
	verdict = run_program(probe, regs);
	if (verdict == O2C_DENY)
		counters->denied++;
	else if (verdict != O2C_ALLOW)
		counters->errors++;
	return 0;
}
NOKPROBE_SYMBOL(returned);

int o2c_return_handler(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct kretprobe *rp = get_kretprobe(instance);

	return rp ? returned(container_of(rp, struct o2c_probe, rp), regs) : 0;
}
NOKPROBE_SYMBOL(o2c_return_handler);

int o2c_back_handler(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct kretprobe *rp = get_kretprobe(instance);

	return rp ? returned(container_of(rp, struct o2c_return, rp)->probe, regs) : 0;
}
NOKPROBE_SYMBOL(o2c_back_handler);

/* What the kretprobe's own probe would do. The stack pointer is still at the return address. */
int o2c_start_return(struct kprobe *kp, struct pt_regs *regs)
{
	struct o2c_probe *probe = container_of(kp, struct o2c_probe, kp);
	struct kprobe *entry = &probe->back->rp.kp;

	/* pairs with the release in o2c_compartment_commit() */
	if (smp_load_acquire(&probe->compartment->live))
		entry->pre_handler(entry, regs);
	return 0;
}
NOKPROBE_SYMBOL(o2c_start_return);
