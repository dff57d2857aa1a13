// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hooks at tracepoints, and at one function that has none: whoever frees memory, anywhere in the system, ends what was known of it.
 *
 * The kernel runs no program of a raw tracepoint inside itself (__bpf_trace_run() in kernel/trace/bpf_trace.c, 6.1 and 6.12:
 * prog->active), so that what an interrupt frees while the same hook runs on its processor goes unseen. Here a program runs
 * with interrupts off instead, and memory is not freed from NMIs: nothing nests, and nothing goes unseen.
 *
 * Nearly all memory that is freed is none of the compartment's, so the probe itself looks at the hook's word, and goes on to the
 * program only where that says so. This needs no interrupts off: what is freed was known before, or is not known at all.
 */
#include <linux/ftrace.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/version.h>
#include <trace/events/kmem.h>
#include <trace/events/percpu.h>

#include "internal.h"

#define MAX_ARGUMENTS 4
#define ROW_BITS 16		/* log2 of O2C_COUNT_ROWS */
#define BLOCK_BITS 3		/* page frames in a row */
#define GOLDEN_RATIO 0x9e3779b97f4a7c15ULL

struct o2c_hook {
	const u32 *word;	/* the first of a table's, or the only one; NULL: the program always runs */
	u32 value;
	struct bpf_prog *program;
	struct bpf_map *map;	/* that `word` is in, or NULL */
	struct tracepoint *point;	/* NULL: at a function's entry */
	struct ftrace_ops ops;
	const struct kind *kind;
};

static DEFINE_PER_CPU(bool, running);

/* The program has it. What a program frees itself is not its compartment's, and must not call it again. */
static noinline void run_on(const struct o2c_hook *hook, const void *context)
{
	struct bpf_trace_run_ctx run_ctx = {};
	struct bpf_run_ctx *old;
	unsigned long flags;

	local_irq_save(flags);
	if (!__this_cpu_read(running)) {
		__this_cpu_write(running, true);
		rcu_read_lock();
		old = bpf_set_run_ctx(&run_ctx.run_ctx);
		bpf_prog_run(hook->program, context);
		bpf_reset_run_ctx(old);
		rcu_read_unlock();
		__this_cpu_write(running, false);
	}
	local_irq_restore(flags);
}

static noinline void run(const struct o2c_hook *hook, u64 first, u64 second, u64 third, u64 fourth)
{
	u64 arguments[MAX_ARGUMENTS] = { first, second, third, fourth };

	run_on(hook, arguments);
}

/* Whether the program is to be asked about an object: object_row() in o2cc/lower/library/known.ir. */
static __always_inline bool is_known_object(const struct o2c_hook *hook, const void *object)
{
	return !hook->word || READ_ONCE(hook->word[(u64)object * GOLDEN_RATIO >> (64 - ROW_BITS)]);
}

/* The same for pages: frame_row() there. Up to order 3, by its natural alignment, a block lies in one row. */
static __always_inline bool are_known_pages(const struct o2c_hook *hook, const struct page *page, unsigned int order)
{
	return !hook->word || order > BLOCK_BITS ||
	       READ_ONCE(hook->word[page_to_pfn(page) >> BLOCK_BITS & (O2C_COUNT_ROWS - 1)]);
}

static __always_inline bool is_time(const struct o2c_hook *hook)
{
	return !hook->word || READ_ONCE(*hook->word) == hook->value;
}

static void on_kfree(void *data, unsigned long call_site, const void *ptr)
{
	if (unlikely(is_known_object(data, ptr)))
		run(data, call_site, (u64)ptr, 0, 0);
}

static void on_kmem_cache_free(void *data, unsigned long call_site, const void *ptr, const struct kmem_cache *cache)
{
	if (unlikely(is_known_object(data, ptr)))
		run(data, call_site, (u64)ptr, (u64)cache, 0);
}

static void on_mm_page_free(void *data, struct page *page, unsigned int order)
{
	if (unlikely(are_known_pages(data, page, order)))
		run(data, (u64)page, order, 0, 0);
}

static void on_mm_page_alloc(void *data, struct page *page, unsigned int order, gfp_t flags, int migratetype)
{
	if (is_time(data))
		run(data, (u64)page, order, (__force u32)flags, (u32)migratetype);
}

static void on_percpu_free_percpu(void *data, void *base, int offset, void __percpu *ptr)
{
	if (is_time(data))
		run(data, (u64)base, (u32)offset, (__force u64)ptr, 0);
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define ftrace_regs_get_argument(registers, number) regs_get_kernel_argument(&(registers)->regs, number)
#endif

/*
 * kmem_cache_free_bulk(cache, count, objects), mm/slub.c: no tracepoint tells what it frees. Through ftrace, since a kprobe there costs
 * several times as much, and runs nothing while another one's handler does.
 */
static void notrace on_kmem_cache_free_bulk(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
					    struct ftrace_regs *registers)
{
	const struct o2c_hook *hook = container_of(ops, struct o2c_hook, ops);
	size_t count = ftrace_regs_get_argument(registers, 1);
	void **objects = (void **)ftrace_regs_get_argument(registers, 2);
	size_t i;

	for (i = 0; i < count; i++) {
		if (unlikely(is_known_object(hook, objects[i]))) {
			struct pt_regs context = {
				.di = ftrace_regs_get_argument(registers, 0), .si = count, .dx = (u64)objects
			};

			run_on(hook, &context);	/* which looks at all of them */
			return;
		}
	}
}

/* The tracepoints that there are hooks for, and the function, as o2c.h lists them. */
static const struct kind {
	const char *name;
	void *probe;	/* NULL: at the function's entry */
	u32 arguments;
	u32 words;	/* 0: takes none */
	bool by_value;	/* a single word that is compared, not a table of counts */
} kinds[] = {
	{ "kfree", on_kfree, 2, O2C_COUNT_ROWS, false },
	{ "kmem_cache_free", on_kmem_cache_free, 3, O2C_COUNT_ROWS, false },
	{ "mm_page_free", on_mm_page_free, 2, O2C_COUNT_ROWS, false },
	{ "mm_page_alloc", on_mm_page_alloc, 4, 1, true },
	{ "percpu_free_percpu", on_percpu_free_percpu, 3, 0, false },
	{ "kmem_cache_free_bulk", NULL, 0, O2C_COUNT_ROWS, false },
};

/* A probe that does not take what this kernel's tracepoint gives does not compile. */
static void __maybe_unused check_types(void)
{
	check_trace_callback_type_kfree(on_kfree);
	check_trace_callback_type_kmem_cache_free(on_kmem_cache_free);
	check_trace_callback_type_mm_page_free(on_mm_page_free);
	check_trace_callback_type_mm_page_alloc(on_mm_page_alloc);
	check_trace_callback_type_percpu_free_percpu(on_percpu_free_percpu);
	BUILD_BUG_ON(O2C_COUNT_ROWS != 1 << ROW_BITS);
}

static const struct kind *find_kind(const char *name)
{
	unsigned int i;

	if (strnlen(name, O2C_NAME_LEN) == O2C_NAME_LEN)
		return NULL;
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		if (!strcmp(kinds[i].name, name))
			return &kinds[i];
	return NULL;
}

struct search {
	const char *name;
	struct tracepoint *found;
};

static void look_at(struct tracepoint *point, void *data)
{
	struct search *search = data;

	if (!strcmp(point->name, search->name))
		search->found = point;
}

/* The words that decide whether the program runs: in the value of an array map that a program of the compartment uses. */
static int find_words(struct o2c_hook *hook, const struct o2c_compartment *compartment,
		      const struct o2c_tracepoint *request)
{
	u64 size = hook->kind->words * sizeof(u32);
	struct bpf_map *map;
	u8 *values;

	if (!request->map)
		return request->offset || request->value ? -EINVAL : 0;
	if (!size || request->offset % sizeof(u32) || (request->value && !hook->kind->by_value))
		return -EINVAL;
	map = o2c_map_value(compartment, request->map, &values);
	if (IS_ERR(map))
		return PTR_ERR(map);
	hook->map = map;
	if (size > map->value_size || request->offset > map->value_size - size)
		return -EINVAL;
	hook->word = (const u32 *)(values + request->offset);
	hook->value = request->value;
	return 0;
}

/* Whether it is of the type, and reads no more than there is: as in __bpf_probe_register(), kernel/trace/bpf_trace.c, 6.1 and 6.12. */
static bool is_for(const struct kind *kind, const struct bpf_prog *program)
{
	if (!kind->probe)
		return program->type == BPF_PROG_TYPE_KPROBE;
	return program->type == BPF_PROG_TYPE_RAW_TRACEPOINT &&
	       program->aux->max_ctx_offset <= kind->arguments * sizeof(u64);
}

/* Permanent: nobody switches ftrace off meanwhile, and where it is off this fails. */
static int begin(struct o2c_hook *hook)
{
	int ret;

	if (hook->point)
		return tracepoint_probe_register(hook->point, hook->kind->probe, hook);
	hook->ops.func = on_kmem_cache_free_bulk;
	hook->ops.flags = FTRACE_OPS_FL_PERMANENT;
	ret = ftrace_set_filter_ip(&hook->ops, (unsigned long)kmem_cache_free_bulk, 0, 0);
	if (!ret)
		ret = register_ftrace_function(&hook->ops);
	if (ret)
		ftrace_free_filter(&hook->ops);
	return ret;
}

static void end(struct o2c_hook *hook)
{
	if (hook->point) {
		tracepoint_probe_unregister(hook->point, hook->kind->probe, hook);
	} else {
		unregister_ftrace_function(&hook->ops);	/* waits until nobody is in it */
		ftrace_free_filter(&hook->ops);
	}
}

static void let_go(struct o2c_hook *hook)
{
	if (hook->map)
		bpf_map_put(hook->map);
	kfree(hook);
}

/*
 * Puts a hook in its place. It sees what is freed from here on, before any site is attached: a loader notes what is there
 * (network namespaces and their memory), and attaching may take minutes. The caller holds the compartment's lock.
 */
int o2c_hook_add(struct o2c_compartment *compartment, const struct o2c_tracepoint *request)
{
	const struct kind *kind = find_kind(request->name);
	struct search search = { request->name };
	struct bpf_prog *program;
	struct o2c_hook *hook;
	size_t length;
	u32 i;
	int ret;

	if (compartment->live)
		return -EBUSY;
	if (!kind)
		return -ENOENT;
	length = strlen(kind->name);
	if (request->reserved || memchr_inv(request->name + length, 0, sizeof(request->name) - length))
		return -EINVAL;
	for (i = 0; i < compartment->hook_count; i++)
		if (compartment->hooks[i]->kind == kind)
			return -EEXIST;
	if (request->program >= compartment->program_count)
		return -ENOENT;
	program = compartment->programs[request->program];
	if (!is_for(kind, program))
		return -EINVAL;
	if (kind->probe) {
		for_each_kernel_tracepoint(look_at, &search);
		if (!search.found)
			return -ENOENT;
	}
	ret = o2c_grow(&compartment->hooks, &compartment->hook_room, compartment->hook_count, ARRAY_SIZE(kinds));
	if (ret)
		return ret;
	hook = kzalloc(sizeof(*hook), GFP_KERNEL);
	if (!hook)
		return -ENOMEM;
	hook->kind = kind;
	hook->program = program;
	hook->point = search.found;
	ret = find_words(hook, compartment, request);
	if (!ret)
		ret = begin(hook);
	if (ret) {
		let_go(hook);
		return ret;
	}
	compartment->hooks[compartment->hook_count++] = hook;
	return 0;
}

/* Takes all hooks away; nobody is in one of them afterwards. */
void o2c_hooks_end(struct o2c_compartment *compartment)
{
	u32 i;

	for (i = 0; i < compartment->hook_count; i++)
		end(compartment->hooks[i]);
	if (compartment->hook_count)
		tracepoint_synchronize_unregister();
	for (i = 0; i < compartment->hook_count; i++)
		let_go(compartment->hooks[i]);
	kvfree(compartment->hooks);
	compartment->hooks = NULL;
	compartment->hook_count = 0;
	compartment->hook_room = 0;
}
