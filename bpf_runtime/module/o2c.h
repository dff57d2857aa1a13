/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The interface between o2c.ko and user space: one device, /dev/o2c, a fixed set of ioctls.
 *
 * Every structure has a fixed size and no hidden padding; reserved members must be zero. The order of use is
 * CREATE, PROGRAM (once a program), TRACEPOINT (once a hook), ATTACH (once a batch of sites), COMMIT; until COMMIT nothing is decided and
 * nothing is denied. docs/enforcement.md explains the rules.
 */
#ifndef O2C_H
#define O2C_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define O2C_ABI_VERSION		1
#define O2C_DEVICE		"/dev/o2c"
#define O2C_NAME_LEN		32
#define O2C_MODULE_LEN		64
#define O2C_INSN_MAX		16
#define O2C_MAX_SITES		65536
#define O2C_MAX_BATCH		4096
#define O2C_MAX_PROGRAMS	65536

/* What a BPF program returns. Anything else lets the instruction run and is counted as an error. */
enum o2c_verdict {
	O2C_ALLOW = 0,
	O2C_DENY = 1,
};

enum o2c_kind {
	O2C_KIND_STORE = 1,	/* writes memory, reads none: mov, setcc, SSE stores */
	O2C_KIND_RMW,		/* reads and writes one memory operand: add, xchg, lock cmpxchg, bts ... */
	O2C_KIND_STRING,	/* movs, stos, with or without rep */
	O2C_KIND_ICALL,		/* call through a register, directly or by a thunk */
	O2C_KIND_IJUMP,		/* jump through a register, directly or by a thunk; deny needs O2C_SITE_TAIL */
	O2C_KIND_CALL,		/* direct call: a gate */
	O2C_KIND_TAIL_JUMP,	/* direct jump out of the function: a gate in tail position */
	O2C_KIND_ENTRY,		/* function entry: the verdict is not acted upon */
	O2C_KIND_RETURN,	/* function return: the verdict is not acted upon */
	O2C_KIND_OBSERVE,	/* any instruction: the verdict is not acted upon */
	O2C_KIND_HEAP,		/* direct call or tail jump to an allocation function: goes to the private heap */
};

/*
 * What the function at a O2C_KIND_HEAP site does; in o2c_site.size. No program runs there (program is ~0). `base` is
 * the register that holds the size, or O2C_REG_NONE: it is `displacement`; `index` is the register with the GFP flags.
 */
enum o2c_heap_op {
	O2C_HEAP_ALLOC = 1,		/* kmalloc and its kin */
	O2C_HEAP_ALLOC_CACHE,		/* base: the register with the cache, whose objects' size it is */
	O2C_HEAP_FREE_CACHE,		/* kmem_cache_free(cache, object in rsi) */
	O2C_HEAP_REALLOC,		/* krealloc(object in rdi, ...) */
	O2C_HEAP_DUPLICATE,		/* kmemdup(source in rdi, ...) */
	O2C_HEAP_KVALLOC,		/* kvmalloc and its kin */
	O2C_HEAP_PAGES,			/* alloc_pages and its kin; base: the order, here and in the next */
	O2C_HEAP_PAGES_ADDRESS,		/* __get_free_pages; get_zeroed_page with O2C_REG_NONE, 0 and scale = 1 */
	O2C_HEAP_BULK_ALLOC,		/* kmem_cache_alloc_bulk(cache in base, flags, count in rdx, array in rcx) */
	O2C_HEAP_BULK_FREE,		/* kmem_cache_free_bulk(cache, count in rsi, array in rdx) */
};

enum o2c_action {
	O2C_ACTION_REPORT = 0,	/* count the denial, let the instruction run */
	O2C_ACTION_DENY,
	O2C_ACTION_KILL,	/* deny, and SIGKILL the task when in the context of an ordinary one */
	O2C_ACTION_PANIC,
};

/* How a site is carried out; chosen when it is attached and never changed afterwards. */
enum o2c_mode {
	O2C_MODE_OBSERVE = 0,
	O2C_MODE_SKIP,		/* int3, deny moves the instruction pointer */
	O2C_MODE_POISON,	/* may be a jump, deny makes the store fault */
};

/* What is at the address now. */
enum o2c_state {
	O2C_STATE_UNARMED = 0,	/* neither: kprobes were switched off globally, or ftrace carries the probe */
	O2C_STATE_INT3,
	O2C_STATE_JUMP,
};

enum o2c_reason {
	O2C_REASON_NONE = 0,
	O2C_REASON_RESERVED,		/* a reserved member is not zero, or a value is out of range */
	O2C_REASON_PROGRAM,		/* no kprobe program of that index */
	O2C_REASON_ADDRESS,		/* not kernel text that can be read */
	O2C_REASON_MODULE,		/* the module is not there or going away */
	O2C_REASON_BYTES,		/* the text is not what the compiler saw */
	O2C_REASON_FORM,		/* an instruction that this module cannot deny */
	O2C_REASON_KIND,		/* the instruction is not of the stated kind */
	O2C_REASON_OPERAND,		/* length or operand differ from the instruction's */
	O2C_REASON_TAIL,		/* deny of a jump that is not in tail position */
	O2C_REASON_LAST_FUNCTION,	/* the kernel's probe optimizer would read past the module's text */
	O2C_REASON_PROBE,		/* kprobes refused the address */
	O2C_REASON_FTRACE,		/* an ftrace location can only be observed */
	O2C_REASON_LIMIT,
	O2C_REASON_HEAP,		/* no private heap was asked for, or an unknown operation */
};

/* Hardware numbers: rax rcx rdx rbx rsp rbp rsi rdi r8 ... r15 */
#define O2C_REG_RIP	16
#define O2C_REG_NONE	0xff

/* o2c_create.flags */
#define O2C_CREATE_KEEP		(1u << 0)	/* closing the file leaves a committed compartment in force */
#define O2C_CREATE_STRICT	(1u << 1)	/* no jump-optimized site: int3 only, also where nothing is denied */

/* o2c_create.on_missed */
#define O2C_MISSED_REPORT	0
#define O2C_MISSED_KILL		1

struct o2c_version {
	__u32 abi;
	__u32 site_size;
	__u32 max_batch;
	__u32 features;
};

/* o2c_version.features */
#define O2C_FEATURE_DRAIN	(1u << 0)
#define O2C_FEATURE_KVMALLOC	(1u << 1)	/* O2C_HEAP_KVALLOC */
#define O2C_FEATURE_PAGES	(1u << 2)	/* O2C_HEAP_PAGES, O2C_HEAP_PAGES_ADDRESS */
#define O2C_FEATURE_VMALLOC	(1u << 3)	/* not there: the shadow knows no vmalloc addresses */
#define O2C_FEATURE_BULK	(1u << 4)	/* O2C_HEAP_BULK_ALLOC, O2C_HEAP_BULK_FREE */
#define O2C_FEATURE_LARGE	(1u << 5)	/* kmalloc of more than 8192 bytes */
#define O2C_FEATURE_TRACEPOINT	(1u << 6)	/* O2C_IOC_TRACEPOINT */
#define O2C_FEATURE_FREE_BULK	(1u << 7)	/* the same at kmem_cache_free_bulk */

struct o2c_create {
	__u32 flags;
	__u32 on_missed;
	char name[O2C_NAME_LEN];
	char module[O2C_MODULE_LEN];	/* empty: none is pinned beforehand */
	__u64 reserved;
};

struct o2c_open {
	char name[O2C_NAME_LEN];
};

struct o2c_program {
	__s32 fd;		/* or -1: `path` is that of an object in bpffs */
	__u32 index;		/* out */
	__u64 path;		/* pointer to a string of at most PATH_MAX bytes */
	__u64 reserved;
};

/* o2c_site.flags */
#define O2C_SITE_STRICT		(1u << 0)
#define O2C_SITE_TAIL		(1u << 1)	/* the stack pointer is at the return address here */

struct o2c_site {
	__u64 address;
	__u64 cookie;
	__s64 deny_result;	/* rax after a denied call or tail jump */
	__u32 program;
	__u8 kind;
	__u8 action;
	__u8 flags;
	__u8 length;		/* of the instruction; 0 for entry, return, observe */
	__u8 base;		/* memory operand; for calls and jumps: O2C_REG_NONE */
	__u8 index;
	__u8 scale;		/* 1, 2, 4, 8; 0 when there is no index */
	__u8 size;		/* bytes that are written (by one iteration of rep) */
	__s32 displacement;	/* of a return, 0 or: bytes to the instruction behind ftrace's place, where a breakpoint starts it */
	__u8 bytes[O2C_INSN_MAX];
	__u8 mask[O2C_INSN_MAX];	/* 0xff: compare, 0: do not */
	__u32 line;		/* of the policy, for the message of a panic; 0: not known */
	__u32 reserved;
};

struct o2c_result {
	__s32 error;		/* 0, or an errno */
	__u32 reason;		/* enum o2c_reason */
	__u32 index;		/* in the compartment; ~0 when refused */
	__u32 mode;
};

/* o2c_attach.flags */
#define O2C_ATTACH_BEST_EFFORT	(1u << 0)	/* go on after a refused site; results say which */

struct o2c_attach {
	__u64 sites;		/* pointer to struct o2c_site[count] */
	__u64 results;		/* pointer to struct o2c_result[count], or 0 */
	__u32 count;
	__u32 site_size;	/* sizeof(struct o2c_site) */
	__u32 flags;
	__u32 attached;		/* out */
	__u32 failed;		/* out: position of the first refused site, ~0 when none */
	__u32 reason;		/* out: why */
};

struct o2c_site_stats {
	__u64 address;
	__u64 cookie;
	__u64 hits;
	__u64 denied;		/* verdicts "deny", whatever the action */
	__u64 missed;		/* hits since commit for which no check ran */
	__u64 errors;		/* verdicts that are none */
	__u32 index;
	__u8 kind;
	__u8 mode;
	__u8 state;
	__u8 action;
};

struct o2c_stats {
	__u64 buffer;		/* pointer to struct o2c_site_stats[count] */
	__u32 first;
	__u32 count;
	__u32 returned;		/* out */
	__u32 total;		/* out */
};

struct o2c_info {
	char name[O2C_NAME_LEN];
	__u32 flags;
	__u32 on_missed;
	__u32 committed;
	__u32 sites;
	__u32 programs;
	__u32 skip;
	__u32 poison;
	__u32 observe;
	__u64 hits;
	__u64 denied;
	__u64 missed;
	__u64 errors;
	__u64 killed;		/* SIGKILLs sent */
	__u64 kills_lost;	/* kill was asked for outside an ordinary task, or the queue was full: only denied */
	__u32 tracepoints;
	__u32 reserved32;
	__u64 reserved;
};

/*
 * A hook at a tracepoint: a program of type raw tracepoint, which sees the tracepoint's arguments as such a program always
 * does, and runs with interrupts off. Once for each tracepoint and compartment, before COMMIT. It runs at once, and until no site is
 * probed any more. `map` is 0, and the program runs each time, or the id of an array map of one element that a program of
 * the compartment uses. Then the 32-bit words from its byte `offset` on, a multiple of 4, tell when to run it:
 *
 *   kfree, kmem_cache_free	when word (pointer * 0x9e3779b97f4a7c15 mod 2^64) >> 48 of O2C_COUNT_ROWS is not 0
 *   mm_page_free		when word (page frame >> 3) mod O2C_COUNT_ROWS is not 0, and above order 3 each time
 *   mm_page_alloc		when the one word is `value`, which is 0 with the others
 *   percpu_free_percpu		takes no map
 *
 * kmem_cache_free_bulk is a function and no tracepoint, but is asked for and told in the same way: the program is one of type kprobe,
 * sees its arguments (in rdi, rsi and rdx; other registers are 0), and runs when one of the pointers has such a word as for kfree.
 */
#define O2C_COUNT_ROWS		65536

struct o2c_tracepoint {
	char name[O2C_NAME_LEN];
	__u32 program;		/* its index */
	__u32 map;
	__u32 offset;
	__u32 value;
	__u64 reserved;
};

/*
 * A private heap, before the first O2C_KIND_HEAP site. `shadow` is the id of an array map of one element, a byte for each
 * page frame, that a program of the compartment uses. The bytes of the heap's slabs are set to `owner` + k: such a slab
 * consists of naturally aligned slots of 2^k bytes, of which all but the last 8 are the compartment's. The caches are named
 * o2c-<generation>-<bytes of a slot>; somebody must see to it before commit that their slab_size is that number
 * (/sys/kernel/slab/<name>/slab_size). Whole pages (more than 8192 bytes, or asked for as pages) are set to `owner`.
 *
 * A block that others have given back is unmarked within about a second, or when the limit is reached, and freed when no
 * store that was let through to it can still be under way. As much as the limit may wait for that.
 */
#define O2C_OWNER_MAX	240

struct o2c_heap {
	__u32 shadow;
	__u32 owner;		/* 1 to O2C_OWNER_MAX */
	__u64 limit;		/* bytes in slabs and pages */
	__u32 generation;	/* out */
	/*
	 * Of members in struct kmem_cache, from BTF. With 0 the kernel's own allocator serves O2C_HEAP_ALLOC_CACHE, as it does
	 * for caches with a constructor and SLAB_TYPESAFE_BY_RCU.
	 */
	__u16 ctor_offset;
	__u16 flags_offset;
};

struct o2c_heap_stats {
	__u64 bytes;		/* in slabs and pages that are marked */
	__u64 allocations;	/* from the heap, since commit */
	__u64 failures;		/* the limit was reached, or memory ran out */
	__u64 passed;		/* above 4 MiB, unusual flags or cache, draining: left to the kernel's own allocator */
};

/* o2c_drain.flags; 0 only asks */
#define O2C_DRAIN_START		(1u << 0)	/* no new objects in the private heap; all else stays in force */
#define O2C_DRAIN_AUTO		(1u << 1)	/* with START: detach as soon as nothing is left */

enum o2c_drain_state {
	O2C_DRAIN_NOT = 0,
	O2C_DRAIN_GOING_ON,
	O2C_DRAIN_DONE,		/* nothing is left: detaching loses nothing */
};

struct o2c_drain {
	__u32 flags;
	__u32 state;		/* out: enum o2c_drain_state */
	__u64 bytes;		/* out: in blocks with something left in them */
	__u64 reserved[2];
};

#define O2C_IOC_MAGIC		0xc2
#define O2C_IOC_VERSION		_IOR(O2C_IOC_MAGIC, 0, struct o2c_version)
#define O2C_IOC_CREATE		_IOW(O2C_IOC_MAGIC, 1, struct o2c_create)
#define O2C_IOC_OPEN		_IOW(O2C_IOC_MAGIC, 2, struct o2c_open)
#define O2C_IOC_PROGRAM		_IOWR(O2C_IOC_MAGIC, 3, struct o2c_program)
#define O2C_IOC_ATTACH		_IOWR(O2C_IOC_MAGIC, 4, struct o2c_attach)
#define O2C_IOC_COMMIT		_IO(O2C_IOC_MAGIC, 5)
#define O2C_IOC_STATS		_IOWR(O2C_IOC_MAGIC, 6, struct o2c_stats)
#define O2C_IOC_INFO		_IOR(O2C_IOC_MAGIC, 7, struct o2c_info)
#define O2C_IOC_DETACH		_IO(O2C_IOC_MAGIC, 8)
#define O2C_IOC_HEAP		_IOWR(O2C_IOC_MAGIC, 9, struct o2c_heap)
#define O2C_IOC_HEAP_STATS	_IOR(O2C_IOC_MAGIC, 10, struct o2c_heap_stats)
#define O2C_IOC_DRAIN		_IOWR(O2C_IOC_MAGIC, 11, struct o2c_drain)
#define O2C_IOC_TRACEPOINT	_IOW(O2C_IOC_MAGIC, 12, struct o2c_tracepoint)

#endif /* O2C_H */
