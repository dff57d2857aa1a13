// SPDX-License-Identifier: GPL-2.0-only
/*
 * The text as the compiler saw it: without the breakpoints and jumps of our own probes.
 *
 * Sites are often fewer than five bytes apart, so the jump of one covers the next. Each probed address keeps
 * the sixteen bytes that were there; reading goes through these. Probes that are not ours stay visible, and
 * make the comparison of bytes fail.
 */
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "internal.h"

#define JUMP_LENGTH 5

struct held_text {
	unsigned int users;
	u8 bytes[O2C_INSN_MAX];
	unsigned int length;
};

static DEFINE_XARRAY(held);
static DEFINE_MUTEX(held_lock);

static int read_recovered(unsigned long address, u8 *bytes, unsigned int length)
{
	unsigned long first = address < JUMP_LENGTH ? 0 : address - (JUMP_LENGTH - 1);
	struct held_text *text;
	unsigned long at;
	unsigned int i;

	if (copy_from_kernel_nofault(bytes, (void *)address, length))
		return -EFAULT;
	xa_for_each_range(&held, at, text, first, address + length - 1) {
		for (i = 0; i < min_t(unsigned int, JUMP_LENGTH, text->length); i++)
			if (at + i >= address && at + i < address + length)
				bytes[at + i - address] = text->bytes[i];
	}
	return 0;
}

int o2c_text_read(unsigned long address, u8 *bytes, unsigned int length)
{
	int ret;

	mutex_lock(&held_lock);
	ret = read_recovered(address, bytes, length);
	mutex_unlock(&held_lock);
	return ret;
}

/* To be called before a probe is registered there. */
int o2c_text_hold(unsigned long address)
{
	struct held_text *text;
	int ret = 0;

	mutex_lock(&held_lock);
	text = xa_load(&held, address);
	if (text) {
		text->users++;
		goto out;
	}
	text = kzalloc(sizeof(*text), GFP_KERNEL);
	if (!text) {
		ret = -ENOMEM;
		goto out;
	}
	/* the last instruction of the text has fewer than sixteen bytes behind it */
	for (text->length = O2C_INSN_MAX; text->length; text->length--)
		if (!read_recovered(address, text->bytes, text->length))
			break;
	text->users = 1;
	ret = text->length ? xa_err(xa_store(&held, address, text, GFP_KERNEL)) : -EFAULT;
	if (ret)
		kfree(text);
out:
	mutex_unlock(&held_lock);
	return ret;
}

void o2c_text_release(unsigned long address)
{
	struct held_text *text;

	mutex_lock(&held_lock);
	text = xa_load(&held, address);
	if (text && !--text->users) {
		xa_erase(&held, address);
		kfree(text);
	}
	mutex_unlock(&held_lock);
}

/*
 * A function's entry that ftrace knows begins with a nop (or call) of five bytes, perhaps behind endbr64 or what a kernel with
 * IBT puts in its place where nobody takes the function's address (gen_endbr_poison() in arch/x86/include/asm/ibt.h, 6.12).
 * Gives the bytes up to the instruction behind it, 0 for other code.
 *
 * Of the text as it is: ftrace's place is changed by ftrace alone, also when we have a probe there, which kprobes has put behind
 * the endbr64.
 */
unsigned int o2c_ftrace_entry(unsigned long address)
{
	static const u8 endbr[] = { 0xf3, 0x0f, 0x1e, 0xfa }, sealed[] = { 0x66, 0x0f, 0x1f, 0x00 };
	static const u8 nop[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
	u8 bytes[sizeof(endbr) + sizeof(nop)];
	unsigned int before = 0;

	if (copy_from_kernel_nofault(bytes, (void *)address, sizeof(bytes)))
		return 0;
	if (!memcmp(bytes, endbr, sizeof(endbr)) || !memcmp(bytes, sealed, sizeof(sealed)))
		before = sizeof(endbr);
	if (memcmp(bytes + before, nop, sizeof(nop)) && bytes[before] != 0xe8)
		return 0;
	return before + sizeof(nop);
}

/* True when no probe shows at the address, ours or another's. */
bool o2c_text_restored(unsigned long address)
{
	struct held_text *text;
	bool restored = true;
	u8 byte;

	mutex_lock(&held_lock);
	text = xa_load(&held, address);
	if (text && text->users == 1)
		restored = !copy_from_kernel_nofault(&byte, (void *)address, 1) && byte == text->bytes[0];
	mutex_unlock(&held_lock);
	return restored;
}
