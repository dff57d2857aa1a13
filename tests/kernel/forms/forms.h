/* SPDX-License-Identifier: GPL-2.0-only */
/* Interface of the test module: single instructions, run with given registers, flags and memory. */
#ifndef O2C_FORMS_H
#define O2C_FORMS_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define FORM_BUFFER 512

struct form_info {
	__u32 number;		/* in; ENOENT behind the last */
	__u32 length;
	__u64 address;
	__u64 function;
	__u64 target;		/* what call and jump forms go to */
	char name[40];
	__u8 bytes[16];
};

enum form_context { FORM_PROCESS, FORM_SOFTIRQ, FORM_HARDIRQ };

struct form_run {
	__u32 number;
	__u32 context;
	__u64 registers[16];	/* in and out, by hardware number; that of rsp is a stack slot's at 16(%rsp) */
	__u64 flags;		/* in and out */
	__u64 pointers;		/* bit n: register n is an offset into the buffer */
	__u64 per_cpu;		/* in and out: the per-CPU variable of the gs form */
	__u64 calls;		/* out: how often the target was entered */
	__u8 vector[16];	/* xmm0, in process context */
	__u8 buffer[FORM_BUFFER];
};

struct form_hammer {
	__u32 number;
	__u32 milliseconds;
	__u64 registers[16];
	__u64 pointers;
	__u64 runs[3];		/* out, by context */
	__u64 written;		/* out: runs after which the buffer was changed */
	__u64 wrong;		/* out: runs with another register than r11 changed, or that did not go on */
};

/* form_alloc.operation; those before FORM_KFREE are functions with one call or tail jump to an allocation function */
enum form_operation {
	FORM_KMALLOC, FORM_KMALLOC_TAIL, FORM_KMALLOC_CONSTANT, FORM_CACHE_ALLOC, FORM_CACHE_FREE, FORM_KREALLOC, FORM_KMEMDUP,
	FORM_KVMALLOC, FORM_PAGES, FORM_PAGES_ADDRESS, FORM_ZEROED_PAGE, FORM_BULK_ALLOC, FORM_BULK_FREE,
	FORM_KFREE, FORM_KERNEL_KMALLOC, FORM_CHURN, FORM_KVFREE, FORM_FREE_PAGES, FORM_KFREE_RCU, FORM_CHURN_PAGES,
	FORM_PEEK, FORM_KFREE_THERE,
};

struct form_alloc {
	__u32 operation;
	__u32 reserved;
	__u64 size;		/* in: bytes, or the order of pages, or how many; out, of bulk: how many */
	__u64 pointer;		/* in: object; for churn: how often */
	__u64 result;
	__u64 frame;		/* out: page frame of the result */
	__u64 function;		/* out */
	__u8 code[128];		/* out: of the function */
	__u8 data[64];		/* in: written to the object before; out: read from the result */
};

#define FORM_IOC_ALLOC	_IOWR('F', 3, struct form_alloc)
#define FORM_IOC_INFO	_IOWR('F', 0, struct form_info)
#define FORM_IOC_RUN	_IOWR('F', 1, struct form_run)
#define FORM_IOC_HAMMER	_IOWR('F', 2, struct form_hammer)

#endif
