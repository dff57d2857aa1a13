// SPDX-License-Identifier: GPL-2.0-only
/*
 * The modules that sites lie in: finding, pinning, and what the kernel's optimizer may not read.
 *
 * find_module() and __module_address() are not exported. Every module hangs on one list of which THIS_MODULE is
 * a member; the list's head is the only element that does not lie in the module area.
 */
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "internal.h"

static bool is_module(const struct module *module)
{
	return o2c_in_modules((unsigned long)module);
}

/* Walks all modules but our own; the caller holds the RCU read lock. */
#define for_each_other_module(module)							\
	for (module = list_entry_rcu(THIS_MODULE->list.next, struct module, list);	\
	     module != THIS_MODULE;							\
	     module = list_entry_rcu(module->list.next, struct module, list))		\
		if (is_module(module))

/* Takes a reference. Returns -ENOENT when it is not there, -EAGAIN while it is loading or unloading. */
static int get_live(struct module *module)
{
	if (READ_ONCE(module->state) != MODULE_STATE_LIVE || !try_module_get(module))
		return -EAGAIN;
	return 0;
}

struct module *o2c_module_by_name(const char *name)
{
	struct module *module, *found = ERR_PTR(-ENOENT);
	int ret;

	rcu_read_lock_sched();
	for_each_other_module(module) {
		if (strcmp(module->name, name))
			continue;
		ret = get_live(module);
		found = ret ? ERR_PTR(ret) : module;
		break;
	}
	rcu_read_unlock_sched();
	return found;
}

/*
 * Finds and pins the module that holds `address`. Returns 0 with *out NULL for the kernel's own text, whose
 * bounds are kprobes' to check.
 */
int o2c_module_by_address(unsigned long address, struct module **out)
{
	struct module *module;
	int ret = 0;

	*out = NULL;
	if (within_module(address, THIS_MODULE))
		return -EINVAL;
	if (!o2c_in_modules(address))
		return 0;
	rcu_read_lock_sched();
	for_each_other_module(module) {
		if (!within_module(address, module))
			continue;
		ret = get_live(module);
		if (!ret)
			*out = module;
		goto out;
	}
	ret = -ENOENT;
out:
	rcu_read_unlock_sched();
	return ret;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
/*
 * Before it optimizes, the kernel decodes the whole function that holds the probe (can_optimize() in
 * arch/x86/kernel/kprobes/opt.c), and takes a module's last function to reach to the end of its text area. That
 * area has been a mapping of its own since 6.4: an instruction that begins in its last bytes is read past the end
 * and the kernel faults. Behind the last function are zeros, which decode as instructions of two bytes: an odd
 * number of them is what goes wrong.
 */
bool o2c_optimizer_overruns(struct module *module, unsigned long address)
{
	unsigned long end, begins = 0, symbol_end = 0;
	struct mod_kallsyms *symbols;
	struct module_memory *text = NULL;
	bool overruns = false;
	unsigned int i;
	u8 byte;

	for_each_mod_mem_type(type)
		if (mod_mem_type_is_text(type) && within_module_mem_type(address, module, type))
			text = &module->mem[type];
	if (!text)
		return true;
	end = (unsigned long)text->base + text->size;
	rcu_read_lock_sched();
	symbols = rcu_dereference_sched(module->kallsyms);
	for (i = 1; symbols && i < symbols->num_symtab; i++) {
		const Elf_Sym *symbol = &symbols->symtab[i];

		if (symbol->st_shndx == SHN_UNDEF || !symbols->strtab[symbol->st_name])
			continue;
		if (symbol->st_value > address && symbol->st_value < end)
			goto out;	/* another function follows: what lies between is decodable */
		if (symbol->st_value > address || symbol->st_value < begins ||
		    symbol->st_value < (unsigned long)text->base)
			continue;
		if (symbol->st_value > begins)
			symbol_end = 0;
		begins = symbol->st_value;
		symbol_end = max_t(unsigned long, symbol_end, begins + symbol->st_size);
	}
	overruns = !begins || symbol_end <= address || symbol_end > end || (end - symbol_end) % 2;
	for (; !overruns && symbol_end < end; symbol_end++)
		overruns = copy_from_kernel_nofault(&byte, (void *)symbol_end, 1) || byte;
out:
	rcu_read_unlock_sched();
	return overruns;
}
#else
/* Up to 6.3 read-only data follows the text in the same mapping. */
bool o2c_optimizer_overruns(struct module *module, unsigned long address)
{
	return false;
}
#endif

/* Keeps the caller's reference for as long as the compartment lives, or drops it when one is kept already. */
int o2c_pin(struct o2c_compartment *compartment, struct module *module)
{
	u32 i;
	int ret;

	for (i = 0; i < compartment->target_count; i++) {
		if (compartment->targets[i] == module) {
			module_put(module);
			return 0;
		}
	}
	ret = o2c_grow(&compartment->targets, &compartment->target_room, compartment->target_count, 4096);
	if (ret) {
		module_put(module);
		return ret;
	}
	compartment->targets[compartment->target_count++] = module;
	return 0;
}
