/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The instructions. Each is a function of its own: the instruction, room for a probe's jump, a mark in r11 that says
 * that execution went on, return.
 */
#include <linux/linkage.h>
#include <asm/nospec-branch.h>

	.pushsection .form_table, "a"
	.globl form_table_start
form_table_start:
	.popsection

	.macro BEGIN name
	.text
	.p2align 4
	.type form_\name, @function
form_\name:
	ENDBR
	.endm

	.macro END name
	nop
	nop
	nop
	nop
	nop
	movl $0x600d, %r11d
	RET
	.size form_\name, . - form_\name
	.pushsection .rodata
.Lname_\name:
	.asciz "\name"
	.popsection
	.pushsection .form_table, "a"
	.quad form_\name, .Lbegin_\name - form_\name, .Lend_\name - .Lbegin_\name, .Lname_\name
	.popsection
	.endm

	.macro FORM name:req, insn:vararg
	BEGIN \name
.Lbegin_\name:
	\insn
.Lend_\name:
	END \name
	.endm

FORM mov_8, movb %cl, (%rdi)
FORM mov_16, movw %cx, 8(%rdi)
FORM mov_32, movl %ecx, 0x10(%rdi)
FORM mov_64, movq %rcx, 0x100(%rdi)
FORM mov_negative, movq %rcx, -0x20(%rdx)
FORM mov_rax, movq %rcx, 0x18(%rax)
FORM mov_rbx, movl %ecx, 0x18(%rbx)
FORM mov_r8, movq %rcx, (%r8)
FORM mov_r12, movq %rcx, 8(%r12)
FORM mov_r13, movq %rcx, (%r13)
FORM mov_r15, movq %r14, 0x78(%r15)
FORM mov_self, movq %rdi, (%rdi)
FORM mov_high, movb %ch, 3(%rdi)
FORM mov_immediate_8, movb $0x5a, 1(%rdi)
FORM mov_immediate_16, movw $0x1234, 0x102(%rdi)
FORM mov_immediate_32, movl $0x12345678, 4(%rdi)
FORM mov_immediate_64, movq $-2, (%rdi)
FORM mov_index, movq %rcx, (%rdi,%rdx,8)
FORM mov_index_displaced, movl %ecx, 0x20(%rdi,%rdx,4)
FORM mov_index_only, movl %ecx, 0x20(,%rdx,1)
FORM mov_rbp, movq %rcx, 8(%rbp)
FORM mov_rsp, movq %rcx, 16(%rsp)
FORM mov_rip, movq %rcx, form_buffer+64(%rip)
FORM mov_gs, movq %rcx, %gs:form_per_cpu(%rip)
FORM setcc, setne 5(%rdi)
FORM movups, movups %xmm0, 0x11(%rdi)
FORM movaps, movaps %xmm0, 0x20(%rdi)
FORM movss, movss %xmm0, 4(%rdi)
FORM movq_xmm, movq %xmm0, 8(%rdi)
FORM movd_xmm, movd %xmm0, 8(%rdi)
FORM movnti, movnti %rcx, (%rdi)
FORM add_32, addl %ecx, (%rdi)
FORM add_lock, lock addq %rcx, 8(%rdi)
FORM or_lock_8, lock orb $8, (%rdi)
FORM and_32, andl $0xff, 4(%rdi)
FORM xor_64, xorq %rcx, (%rdi)
FORM sub_16, subw %cx, (%rdi)
FORM adc_64, adcq %rcx, (%rdi)
FORM sbb_32, sbbl %ecx, (%rdi)
FORM inc_lock, lock incl (%rdi)
FORM dec_lock, lock decq (%rdi)
FORM inc_8, incb (%rdi)
FORM neg_64, negq (%rdi)
FORM not_32, notl (%rdi)
FORM shl_32, shll $3, (%rdi)
FORM shr_8, shrb (%rdi)
FORM sar_64, sarq %cl, (%rdi)
FORM rol_16, rolw $5, (%rdi)
FORM ror_64, rorq %cl, (%rdi)
FORM rcl_32, rcll $3, (%rdi)
FORM rcr_8, rcrb (%rdi)
FORM add_index_gs_free, addq %rcx, 8(%rdi,%rdx,8)
FORM add_rip, addq %rcx, form_buffer+64(%rip)
FORM add_gs, addq %rcx, %gs:form_per_cpu(%rip)
FORM xchg_64, xchgq %rcx, (%rdi)
FORM xchg_32, xchgl %ecx, (%rdi)
FORM xchg_high, xchgb %ch, (%rdi)
FORM xadd_32, lock xaddl %ecx, (%rdi)
FORM xadd_64, xaddq %rcx, (%rdi)
FORM cmpxchg_64, lock cmpxchgq %rcx, (%rdi)
FORM cmpxchg_32, lock cmpxchgl %ecx, (%rdi)
FORM cmpxchg_8, cmpxchgb %cl, (%rdi)
FORM cmpxchg8b, lock cmpxchg8b (%rdi)
FORM cmpxchg16b, lock cmpxchg16b (%rdi)
FORM bts_64, lock btsq %rcx, (%rdi)
FORM bts_32, btsl %ecx, (%rdi)
FORM btr_immediate, btrl $5, (%rdi)
FORM btc_64, lock btcq %rcx, (%rdi)
FORM rep_movsb, rep movsb
FORM rep_movsq, rep movsq
FORM rep_stosb, rep stosb
FORM rep_stosq, rep stosq
FORM movsb, movsb
FORM movsl, movsl
FORM stosw, stosw
FORM call_direct, call form_target
BEGIN call_register
	ANNOTATE_RETPOLINE_SAFE
.Lbegin_call_register:
	call *%rax
.Lend_call_register:
END call_register
FORM call_thunk, call __x86_indirect_thunk_rax
FORM jump_direct, jmp form_target
BEGIN jump_register
	ANNOTATE_RETPOLINE_SAFE
.Lbegin_jump_register:
	jmp *%rax
.Lend_jump_register:
END jump_register
FORM jump_thunk, jmp __x86_indirect_thunk_rax
BEGIN retry
.Lbegin_retry:
	lock cmpxchgq %rcx, (%rdi)
.Lend_retry:
	jnz form_retry
END retry
/* never run: what must be refused */
BEGIN refused_push
.Lbegin_refused_push:
	pushq (%rdi)
.Lend_refused_push:
	popq %r9
END refused_push
FORM refused_load, movq (%rdi), %rcx
FORM refused_compare, cmpq %rcx, (%rdi)
FORM refused_register, movq %rcx, %rdx
FORM refused_address_32, movl %ecx, (%edi)
FORM refused_shld, shldq $3, %rcx, (%rdi)

	.pushsection .form_table, "a"
	.globl form_table_end
form_table_end:
	.popsection

	.text
	.globl form_target
	.type form_target, @function
form_target:
	ENDBR
	lock incq form_calls(%rip)
	movl $0x1234, %eax
	movl $0xca11, %r11d
	RET
	.size form_target, . - form_target

/* void form_run_one(struct form_registers *registers, void *function) */
	.globl form_run_one
	.type form_run_one, @function
form_run_one:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	pushq %rdi
	pushq 0x20(%rdi)
	pushq %rsi
	pushq 0x80(%rdi)
	popfq
	movq 0x00(%rdi), %rax
	movq 0x08(%rdi), %rcx
	movq 0x10(%rdi), %rdx
	movq 0x18(%rdi), %rbx
	movq 0x28(%rdi), %rbp
	movq 0x30(%rdi), %rsi
	movq 0x40(%rdi), %r8
	movq 0x48(%rdi), %r9
	movq 0x50(%rdi), %r10
	movq 0x58(%rdi), %r11
	movq 0x60(%rdi), %r12
	movq 0x68(%rdi), %r13
	movq 0x70(%rdi), %r14
	movq 0x78(%rdi), %r15
	movq 0x38(%rdi), %rdi
	ANNOTATE_RETPOLINE_SAFE
	call *(%rsp)
	pushfq
	cld
	pushq %rdi
	movq 0x20(%rsp), %rdi
	movq %rax, 0x00(%rdi)
	movq %rcx, 0x08(%rdi)
	movq %rdx, 0x10(%rdi)
	movq %rbx, 0x18(%rdi)
	movq %rbp, 0x28(%rdi)
	movq %rsi, 0x30(%rdi)
	movq %r8, 0x40(%rdi)
	movq %r9, 0x48(%rdi)
	movq %r10, 0x50(%rdi)
	movq %r11, 0x58(%rdi)
	movq %r12, 0x60(%rdi)
	movq %r13, 0x68(%rdi)
	movq %r14, 0x70(%rdi)
	movq %r15, 0x78(%rdi)
	popq %rax
	movq %rax, 0x38(%rdi)
	popq %rax
	movq %rax, 0x80(%rdi)
	popq %rax
	popq %rax
	movq %rax, 0x20(%rdi)
	popq %rax
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	RET
	.size form_run_one, . - form_run_one

/* so that nothing that is probed is the last function of this module's text */
	.type form_last, @function
form_last:
	RET
	.size form_last, . - form_last

	.section .note.GNU-stack, "", @progbits
