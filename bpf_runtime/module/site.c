// SPDX-License-Identifier: GPL-2.0-only
/*
 * Registration of sites: everything that is checked before a probe is placed, and the choice of how it denies.
 */
#include <linux/kprobes.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/delay.h>
#include <linux/uaccess.h>

#include "internal.h"

#define UNREGISTER_BATCH 256
#define RETURN_INSTANCES 64
#define REMEMBER_FROM 8		/* sites of modules in a batch: placing the probe at the look-up costs as much as some sites */

static bool is_observed(u8 kind)
{
	return kind == O2C_KIND_ENTRY || kind == O2C_KIND_RETURN || kind == O2C_KIND_OBSERVE;
}

static bool denies(const struct o2c_site *site)
{
	return site->action == O2C_ACTION_DENY || site->action == O2C_ACTION_KILL;
}

static bool kind_fits(u8 kind, const struct o2c_insn *insn)
{
	switch (kind) {
	case O2C_KIND_STORE:
		return insn->form == O2C_FORM_STORE;
	case O2C_KIND_STRING:
		return insn->form == O2C_FORM_STRING;
	case O2C_KIND_RMW:
		return insn->form >= O2C_FORM_ALU;
	case O2C_KIND_ICALL:	/* a thunk is called directly */
		return insn->form == O2C_FORM_CALL;
	case O2C_KIND_IJUMP:
		return insn->form == O2C_FORM_JUMP;
	case O2C_KIND_CALL:
		return insn->form == O2C_FORM_CALL && !insn->indirect;
	case O2C_KIND_TAIL_JUMP:
		return insn->form == O2C_FORM_JUMP && !insn->indirect;
	case O2C_KIND_HEAP:
		return (insn->form == O2C_FORM_CALL || insn->form == O2C_FORM_JUMP) && !insn->indirect;
	}
	return false;
}

static bool operand_fits(const struct o2c_site *site, const struct o2c_insn *insn)
{
	if (site->length != insn->length)
		return false;
	if (site->kind == O2C_KIND_HEAP)
		return true;	/* these members say where the function's arguments are */
	if (insn->form == O2C_FORM_CALL || insn->form == O2C_FORM_JUMP)
		return site->base == O2C_REG_NONE && site->index == O2C_REG_NONE && !site->size &&
		       !site->scale && !site->displacement;
	return site->base == insn->base && site->index == insn->index && site->scale == insn->scale &&
	       site->size == insn->size && site->displacement == insn->displacement;
}

static bool is_heap_request(const struct o2c_site *site)
{
	bool of_cache = site->size == O2C_HEAP_ALLOC_CACHE || site->size == O2C_HEAP_BULK_ALLOC;

	if (site->size < O2C_HEAP_ALLOC || site->size > O2C_HEAP_BULK_FREE || site->program != ~0U ||
	    site->action != O2C_ACTION_REPORT || site->index >= 16 ||
	    site->scale > (site->size == O2C_HEAP_PAGES_ADDRESS))
		return false;
	return site->base == O2C_REG_NONE ? site->displacement >= 0 && !of_cache : site->base < 16;
}

/* Everything that can be said without looking at the kernel. */
static int check_request(const struct o2c_compartment *compartment, const struct o2c_site *site, u32 *reason)
{
	*reason = O2C_REASON_RESERVED;
	if (site->reserved || site->kind < O2C_KIND_STORE || site->kind > O2C_KIND_HEAP ||
	    site->action > O2C_ACTION_PANIC || site->flags & ~(O2C_SITE_STRICT | O2C_SITE_TAIL))
		return -EINVAL;
	if (is_observed(site->kind) ? site->length || site->action != O2C_ACTION_REPORT
				    : !site->length || site->length >= O2C_INSN_MAX)
		return -EINVAL;
	if (is_observed(site->kind) && site->displacement && site->kind != O2C_KIND_RETURN)
		return -EINVAL;
	*reason = O2C_REASON_TAIL;
	if (site->kind == O2C_KIND_IJUMP && denies(site) && !(site->flags & O2C_SITE_TAIL))
		return -EOPNOTSUPP;
	*reason = O2C_REASON_HEAP;
	if (site->kind == O2C_KIND_HEAP && (!compartment->heap || !is_heap_request(site)))
		return -EINVAL;
	*reason = O2C_REASON_PROGRAM;
	if (site->kind != O2C_KIND_HEAP && (site->program >= compartment->program_count ||
					    compartment->programs[site->program]->type != BPF_PROG_TYPE_KPROBE))
		return -ENOENT;
	*reason = O2C_REASON_LIMIT;
	if (compartment->site_count >= O2C_MAX_SITES)
		return -E2BIG;
	return 0;
}

/* Where the breakpoint of a return goes that is not to be started by ftrace: right behind ftrace's place. */
static int check_behind(const struct o2c_site *site, u32 *reason)
{
	*reason = O2C_REASON_BYTES;
	return o2c_ftrace_entry(site->address) == site->displacement ? 0 : -EILSEQ;
}

/* Compares with the text and decodes it. */
static int check_text(struct o2c_probe *probe, const struct o2c_site *site, u32 *reason)
{
	u8 bytes[O2C_INSN_MAX] = {};
	unsigned int length = site->length ?: 1;
	unsigned int i;
	int ret;

	*reason = O2C_REASON_ADDRESS;
	if (site->address < TASK_SIZE_MAX || site->address > ULONG_MAX - PAGE_SIZE)
		return -EFAULT;
	ret = o2c_text_read(site->address, bytes, length);
	if (ret)
		return ret;
	*reason = O2C_REASON_BYTES;
	for (i = 0; i < site->length; i++)
		if ((bytes[i] ^ site->bytes[i]) & site->mask[i])
			return -EILSEQ;
	if (is_observed(site->kind))
		return 0;
	*reason = O2C_REASON_FORM;
	ret = o2c_decode(bytes, length, &probe->insn);
	if (ret)
		return ret == -EINVAL ? -EOPNOTSUPP : ret;
	*reason = O2C_REASON_KIND;
	if (!kind_fits(site->kind, &probe->insn))
		return -EINVAL;
	*reason = O2C_REASON_OPERAND;
	return operand_fits(site, &probe->insn) ? 0 : -EINVAL;
}

static int check_target(struct o2c_compartment *compartment, const struct o2c_site *site, u32 *reason)
{
	struct module *module;
	bool by_ftrace;
	int ret;

	*reason = O2C_REASON_MODULE;
	ret = o2c_module_by_address(site->address, &module);
	if (ret || !module)
		return ret;
	*reason = O2C_REASON_LAST_FUNCTION;
	by_ftrace = (site->kind == O2C_KIND_ENTRY || site->kind == O2C_KIND_RETURN) &&
		    !site->displacement && o2c_ftrace_entry(site->address);
	if (!by_ftrace && o2c_optimizer_overruns(module, site->address)) {
		module_put(module);
		return -ERANGE;
	}
	*reason = O2C_REASON_LIMIT;
	return o2c_pin(compartment, module);
}

static void choose_mode(struct o2c_compartment *compartment, struct o2c_probe *probe,
			const struct o2c_site *site)
{
	bool strict = compartment->flags & O2C_CREATE_STRICT || site->flags & O2C_SITE_STRICT;

	probe->mode = O2C_MODE_OBSERVE;
	if (is_observed(site->kind)) {
		/* ftrace's places take no breakpoint, and a kprobe there with a post_handler keeps livepatch away */
		probe->strict = strict && !(site->kind == O2C_KIND_ENTRY && o2c_ftrace_entry(site->address));
		return;
	}
	if (!strict && o2c_can_poison(&probe->insn))
		probe->mode = O2C_MODE_POISON;
	else
		probe->mode = O2C_MODE_SKIP;
}

/*
 * False: kprobes could not disarm it, and goes on to use it. All it says is a cleared address (__unregister_kprobe_top() in
 * kernel/kprobes.c). Then it must stay, and this module with it.
 */
bool o2c_unregistered(const struct kprobe *kp)
{
	if (kp->addr)
		return true;
	pr_err("o2c: a probe cannot be taken away: o2c stays\n");
	__module_get(THIS_MODULE);
	return false;
}

static void unregister_one(struct o2c_probe *probe)
{
	if (probe->is_return)
		unregister_kretprobe(&probe->rp);
	else
		unregister_kprobe(&probe->kp);
}

/*
 * A return that interrupts cannot come between. Kprobes through ftrace run with interrupts on, and until they are through no
 * other probe runs on that CPU: what an interrupt's code did would be neither checked nor tracked. So the kretprobe is
 * registered but not armed, and a breakpoint behind ftrace's place starts it with interrupts off.
 */
static int place_return(struct o2c_probe *probe, s32 behind)
{
	struct o2c_return *back;
	int ret;

	probe->kp.addr = (kprobe_opcode_t *)probe->address;
	back = kzalloc(sizeof(*back), GFP_KERNEL);
	if (!back)
		return -ENOMEM;
	probe->back = back;
	back->probe = probe;
	back->rp.kp.addr = (kprobe_opcode_t *)(probe->address - behind);
	back->rp.kp.flags = KPROBE_FLAG_DISABLED;
	back->rp.handler = o2c_back_handler;
	back->rp.maxactive = max_t(int, RETURN_INSTANCES, 4 * num_possible_cpus());
	ret = register_kretprobe(&back->rp);
	if (ret)
		return ret;
	probe->kp.pre_handler = o2c_start_return;
	probe->kp.post_handler = o2c_post_handler;
	ret = register_kprobe(&probe->kp);
	if (ret)
		unregister_kretprobe(&back->rp);
	return ret;
}

static int place(struct o2c_probe *probe, u32 *reason);

/* Registers a probe once more, with another mode or without `strict`. */
static int place_anew(struct o2c_probe *probe, u32 *reason)
{
	unregister_kprobe(&probe->kp);
	if (!probe->kp.addr)
		return -EIO;	/* see o2c_unregistered() */
	memset(&probe->kp, 0, sizeof(probe->kp));
	return place(probe, reason);
}

/* Places the probe; it does nothing before the compartment is committed. */
static int place(struct o2c_probe *probe, u32 *reason)
{
	int ret;

	*reason = O2C_REASON_PROBE;
	probe->kp.addr = (kprobe_opcode_t *)probe->address;
	if (probe->is_return) {
		probe->rp.handler = o2c_return_handler;
		probe->rp.maxactive = max_t(int, RETURN_INSTANCES, 4 * num_possible_cpus());
		return register_kretprobe(&probe->rp);
	}
	probe->kp.pre_handler = o2c_pre_handler;
	if (probe->mode == O2C_MODE_SKIP || probe->strict)
		probe->kp.post_handler = o2c_post_handler;
	ret = register_kprobe(&probe->kp);
	if (ret)
		return ret;
	probe->joined = !list_empty(&probe->kp.list) && !list_is_singular(&probe->kp.list);
	*reason = O2C_REASON_FTRACE;
	if (kprobe_ftrace(&probe->kp) && probe->mode != O2C_MODE_OBSERVE) {
		unregister_kprobe(&probe->kp);
		return -EOPNOTSUPP;
	}
	if (kprobe_ftrace(&probe->kp) && probe->kp.post_handler) {
		/* not told by its bytes; with a post_handler it would keep livepatch away */
		probe->strict = false;
		return place_anew(probe, reason);
	}
	if (!probe->kp.post_handler && !kprobe_ftrace(&probe->kp))
		probe->detour = o2c_find_detour(&probe->kp, probe->insn.length);
	if (probe->mode == O2C_MODE_POISON && !probe->detour) {
		/* never a jump: as a skip site it denies without a fault. Registered anew, for its post_handler */
		probe->mode = O2C_MODE_SKIP;
		return place_anew(probe, reason);
	}
	return 0;
}

/* Frees a site whose probes are not registered, unless kprobes still has a part of it. */
static void free_unregistered(struct o2c_probe *probe)
{
	if (!o2c_unregistered(probe->is_return ? &probe->rp.kp : &probe->kp) ||
	    (probe->back && !o2c_unregistered(&probe->back->rp.kp)))
		return;
	o2c_text_release(probe->address);
	kfree(probe->back);
	kfree(probe);
}

static int attach_one(struct o2c_compartment *compartment, const struct o2c_site *site,
		      struct o2c_result *result, bool remember)
{
	struct o2c_probe *probe;
	int ret;

	ret = check_request(compartment, site, &result->reason);
	if (ret)
		return ret;
	probe = kzalloc(sizeof(*probe), GFP_KERNEL);
	if (!probe)
		return -ENOMEM;
	/* the module first: its text stays while it is looked at */
	ret = check_target(compartment, site, &result->reason);
	if (!ret)
		ret = check_text(probe, site, &result->reason);
	if (!ret && site->kind == O2C_KIND_RETURN && site->displacement)
		ret = check_behind(site, &result->reason);
	if (ret)
		goto fail;
	result->reason = O2C_REASON_LIMIT;
	ret = o2c_grow(&compartment->sites, &compartment->site_room, compartment->site_count, O2C_MAX_SITES);
	if (ret)
		goto fail;
	probe->compartment = compartment;
	if (site->kind == O2C_KIND_HEAP) {
		probe->heap.op = site->size;
		probe->heap.size = site->base;
		probe->heap.gfp = site->index;
		probe->heap.zero = site->scale;
		probe->heap.constant = site->displacement;
	} else {
		probe->program = compartment->programs[site->program];
	}
	probe->address = site->address;
	if (site->kind == O2C_KIND_RETURN)
		probe->address += site->displacement;
	probe->cookie = site->cookie;
	probe->line = site->line;
	probe->deny_result = site->deny_result;
	probe->kind = site->kind;
	probe->action = site->action;
	probe->is_return = site->kind == O2C_KIND_RETURN && !site->displacement;
	probe->index = compartment->site_count;
	choose_mode(compartment, probe, site);
	if (remember && o2c_in_modules(probe->address))
		o2c_lookup_prepare(probe->address);
	ret = o2c_text_hold(probe->address);
	if (ret)
		goto fail;
	result->reason = O2C_REASON_PROBE;
	if (site->kind == O2C_KIND_RETURN && site->displacement)
		ret = place_return(probe, site->displacement);
	else
		ret = place(probe, &result->reason);
	if (ret) {
		free_unregistered(probe);
		return ret;
	}
	compartment->sites[compartment->site_count++] = probe;
	result->index = probe->index;
	result->mode = probe->mode;
	result->reason = O2C_REASON_NONE;
	return 0;
fail:
	kfree(probe);
	return ret;
}

/* An unregistered optimized probe keeps its jump until the kernel's optimizer has run. */
static void wait_for_text(struct o2c_compartment *compartment, u32 first)
{
	unsigned int patience = 1000;
	u32 i;

	for (i = first; i < compartment->site_count && patience; i++) {
		while (!o2c_text_restored(compartment->sites[i]->address) && patience) {
			msleep(10);
			patience--;
		}
	}
}

/* Removes the sites from `first` on, waits until no CPU is in them, and frees them. May sleep. */
void o2c_unregister(struct o2c_compartment *compartment, u32 first)
{
	struct kprobe **batch;
	u32 i, n = 0;

	batch = kcalloc(UNREGISTER_BATCH, sizeof(*batch), GFP_KERNEL | __GFP_NOWARN);
	for (i = first; i < compartment->site_count; i++) {
		struct o2c_probe *probe = compartment->sites[i];

		if (probe->is_return || !batch) {
			unregister_one(probe);
			continue;
		}
		batch[n++] = &probe->kp;
		if (n == UNREGISTER_BATCH) {
			unregister_kprobes(batch, n);
			n = 0;
			cond_resched();
		}
	}
	if (n)
		unregister_kprobes(batch, n);
	kfree(batch);
	for (i = first; i < compartment->site_count; i++)
		if (compartment->sites[i]->back)
			unregister_kretprobe(&compartment->sites[i]->back->rp);
	wait_for_text(compartment, first);
	/* a denial at a poison site ends with interrupts off: no CPU has one open after this */
	synchronize_rcu();
	for (i = first; i < compartment->site_count; i++)
		free_unregistered(compartment->sites[i]);
	compartment->site_count = first;
}

u64 o2c_nmissed(const struct o2c_probe *probe)
{
	const struct kretprobe *rp = probe->back ? &probe->back->rp : probe->is_return ? &probe->rp : NULL;

	return READ_ONCE(probe->kp.nmissed) + (rp ? READ_ONCE(rp->nmissed) : 0);
}

static u32 in_modules(const struct o2c_site *sites, u32 count)
{
	u32 i, found = 0;

	for (i = 0; i < count; i++)
		found += o2c_in_modules(sites[i].address);
	return found;
}

/*
 * Attaches a batch. Without O2C_ATTACH_BEST_EFFORT one refused site takes the whole batch back. The caller holds the
 * compartment's lock.
 */
int o2c_attach(struct o2c_compartment *compartment, struct o2c_attach *request)
{
	struct o2c_result __user *to = u64_to_user_ptr(request->results);
	u32 before = compartment->site_count;
	struct o2c_result *results;
	struct o2c_site *sites;
	bool remember;
	int ret = 0;
	u32 i;

	request->attached = 0;
	request->failed = ~0U;
	request->reason = O2C_REASON_NONE;
	if (compartment->live)
		return -EBUSY;
	if (request->site_size != sizeof(*sites) || request->flags & ~O2C_ATTACH_BEST_EFFORT ||
	    !request->count || request->count > O2C_MAX_BATCH)
		return -EINVAL;
	/* the whole batch first: no fault of the caller's memory holds it up half-way */
	sites = vmemdup_user(u64_to_user_ptr(request->sites), array_size(request->count, sizeof(*sites)));
	if (IS_ERR(sites))
		return PTR_ERR(sites);
	results = kvcalloc(request->count, sizeof(*results), GFP_KERNEL);
	if (!results) {
		kvfree(sites);
		return -ENOMEM;
	}
	remember = in_modules(sites, request->count) >= REMEMBER_FROM && o2c_lookup_begin();
	for (i = 0; i < request->count; i++) {
		struct o2c_result *result = &results[i];

		result->index = ~0U;
		if (fatal_signal_pending(current)) {
			ret = result->error = -EINTR;
			break;
		}
		result->error = attach_one(compartment, &sites[i], result, remember);
		if (result->error && request->failed == ~0U) {
			request->failed = i;
			request->reason = result->reason;
		}
		if (result->error && !(request->flags & O2C_ATTACH_BEST_EFFORT)) {
			ret = result->error;
			break;
		}
		request->attached += !result->error;
		cond_resched();
	}
	if (remember)
		o2c_lookup_end();
	if (to && copy_to_user(to, results, array_size(min(i + 1, request->count), sizeof(*results))))
		ret = -EFAULT;
	kvfree(results);
	kvfree(sites);
	if (ret) {
		o2c_unregister(compartment, before);
		request->attached = 0;
	}
	return ret;
}
