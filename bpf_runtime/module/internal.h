/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of o2c.ko share. */
#ifndef O2C_INTERNAL_H
#define O2C_INTERNAL_H

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/kprobes.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "o2c.h"

#if !defined(CONFIG_X86_64) || !defined(CONFIG_OPTPROBES) || !defined(CONFIG_KRETPROBES)
#error "o2c needs x86-64 with kprobes, optimized kprobes and kretprobes"
#endif

/* What an instruction does, as far as denying it is concerned. */
enum o2c_form {
	O2C_FORM_STORE,		/* writes memory and changes no register or flag */
	O2C_FORM_STRING,
	O2C_FORM_CALL,
	O2C_FORM_JUMP,
	O2C_FORM_ALU,		/* add or adc sbb and sub xor */
	O2C_FORM_UNARY,		/* inc dec not neg */
	O2C_FORM_SHIFT,
	O2C_FORM_BIT,		/* bts btr btc */
	O2C_FORM_XCHG,
	O2C_FORM_XADD,
	O2C_FORM_CMPXCHG,
	O2C_FORM_CMPXCHG_WIDE,	/* cmpxchg8b, cmpxchg16b */
};

enum o2c_unary { O2C_INC, O2C_DEC, O2C_NOT, O2C_NEG };

enum o2c_segment { O2C_SEG_NONE, O2C_SEG_FS, O2C_SEG_GS };

struct o2c_insn {
	enum o2c_form form;
	u8 length;
	u8 size;		/* of the memory operand in bytes */
	u8 operation;		/* within the form: the number in the opcode or ModRM.reg */
	u8 base;		/* hardware number, O2C_REG_RIP or O2C_REG_NONE */
	u8 index;
	u8 scale;
	u8 segment;
	u8 source;		/* source register, O2C_REG_NONE: the immediate */
	bool source_high;	/* ah, ch, dh or bh */
	bool rep;
	bool moves;		/* movs rather than stos */
	bool indirect;		/* a call or jump through a register */
	s32 displacement;
	s64 immediate;
};

/* Counters of one site on one CPU: written only by probes on that CPU, with interrupts off. */
struct o2c_counters {
	u64 hits;
	u64 denied;
	u64 missed;
	u64 errors;
	u64 missed_seen;
};

struct o2c_compartment;
struct o2c_hook;
struct o2c_private_heap;
struct o2c_probe;

/* A kretprobe that its probe's breakpoint starts, not one of its own; see site.c. */
struct o2c_return {
	struct kretprobe rp;
	struct o2c_probe *probe;
};

/* Marked blocks of pages and the shadow that they are marked in; see owned.c. */
struct o2c_owned {
	struct bpf_map *map;
	u8 *shadow;
	u64 frames;
	u64 limit;		/* bytes in blocks */
	u64 bytes;		/* changed under the lock of `blocks` */
	atomic64_t leaving;	/* bytes in blocks that are unmarked and not freed yet */
	struct xarray blocks;	/* by first frame: the order */
};

struct o2c_probe {
	union {
		struct kprobe kp;
		struct kretprobe rp;
	};
	struct o2c_compartment *compartment;
	struct bpf_prog *program;
	u64 address;
	u64 cookie;
	u32 line;
	s64 deny_result;
	u32 index;
	u8 kind;
	u8 action;
	u8 mode;
	bool is_return;		/* a kretprobe */
	bool strict;		/* never a jump, also where nothing is denied */
	struct o2c_return *back;	/* of a return whose function's breakpoint is behind the entry, or NULL */
	bool joined;		/* there was a probe at the address already */
	unsigned long detour;	/* the copy of the instruction in the optimized probe's buffer, or 0 */
	unsigned long missed_before;
	struct o2c_insn insn;
	struct {
		u8 op;
		u8 size;	/* register, or O2C_REG_NONE: the constant */
		u8 gfp;		/* register */
		bool zero;
		s32 constant;
	} heap;
};

struct o2c_compartment {
	struct kref ref;
	struct list_head list;		/* in the table of compartments; guarded by its mutex */
	struct mutex lock;		/* guards all below but `live` */
	char name[O2C_NAME_LEN];
	u32 flags;
	u32 on_missed;
	unsigned int files;
	bool dead;
	bool live;			/* read by the probes without a lock */
	struct bpf_prog **programs;
	u32 program_count;
	u32 program_room;
	struct o2c_probe **sites;
	u32 site_count;
	u32 site_room;
	struct o2c_hook **hooks;	/* at tracepoints */
	u32 hook_count;
	u32 hook_room;
	struct module **targets;
	u32 target_count;
	u32 target_room;
	struct o2c_counters **rows;	/* by CPU, then by site */
	struct o2c_private_heap *heap;
	bool draining;
	struct delayed_work drain_work;	/* detaches when the heap is empty; holds a reference while pending */
	atomic64_t killed;
	atomic64_t kills_lost;
};

/* compartment.c */
int o2c_compartment_create(const struct o2c_create *request, struct o2c_compartment **out);
struct o2c_compartment *o2c_compartment_open(const char *name);
void o2c_compartment_close(struct o2c_compartment *compartment);
int o2c_compartment_program(struct o2c_compartment *compartment, struct o2c_program *request);
int o2c_compartment_commit(struct o2c_compartment *compartment);
int o2c_compartment_detach(struct o2c_compartment *compartment);
void o2c_compartment_put(struct o2c_compartment *compartment);
int o2c_compartment_stats(struct o2c_compartment *compartment, struct o2c_stats *request);
void o2c_compartment_info(struct o2c_compartment *compartment, struct o2c_info *info);
int o2c_grow(void *array, u32 *room, u32 count, u32 limit);

/* site.c */
int o2c_attach(struct o2c_compartment *compartment, struct o2c_attach *request);
void o2c_unregister(struct o2c_compartment *compartment, u32 first);
bool o2c_unregistered(const struct kprobe *kp);
u64 o2c_nmissed(const struct o2c_probe *probe);

/* text.c: what the text was before anybody's probes of ours */
int o2c_text_read(unsigned long address, u8 *bytes, unsigned int length);
int o2c_text_hold(unsigned long address);
void o2c_text_release(unsigned long address);
bool o2c_text_restored(unsigned long address);
unsigned int o2c_ftrace_entry(unsigned long address);

/* lookup.c: what the kernel asks for at each instruction while sites are attached */
bool o2c_lookup_begin(void);
void o2c_lookup_prepare(unsigned long address);
void o2c_lookup_end(void);
void o2c_lookup_init(void);

/* target.c */
static inline bool o2c_in_modules(unsigned long address)
{
	return address >= MODULES_VADDR && address < MODULES_END;
}

struct module *o2c_module_by_name(const char *name);
int o2c_module_by_address(unsigned long address, struct module **out);
bool o2c_optimizer_overruns(struct module *module, unsigned long address);
int o2c_pin(struct o2c_compartment *compartment, struct module *module);

/* decode.c */
int o2c_decode(const u8 *bytes, unsigned int available, struct o2c_insn *insn);

/* probe.c */
int o2c_pre_handler(struct kprobe *kp, struct pt_regs *regs);
void o2c_post_handler(struct kprobe *kp, struct pt_regs *regs, unsigned long flags);
int o2c_return_handler(struct kretprobe_instance *instance, struct pt_regs *regs);
int o2c_back_handler(struct kretprobe_instance *instance, struct pt_regs *regs);
int o2c_start_return(struct kprobe *kp, struct pt_regs *regs);
bool o2c_in_detour(const struct pt_regs *regs);

/* skip.c */
unsigned long *o2c_register(struct pt_regs *regs, u8 number);
void o2c_skip(const struct o2c_probe *probe, struct pt_regs *regs);

/* rmw.c */
void o2c_lost_write(const struct o2c_insn *insn, struct pt_regs *regs, unsigned long next);

/* poison.c */
bool o2c_can_poison(const struct o2c_insn *insn);
unsigned long o2c_find_detour(const struct kprobe *kp, unsigned int length);
bool o2c_poison(const struct o2c_probe *probe, struct pt_regs *regs);
bool o2c_poison_pending(const struct pt_regs *regs);
int o2c_poison_init(void);
void o2c_poison_exit(void);

/* drain.c */
int o2c_drain(struct o2c_compartment *compartment, struct o2c_drain *request);
void o2c_drain_prepare(struct o2c_compartment *compartment);
void o2c_drain_cancel(struct o2c_compartment *compartment);
int o2c_drain_init(void);
void o2c_drain_exit(void);

/* tracepoint.c */
int o2c_hook_add(struct o2c_compartment *compartment, const struct o2c_tracepoint *request);
void o2c_hooks_end(struct o2c_compartment *compartment);

/* owned.c */
struct bpf_map *o2c_map_value(const struct o2c_compartment *compartment, u32 id, u8 **value);
int o2c_owned_init(struct o2c_owned *owned, const struct o2c_compartment *compartment, u32 id, u64 limit);
bool o2c_owned_add(struct o2c_owned *owned, struct page *head, u8 value);
bool o2c_owned_has(const struct o2c_owned *owned, const struct page *page, u8 value);
bool o2c_owned_reclaim(struct o2c_owned *owned);
void o2c_owned_clear(struct o2c_owned *owned);

/* heap.c */
int o2c_heap_create(struct o2c_compartment *compartment, struct o2c_heap *request);
void o2c_heap_close(struct o2c_private_heap *heap);
u64 o2c_heap_remaining(struct o2c_private_heap *heap);
void o2c_heap_destroy(struct o2c_private_heap *heap);
void o2c_heap_stats(const struct o2c_private_heap *heap, struct o2c_heap_stats *stats);
bool o2c_heap_redirect(const struct o2c_probe *probe, struct pt_regs *regs);
void o2c_heap_exit(void);

/* kill.c */
void o2c_kill(struct o2c_compartment *compartment, bool from_int3);
void o2c_kill_init(void);
void o2c_kill_exit(void);

#endif /* O2C_INTERNAL_H */
