// SPDX-License-Identifier: GPL-2.0-only
/* Runs one instruction with given registers, in process, softirq or hardirq context, or in all of them at once. */
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/fpu/api.h>

#include "forms.h"

#define SAFE_FLAGS (X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | X86_EFLAGS_SF | \
		    X86_EFLAGS_OF | X86_EFLAGS_DF)
#define R11 11
#define RSP 4
#define WENT_ON 0x600d

struct form_entry {
	u64 function;
	u64 offset;	/* of the instruction in the function */
	u64 length;
	const char *name;
};

struct form_registers {
	u64 values[16];
	u64 flags;
};

extern const struct form_entry form_table_start[], form_table_end[];
extern char form_target[];
void form_run_one(struct form_registers *registers, unsigned long function);
long form_allocate(void __user *argument);
int form_allocate_init(void);
void form_allocate_exit(void);

u8 form_buffer[FORM_BUFFER] __aligned(64);
atomic64_t form_calls = ATOMIC64_INIT(0);
DEFINE_PER_CPU(u64, form_per_cpu);
static DEFINE_MUTEX(run_lock);

static const struct form_entry *entry_of(u32 number)
{
	return number < form_table_end - form_table_start ? &form_table_start[number] : NULL;
}

static long info(void __user *argument)
{
	const struct form_entry *entry;
	struct form_info answer;

	if (copy_from_user(&answer, argument, sizeof(answer)))
		return -EFAULT;
	entry = entry_of(answer.number);
	if (!entry)
		return -ENOENT;
	memset(answer.name, 0, sizeof(answer.name));
	strscpy(answer.name, entry->name, sizeof(answer.name));
	answer.address = entry->function + entry->offset;
	answer.length = entry->length;
	answer.function = entry->function;
	answer.target = (unsigned long)form_target;
	memcpy(answer.bytes, (void *)answer.address, sizeof(answer.bytes));
	return copy_to_user(argument, &answer, sizeof(answer)) ? -EFAULT : 0;
}

struct deferred {
	struct hrtimer timer;
	struct completion done;
	struct form_registers *registers;
	unsigned long function;
	u64 per_cpu;
};

static void run_here(struct deferred *deferred)
{
	unsigned long interrupts;

	/* the per-CPU variable must be that of the CPU that runs */
	local_irq_save(interrupts);
	this_cpu_write(form_per_cpu, deferred->per_cpu);
	deferred->registers->flags = (deferred->registers->flags & SAFE_FLAGS) | X86_EFLAGS_FIXED;
	form_run_one(deferred->registers, deferred->function);
	deferred->per_cpu = this_cpu_read(form_per_cpu);
	local_irq_restore(interrupts);
}

static enum hrtimer_restart run_deferred(struct hrtimer *timer)
{
	struct deferred *deferred = container_of(timer, struct deferred, timer);

	run_here(deferred);
	complete(&deferred->done);
	return HRTIMER_NORESTART;
}

static void relocate(u64 *registers, u64 pointers, s64 by)
{
	unsigned int i;

	for (i = 0; i < 16; i++)
		if (pointers & (1ULL << i))
			registers[i] += by;
}

static long run(void __user *argument)
{
	struct form_run *request;
	const struct form_entry *entry;
	struct form_registers registers;
	struct deferred deferred = { .registers = &registers };
	s64 calls;
	long ret = 0;

	request = memdup_user(argument, sizeof(*request));
	if (IS_ERR(request))
		return PTR_ERR(request);
	entry = entry_of(request->number);
	if (!entry || request->context > FORM_HARDIRQ || !strncmp(entry->name, "refused_", 8)) {
		kfree(request);
		return -EINVAL;
	}
	mutex_lock(&run_lock);
	memcpy(form_buffer, request->buffer, sizeof(form_buffer));
	memcpy(registers.values, request->registers, sizeof(registers.values));
	relocate(registers.values, request->pointers, (unsigned long)form_buffer);
	registers.flags = request->flags;
	deferred.function = entry->function;
	deferred.per_cpu = request->per_cpu;
	calls = atomic64_read(&form_calls);
	if (request->context == FORM_PROCESS) {
		kernel_fpu_begin();
		asm volatile("movups %0, %%xmm0" : : "m"(request->vector));
		registers.flags = (registers.flags & SAFE_FLAGS) | X86_EFLAGS_FIXED | X86_EFLAGS_IF;
		this_cpu_write(form_per_cpu, deferred.per_cpu);
		form_run_one(&registers, deferred.function);
		deferred.per_cpu = this_cpu_read(form_per_cpu);
		if (irqs_disabled()) {
			local_irq_enable();
			ret = -EPROTO;	/* a probe left interrupts off */
		}
		kernel_fpu_end();
	} else {
		enum hrtimer_mode mode = request->context == FORM_SOFTIRQ ? HRTIMER_MODE_REL_SOFT
									  : HRTIMER_MODE_REL_HARD;

		init_completion(&deferred.done);
		hrtimer_init_on_stack(&deferred.timer, CLOCK_MONOTONIC, mode);
		deferred.timer.function = run_deferred;
		hrtimer_start(&deferred.timer, ns_to_ktime(1000), mode);
		wait_for_completion(&deferred.done);
		hrtimer_cancel(&deferred.timer);
		destroy_hrtimer_on_stack(&deferred.timer);
	}
	request->calls = atomic64_read(&form_calls) - calls;
	request->per_cpu = deferred.per_cpu;
	relocate(registers.values, request->pointers, -(s64)(unsigned long)form_buffer);
	memcpy(request->registers, registers.values, sizeof(registers.values));
	request->flags = registers.flags;
	memcpy(request->buffer, form_buffer, sizeof(form_buffer));
	mutex_unlock(&run_lock);
	if (!ret && copy_to_user(argument, request, sizeof(*request)))
		ret = -EFAULT;
	kfree(request);
	return ret;
}

struct hammer_context {
	struct hrtimer timer;
	struct form_hammer *request;
	unsigned long function;
	u64 runs;
	u64 written;
	u64 wrong;
	bool stop;
	u8 buffer[FORM_BUFFER] __aligned(64);
};

static void strike(struct hammer_context *context)
{
	struct form_registers registers, before;
	unsigned int i;

	memcpy(registers.values, context->request->registers, sizeof(registers.values));
	relocate(registers.values, context->request->pointers, (unsigned long)context->buffer);
	registers.flags = X86_EFLAGS_FIXED | (irqs_disabled() ? 0 : X86_EFLAGS_IF);
	before = registers;
	form_run_one(&registers, context->function);
	context->runs++;
	if (memchr_inv(context->buffer, 0x11, sizeof(context->buffer))) {
		context->written++;
		memset(context->buffer, 0x11, sizeof(context->buffer));
	}
	if (registers.values[R11] != WENT_ON || (registers.flags ^ before.flags) & X86_EFLAGS_IF) {
		context->wrong++;
		return;
	}
	for (i = 0; i < 16; i++) {
		if (i != R11 && registers.values[i] != before.values[i]) {
			context->wrong++;
			return;
		}
	}
}

static enum hrtimer_restart strike_on_timer(struct hrtimer *timer)
{
	struct hammer_context *context = container_of(timer, struct hammer_context, timer);

	strike(context);
	if (READ_ONCE(context->stop))
		return HRTIMER_NORESTART;
	hrtimer_forward_now(timer, ns_to_ktime(150000));
	return HRTIMER_RESTART;
}

static long hammer(void __user *argument)
{
	static const enum hrtimer_mode modes[] = {
		[FORM_SOFTIRQ] = HRTIMER_MODE_REL_SOFT, [FORM_HARDIRQ] = HRTIMER_MODE_REL_HARD,
	};
	struct hammer_context *contexts;
	const struct form_entry *entry;
	struct form_hammer request;
	ktime_t end;
	unsigned int i;
	long ret = 0;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	entry = entry_of(request.number);
	if (!entry || request.milliseconds > 60000 || !strncmp(entry->name, "refused_", 8))
		return -EINVAL;
	contexts = kcalloc(3, sizeof(*contexts), GFP_KERNEL);
	if (!contexts)
		return -ENOMEM;
	end = ktime_add_ms(ktime_get(), request.milliseconds);
	for (i = 0; i < 3; i++) {
		contexts[i].request = &request;
		contexts[i].function = entry->function;
		memset(contexts[i].buffer, 0x11, sizeof(contexts[i].buffer));
		if (i == FORM_PROCESS)
			continue;
		hrtimer_init(&contexts[i].timer, CLOCK_MONOTONIC, modes[i]);
		contexts[i].timer.function = strike_on_timer;
		hrtimer_start(&contexts[i].timer, ns_to_ktime(100000 + 50000 * i), modes[i]);
	}
	while (ktime_before(ktime_get(), end) && !fatal_signal_pending(current)) {
		for (i = 0; i < 50; i++)
			strike(&contexts[FORM_PROCESS]);
		cond_resched_tasks_rcu_qs();	/* or the probe optimizer waits for us */
	}
	for (i = 1; i < 3; i++) {
		WRITE_ONCE(contexts[i].stop, true);
		hrtimer_cancel(&contexts[i].timer);
	}
	request.written = 0;
	request.wrong = 0;
	for (i = 0; i < 3; i++) {
		request.runs[i] = contexts[i].runs;
		request.written += contexts[i].written;
		request.wrong += contexts[i].wrong;
	}
	if (copy_to_user(argument, &request, sizeof(request)))
		ret = -EFAULT;
	kfree(contexts);
	return ret;
}

static long forms_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	switch (request) {
	case FORM_IOC_INFO:
		return info((void __user *)argument);
	case FORM_IOC_RUN:
		return run((void __user *)argument);
	case FORM_IOC_HAMMER:
		return hammer((void __user *)argument);
	case FORM_IOC_ALLOC:
		return form_allocate((void __user *)argument);
	}
	return -ENOTTY;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = forms_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "o2c_forms",
	.mode = 0600,
	.fops = &operations,
};

static int __init forms_init(void)
{
	int ret = form_allocate_init();

	if (ret)
		return ret;
	ret = misc_register(&device);
	if (ret)
		form_allocate_exit();
	return ret;
}

static void __exit forms_exit(void)
{
	misc_deregister(&device);
	form_allocate_exit();
}

module_init(forms_init);
module_exit(forms_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Single instructions for the tests of o2c.ko");
