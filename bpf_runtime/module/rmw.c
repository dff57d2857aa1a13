// SPDX-License-Identifier: GPL-2.0-only
/*
 * Denied read-modify-write instructions: the write is lost, everything else happens.
 *
 * Registers and flags become what the instruction would have made them from the memory as it is; only the memory
 * keeps its value. A loop such as `do { new = f(old); } while (!try_cmpxchg(p, &old, new))` therefore ends as it
 * would have. Memory that cannot be read counts as zero, and for cmpxchg as the expected value (it succeeds).
 */
#include <linux/percpu.h>
#include <linux/uaccess.h>

#include "internal.h"

#define ARITHMETIC_FLAGS (X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | \
			  X86_EFLAGS_SF | X86_EFLAGS_OF)

static u64 size_mask(unsigned int size)
{
	return size >= 8 ? ~0ULL : (1ULL << (8 * size)) - 1;
}

static u64 read_register(const struct o2c_insn *insn, struct pt_regs *regs, u8 number)
{
	u64 value = *o2c_register(regs, number);

	if (insn->source_high && number == insn->source)
		value >>= 8;
	return value & size_mask(insn->size);
}

static void write_register(const struct o2c_insn *insn, struct pt_regs *regs, u8 number, u64 value)
{
	unsigned long *reg = o2c_register(regs, number);
	u64 mask = size_mask(insn->size);

	if (insn->size == 4)
		*reg = (u32)value;	/* the upper half is cleared */
	else if (insn->source_high && number == insn->source)
		*reg = (*reg & ~0xff00ULL) | ((value & 0xff) << 8);
	else
		*reg = (*reg & ~mask) | (value & mask);
}

static unsigned long effective_address(const struct o2c_insn *insn, struct pt_regs *regs, unsigned long next)
{
	unsigned long address = (long)insn->displacement;

	if (insn->base == O2C_REG_RIP)
		address += next;
	else if (insn->base != O2C_REG_NONE)
		address += *o2c_register(regs, insn->base);
	if (insn->index != O2C_REG_NONE)
		address += *o2c_register(regs, insn->index) * insn->scale;
	if (insn->segment == O2C_SEG_GS)
		address += per_cpu_offset(smp_processor_id());
	return address;
}

/*
 * One instruction of two operands on a local copy, for its flags: `carry` goes in, all arithmetic flags come out.
 */
#define RUN_BINARY(name, type, constraint)							\
	({											\
		type _to = (type)to, _from = (type)from;					\
		unsigned long _flags;								\
												\
		asm volatile("bt $0, %[carry]\n\t"						\
			     name " %[from], %[to]\n\t"						\
			     "pushfq\n\t"							\
			     "popq %[flags]"							\
			     : [to] "+" constraint(_to), [flags] "=&r"(_flags)			\
			     : [from] constraint(_from), [carry] "r"(carry)			\
			     : "cc", "memory");							\
		*flags_out = _flags;								\
		(u64)_to;									\
	})

#define RUN_BINARY_SIZES(name)									\
	({											\
		u64 _result = 0;								\
												\
		switch (size) {									\
		case 1:										\
			_result = RUN_BINARY(name "b", u8, "q");				\
			break;									\
		case 2:										\
			_result = RUN_BINARY(name "w", u16, "r");				\
			break;									\
		case 4:										\
			_result = RUN_BINARY(name "l", u32, "r");				\
			break;									\
		case 8:										\
			_result = RUN_BINARY(name "q", u64, "r");				\
			break;									\
		}										\
		_result;									\
	})

static u64 run_alu(u8 operation, unsigned int size, u64 to, u64 from, u64 carry, unsigned long *flags_out)
{
	switch (operation) {
	case 0:
		return RUN_BINARY_SIZES("add");
	case 1:
		return RUN_BINARY_SIZES("or");
	case 2:
		return RUN_BINARY_SIZES("adc");
	case 3:
		return RUN_BINARY_SIZES("sbb");
	case 4:
		return RUN_BINARY_SIZES("and");
	case 5:
		return RUN_BINARY_SIZES("sub");
	default:
		return RUN_BINARY_SIZES("xor");
	}
}

#define RUN_SHIFT(name, type, constraint)							\
	do {											\
		type _to = (type)to;								\
												\
		asm volatile("bt $0, %[carry]\n\t"						\
			     name " %%cl, %[to]\n\t"						\
			     "pushfq\n\t"							\
			     "popq %[flags]"							\
			     : [to] "+" constraint(_to), [flags] "=&r"(*flags_out)		\
			     : "c"((u8)count), [carry] "r"(carry)				\
			     : "cc", "memory");							\
	} while (0)

#define RUN_SHIFT_SIZES(name)									\
	do {											\
		switch (size) {									\
		case 1:										\
			RUN_SHIFT(name "b", u8, "q");						\
			break;									\
		case 2:										\
			RUN_SHIFT(name "w", u16, "r");						\
			break;									\
		case 4:										\
			RUN_SHIFT(name "l", u32, "r");						\
			break;									\
		case 8:										\
			RUN_SHIFT(name "q", u64, "r");						\
			break;									\
		}										\
	} while (0)

static void run_shift(u8 operation, unsigned int size, u64 to, u64 count, u64 carry, unsigned long *flags_out)
{
	switch (operation) {
	case 0:
		RUN_SHIFT_SIZES("rol");
		break;
	case 1:
		RUN_SHIFT_SIZES("ror");
		break;
	case 2:
		RUN_SHIFT_SIZES("rcl");
		break;
	case 3:
		RUN_SHIFT_SIZES("rcr");
		break;
	case 5:
		RUN_SHIFT_SIZES("shr");
		break;
	case 7:
		RUN_SHIFT_SIZES("sar");
		break;
	default:
		RUN_SHIFT_SIZES("shl");
		break;
	}
}

static void merge_flags(struct pt_regs *regs, unsigned long flags, unsigned long which)
{
	regs->flags = (regs->flags & ~which) | (flags & which);
}

static void lost_unary(const struct o2c_insn *insn, struct pt_regs *regs, u64 old)
{
	unsigned long flags = 0;

	switch (insn->operation) {
	case O2C_INC:
		run_alu(0, insn->size, old, 1, 0, &flags);
		merge_flags(regs, flags, ARITHMETIC_FLAGS & ~X86_EFLAGS_CF);
		break;
	case O2C_DEC:
		run_alu(5, insn->size, old, 1, 0, &flags);
		merge_flags(regs, flags, ARITHMETIC_FLAGS & ~X86_EFLAGS_CF);
		break;
	case O2C_NEG:
		run_alu(5, insn->size, 0, old, 0, &flags);
		merge_flags(regs, flags, ARITHMETIC_FLAGS);
		break;
	}
}

static void lost_shift(const struct o2c_insn *insn, struct pt_regs *regs, u64 old)
{
	u64 count = insn->source == O2C_REG_NONE ? insn->immediate : *o2c_register(regs, insn->source);
	unsigned long flags = regs->flags;
	unsigned long which = ARITHMETIC_FLAGS;

	count &= insn->size == 8 ? 63 : 31;
	if (!count)
		return;
	if (insn->operation < 4)	/* rotations leave the others alone */
		which = X86_EFLAGS_CF | X86_EFLAGS_OF;
	run_shift(insn->operation, insn->size, old, count, regs->flags & X86_EFLAGS_CF, &flags);
	merge_flags(regs, flags, which);
}

static void lost_bit(const struct o2c_insn *insn, struct pt_regs *regs, unsigned long address)
{
	unsigned int bits = insn->size * 8;
	s64 offset = insn->immediate;
	u64 old = 0;

	if (insn->source != O2C_REG_NONE) {
		/* a register's bit offset is signed and reaches past the operand */
		offset = (s64)(read_register(insn, regs, insn->source) << (64 - bits)) >> (64 - bits);
		address += (offset >> (insn->size == 8 ? 6 : insn->size == 4 ? 5 : 4)) * insn->size;
	}
	if (copy_from_kernel_nofault(&old, (void *)address, insn->size))
		old = 0;
	merge_flags(regs, (old >> (offset & (bits - 1))) & 1 ? X86_EFLAGS_CF : 0, X86_EFLAGS_CF);
}

static void lost_cmpxchg(const struct o2c_insn *insn, struct pt_regs *regs, u64 old, bool readable)
{
	u64 expected = regs->ax & size_mask(insn->size);
	struct o2c_insn accumulator = *insn;
	unsigned long flags = 0;

	if (!readable)
		old = expected;
	run_alu(5, insn->size, expected, old, 0, &flags);
	merge_flags(regs, flags, ARITHMETIC_FLAGS);
	if (old != expected) {
		accumulator.source_high = false;
		write_register(&accumulator, regs, 0, old);
	}
}

static void lost_cmpxchg_wide(const struct o2c_insn *insn, struct pt_regs *regs, unsigned long address)
{
	unsigned int half = insn->size / 2;
	u64 mask = size_mask(half);
	u64 old[2] = {};
	bool equal = true;

	if (!copy_from_kernel_nofault(&old[0], (void *)address, half) &&
	    !copy_from_kernel_nofault(&old[1], (void *)(address + half), half))
		equal = old[0] == (regs->ax & mask) && old[1] == (regs->dx & mask);
	merge_flags(regs, equal ? X86_EFLAGS_ZF : 0, X86_EFLAGS_ZF);
	if (!equal) {
		regs->ax = old[0];
		regs->dx = old[1];
	}
}

/* `next` is the address of the next instruction; regs->ip is left alone. Runs with interrupts off. */
void o2c_lost_write(const struct o2c_insn *insn, struct pt_regs *regs, unsigned long next)
{
	unsigned long address = effective_address(insn, regs, next);
	unsigned long flags = 0;
	bool readable = true;
	u64 old = 0, from;

	if (insn->form == O2C_FORM_BIT) {
		lost_bit(insn, regs, address);
		return;
	}
	if (insn->form == O2C_FORM_CMPXCHG_WIDE) {
		lost_cmpxchg_wide(insn, regs, address);
		return;
	}
	if (copy_from_kernel_nofault(&old, (void *)address, insn->size)) {
		readable = false;
		old = 0;
	}
	switch (insn->form) {
	case O2C_FORM_ALU:
		from = insn->source == O2C_REG_NONE ? insn->immediate : read_register(insn, regs, insn->source);
		run_alu(insn->operation, insn->size, old, from, regs->flags & X86_EFLAGS_CF, &flags);
		merge_flags(regs, flags, ARITHMETIC_FLAGS);
		break;
	case O2C_FORM_UNARY:
		lost_unary(insn, regs, old);
		break;
	case O2C_FORM_SHIFT:
		lost_shift(insn, regs, old);
		break;
	case O2C_FORM_XCHG:
		write_register(insn, regs, insn->source, old);
		break;
	case O2C_FORM_XADD:
		from = read_register(insn, regs, insn->source);
		run_alu(0, insn->size, old, from, 0, &flags);
		merge_flags(regs, flags, ARITHMETIC_FLAGS);
		write_register(insn, regs, insn->source, old);
		break;
	case O2C_FORM_CMPXCHG:
		lost_cmpxchg(insn, regs, old, readable);
		break;
	default:
		break;
	}
}
