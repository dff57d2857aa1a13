// SPDX-License-Identifier: GPL-2.0-only
/*
 * Compartments: their table, life, counters.
 *
 * A compartment is created on an open file, gets programs and sites, and is committed: one store switches all its
 * sites on. It ends by DETACH, or with its last file unless it was committed with O2C_CREATE_KEEP.
 */
#include <linux/cpumask.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/namei.h>
#include <linux/rcupdate.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "internal.h"

static LIST_HEAD(compartments);
static DEFINE_MUTEX(table_lock);

/*
 * Makes room for one more element in an array of pointers. `array` is the address of the pointer to its first element.
 */
int o2c_grow(void *array, u32 *room, u32 count, u32 limit)
{
	void **old = *(void ***)array;
	void **larger;
	u32 new_room;

	if (count < *room)
		return 0;
	if (count >= limit)
		return -E2BIG;
	new_room = *room ? min(*room * 2, limit) : 16;
	larger = kvcalloc(new_room, sizeof(*larger), GFP_KERNEL);
	if (!larger)
		return -ENOMEM;
	if (count)
		memcpy(larger, old, count * sizeof(*larger));
	kvfree(old);
	*(void ***)array = larger;
	*room = new_room;
	return 0;
}

static struct o2c_compartment *find(const char *name)
{
	struct o2c_compartment *compartment;

	list_for_each_entry(compartment, &compartments, list)
		if (!strcmp(compartment->name, name))
			return compartment;
	return NULL;
}

static bool is_name(const char *name, size_t size)
{
	size_t length = strnlen(name, size);
	size_t i;

	if (!length || length == size)
		return false;
	for (i = 0; i < length; i++)
		if (name[i] <= ' ' || name[i] > '~' || name[i] == '/')
			return false;
	/* nothing behind the end: the same name is the same bytes */
	return !memchr_inv(name + length, 0, size - length);
}

int o2c_compartment_create(const struct o2c_create *request, struct o2c_compartment **out)
{
	struct o2c_compartment *compartment;
	struct module *module = NULL;
	int ret;

	if (request->flags & ~(O2C_CREATE_KEEP | O2C_CREATE_STRICT) || request->on_missed > O2C_MISSED_KILL ||
	    request->reserved || !is_name(request->name, sizeof(request->name)))
		return -EINVAL;
	if (request->module[0] ? !is_name(request->module, sizeof(request->module))
			       : memchr_inv(request->module, 0, sizeof(request->module)) != NULL)
		return -EINVAL;
	/* what perf does for its kprobes */
	ret = security_locked_down(LOCKDOWN_KPROBES);
	if (ret)
		return ret;
	compartment = kzalloc(sizeof(*compartment), GFP_KERNEL);
	if (!compartment)
		return -ENOMEM;
	kref_init(&compartment->ref);
	mutex_init(&compartment->lock);
	o2c_drain_prepare(compartment);
	memcpy(compartment->name, request->name, sizeof(compartment->name));
	compartment->flags = request->flags;
	compartment->on_missed = request->on_missed;
	compartment->files = 1;
	if (request->module[0]) {
		module = o2c_module_by_name(request->module);
		ret = IS_ERR(module) ? PTR_ERR(module) : o2c_pin(compartment, module);
		if (ret)
			goto fail;
	}
	mutex_lock(&table_lock);
	if (find(compartment->name)) {
		ret = -EEXIST;
	} else {
		list_add_tail(&compartment->list, &compartments);
		kref_get(&compartment->ref);
		/* o2c.ko stays while a compartment lives, even one without a file */
		__module_get(THIS_MODULE);
	}
	mutex_unlock(&table_lock);
	if (ret)
		goto fail;
	*out = compartment;
	return 0;
fail:
	if (compartment->target_count)
		module_put(module);
	kvfree(compartment->targets);
	kfree(compartment);
	return ret;
}

static void release(struct kref *ref)
{
	kfree(container_of(ref, struct o2c_compartment, ref));
}

void o2c_compartment_put(struct o2c_compartment *compartment)
{
	kref_put(&compartment->ref, release);
}

/* Takes everything down. The caller holds the compartment's lock. */
static void destroy(struct o2c_compartment *compartment)
{
	unsigned int cpu;
	u32 i;

	if (compartment->dead)
		return;
	compartment->dead = true;
	o2c_drain_cancel(compartment);
	/* pairs with the probes' acquire; o2c_unregister() waits for those that are under way */
	smp_store_release(&compartment->live, false);
	o2c_unregister(compartment, 0);
	kvfree(compartment->sites);
	/* only now: up to its end a check knows what was freed */
	o2c_hooks_end(compartment);
	if (compartment->heap)
		o2c_heap_destroy(compartment->heap);
	compartment->heap = NULL;
	for (i = 0; i < compartment->program_count; i++)
		bpf_prog_put(compartment->programs[i]);
	kvfree(compartment->programs);
	for (i = 0; i < compartment->target_count; i++)
		module_put(compartment->targets[i]);
	kvfree(compartment->targets);
	if (compartment->rows)
		for_each_possible_cpu(cpu)
			kvfree(compartment->rows[cpu]);
	kfree(compartment->rows);
	compartment->program_count = 0;
	compartment->target_count = 0;
	compartment->rows = NULL;
	/* the name is free only now: nobody can load it anew on half-removed probes */
	mutex_lock(&table_lock);
	list_del_init(&compartment->list);
	mutex_unlock(&table_lock);
	kref_put(&compartment->ref, release);	/* the table's; the caller has its own */
	module_put(THIS_MODULE);
}

struct o2c_compartment *o2c_compartment_open(const char *name)
{
	struct o2c_compartment *compartment;

	if (!is_name(name, O2C_NAME_LEN))
		return ERR_PTR(-EINVAL);
	mutex_lock(&table_lock);
	compartment = find(name);
	if (compartment)
		kref_get(&compartment->ref);
	mutex_unlock(&table_lock);
	if (!compartment)
		return ERR_PTR(-ENOENT);
	mutex_lock(&compartment->lock);
	if (compartment->dead) {
		mutex_unlock(&compartment->lock);
		kref_put(&compartment->ref, release);
		return ERR_PTR(-ENOENT);
	}
	compartment->files++;
	mutex_unlock(&compartment->lock);
	return compartment;
}

/* A file lets go of its compartment. */
void o2c_compartment_close(struct o2c_compartment *compartment)
{
	mutex_lock(&compartment->lock);
	compartment->files--;
	if (!compartment->files && !(compartment->live && compartment->flags & O2C_CREATE_KEEP))
		destroy(compartment);
	mutex_unlock(&compartment->lock);
	kref_put(&compartment->ref, release);
}

int o2c_compartment_detach(struct o2c_compartment *compartment)
{
	destroy(compartment);
	return 0;
}

static bool is_suitable(const struct bpf_prog *program)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
	bool sleepable = program->sleepable;
#else
	bool sleepable = program->aux->sleepable;
#endif
	/* multi-probe and override programs expect another context */
	return !sleepable && !program->kprobe_override && !program->expected_attach_type && program->jited;
}

/* Takes the program that a request names, if it is of that type; else -EINVAL. */
static struct bpf_prog *take(const struct o2c_program *request, enum bpf_prog_type type)
{
	struct bpf_prog *program;
	char *path;

	if (request->fd >= 0)
		return bpf_prog_get_type_dev(request->fd, type, false);
	path = strndup_user(u64_to_user_ptr(request->path), PATH_MAX);
	if (IS_ERR(path))
		return ERR_CAST(path);
	program = bpf_prog_get_type_path(path, type);
	kfree(path);
	return program;
}

int o2c_compartment_program(struct o2c_compartment *compartment, struct o2c_program *request)
{
	struct bpf_prog *program;
	int ret;

	if (request->reserved || request->index || request->fd < -1 || (request->fd >= 0 && request->path) ||
	    (request->fd == -1 && !request->path))
		return -EINVAL;
	if (compartment->live)
		return -EBUSY;
	ret = o2c_grow(&compartment->programs, &compartment->program_room, compartment->program_count,
		       O2C_MAX_PROGRAMS);
	if (ret)
		return ret;
	program = take(request, BPF_PROG_TYPE_KPROBE);
	if (program == ERR_PTR(-EINVAL))
		program = take(request, BPF_PROG_TYPE_RAW_TRACEPOINT);
	if (IS_ERR(program))
		return PTR_ERR(program);
	if (!is_suitable(program)) {
		bpf_prog_put(program);
		return -EOPNOTSUPP;
	}
	request->index = compartment->program_count;
	compartment->programs[compartment->program_count++] = program;
	return 0;
}

static int make_counters(struct o2c_compartment *compartment)
{
	unsigned int cpu;

	compartment->rows = kcalloc(nr_cpu_ids, sizeof(*compartment->rows), GFP_KERNEL);
	if (!compartment->rows)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		compartment->rows[cpu] = kvcalloc(compartment->site_count, sizeof(struct o2c_counters),
						  GFP_KERNEL);
		if (!compartment->rows[cpu])
			goto fail;
	}
	return 0;
fail:
	for_each_possible_cpu(cpu)
		kvfree(compartment->rows[cpu]);
	kfree(compartment->rows);
	compartment->rows = NULL;
	return -ENOMEM;
}

/* Switches all sites on at once. */
int o2c_compartment_commit(struct o2c_compartment *compartment)
{
	bool joined = false;
	u32 i;
	int ret;

	if (compartment->live)
		return -EBUSY;
	if (!compartment->site_count)
		return -ENODATA;
	ret = make_counters(compartment);
	if (ret)
		return ret;
	for (i = 0; i < compartment->site_count; i++) {
		compartment->sites[i]->missed_before = o2c_nmissed(compartment->sites[i]);
		joined |= compartment->sites[i]->joined;
	}
	/* nobody is in the detour of another's optimized probe, where a skip site cannot deny, after this */
	if (joined)
		synchronize_rcu_tasks();
	/* pairs with the probes' acquire: who sees it sees the counters as well */
	smp_store_release(&compartment->live, true);
	return 0;
}

static void sum(const struct o2c_compartment *compartment, u32 index, struct o2c_counters *total)
{
	const struct o2c_probe *probe = compartment->sites[index];
	unsigned int cpu;

	memset(total, 0, sizeof(*total));
	if (!compartment->rows)
		return;
	for_each_possible_cpu(cpu) {
		const struct o2c_counters *row = &compartment->rows[cpu][index];

		total->hits += READ_ONCE(row->hits);
		total->denied += READ_ONCE(row->denied);
		total->missed += READ_ONCE(row->missed);
		total->errors += READ_ONCE(row->errors);
	}
	total->missed += o2c_nmissed(probe) - probe->missed_before;
}

static u8 state_of(const struct o2c_probe *probe)
{
	u8 byte;

	if (kprobe_ftrace((struct kprobe *)&probe->kp) ||
	    copy_from_kernel_nofault(&byte, probe->kp.addr, 1))
		return O2C_STATE_UNARMED;
	return byte == 0xcc ? O2C_STATE_INT3 : byte == 0xe9 && probe->kp.opcode != 0xe9 ? O2C_STATE_JUMP
										       : O2C_STATE_UNARMED;
}

int o2c_compartment_stats(struct o2c_compartment *compartment, struct o2c_stats *request)
{
	struct o2c_site_stats __user *buffer = u64_to_user_ptr(request->buffer);
	u32 i;

	request->returned = 0;
	request->total = compartment->site_count;
	for (i = request->first; i < compartment->site_count && request->returned < request->count; i++) {
		const struct o2c_probe *probe = compartment->sites[i];
		struct o2c_counters total;
		struct o2c_site_stats stats;

		sum(compartment, i, &total);
		stats = (struct o2c_site_stats) {
			.address = probe->address,
			.cookie = probe->cookie,
			.hits = total.hits,
			.denied = total.denied,
			.missed = total.missed,
			.errors = total.errors,
			.index = i,
			.kind = probe->kind,
			.mode = probe->mode,
			.state = state_of(probe),
			.action = probe->action,
		};
		if (copy_to_user(&buffer[request->returned], &stats, sizeof(stats)))
			return -EFAULT;
		request->returned++;
		cond_resched();
	}
	return 0;
}

void o2c_compartment_info(struct o2c_compartment *compartment, struct o2c_info *info)
{
	struct o2c_counters total;
	u32 i;

	memset(info, 0, sizeof(*info));
	memcpy(info->name, compartment->name, sizeof(info->name));
	info->flags = compartment->flags;
	info->on_missed = compartment->on_missed;
	info->committed = compartment->live;
	info->sites = compartment->site_count;
	info->programs = compartment->program_count;
	for (i = 0; i < compartment->site_count; i++) {
		u8 mode = compartment->sites[i]->mode;

		info->skip += mode == O2C_MODE_SKIP;
		info->poison += mode == O2C_MODE_POISON;
		info->observe += mode == O2C_MODE_OBSERVE;
		sum(compartment, i, &total);
		info->hits += total.hits;
		info->denied += total.denied;
		info->missed += total.missed;
		info->errors += total.errors;
	}
	info->killed = atomic64_read(&compartment->killed);
	info->tracepoints = compartment->hook_count;
	info->kills_lost = atomic64_read(&compartment->kills_lost);
}
