// SPDX-License-Identifier: GPL-2.0-only
/*
 * Deny at skip sites: the registers become those after the instruction, without its effect on memory or control.
 *
 * Only at breakpoints, where the instruction pointer and the stack pointer that a handler leaves are used; never
 * in the detour of an optimized probe, which ignores both.
 */
#include <linux/uaccess.h>

#include "internal.h"

/* The saved register of a hardware number (0 to 15). */
unsigned long *o2c_register(struct pt_regs *regs, u8 number)
{
	switch (number & 15) {
	case 0: return &regs->ax;
	case 1: return &regs->cx;
	case 2: return &regs->dx;
	case 3: return &regs->bx;
	case 4: return &regs->sp;
	case 5: return &regs->bp;
	case 6: return &regs->si;
	case 7: return &regs->di;
	case 8: return &regs->r8;
	case 9: return &regs->r9;
	case 10: return &regs->r10;
	case 11: return &regs->r11;
	case 12: return &regs->r12;
	case 13: return &regs->r13;
	case 14: return &regs->r14;
	default: return &regs->r15;
	}
}
NOKPROBE_SYMBOL(o2c_register);

/* As after completion: the count is used up, the pointers have moved over what was not written. */
static void skip_string(const struct o2c_insn *insn, struct pt_regs *regs)
{
	unsigned long step = (insn->rep ? regs->cx : 1) * insn->size;

	if (regs->flags & X86_EFLAGS_DF)
		step = -step;
	if (insn->rep)
		regs->cx = 0;
	regs->di += step;
	if (insn->moves)
		regs->si += step;
}
NOKPROBE_SYMBOL(skip_string);

void o2c_skip(const struct o2c_probe *probe, struct pt_regs *regs)
{
	const struct o2c_insn *insn = &probe->insn;
	unsigned long next = (unsigned long)probe->kp.addr + insn->length;

	switch (insn->form) {
	case O2C_FORM_STORE:
		break;
	case O2C_FORM_STRING:
		skip_string(insn, regs);
		break;
	case O2C_FORM_CALL:
		regs->ax = probe->deny_result;
		break;
	case O2C_FORM_JUMP:
		/* in tail position: what lies on the stack is the return address */
		regs->ax = probe->deny_result;
		next = *(unsigned long *)regs->sp;
		regs->sp += sizeof(unsigned long);
		break;
	default:
		o2c_lost_write(insn, regs, next);
		break;
	}
	regs->ip = next;
}
NOKPROBE_SYMBOL(o2c_skip);
