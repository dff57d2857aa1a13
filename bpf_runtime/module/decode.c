// SPDX-License-Identifier: GPL-2.0-only
/*
 * A decoder for the instructions that o2c.ko can deny, and for no other.
 *
 * The kernel's own decoder is not exported. This one is a white list: what is not in it is refused, so a
 * site never depends on what user space says about it. The choice between skip and poison sites and the
 * results of a denied instruction rest on this file alone.
 */
#include <linux/errno.h>
#include <linux/string.h>

#include "internal.h"

struct cursor {
	const u8 *bytes;
	unsigned int available;
	unsigned int at;
	bool overrun;
};

struct prefixes {
	bool operand_size;
	bool repne;
	bool rep;
	bool lock;
	u8 segment;
	u8 rex;
};

static u8 next_byte(struct cursor *c)
{
	if (c->at >= c->available) {
		c->overrun = true;
		return 0;
	}
	return c->bytes[c->at++];
}

static s64 next_signed(struct cursor *c, unsigned int size)
{
	u64 value = 0;
	unsigned int i;

	for (i = 0; i < size; i++)
		value |= (u64)next_byte(c) << (8 * i);
	return (s64)(value << (64 - 8 * size)) >> (64 - 8 * size);
}

static int read_prefixes(struct cursor *c, struct prefixes *p)
{
	for (;;) {
		u8 byte = next_byte(c);

		switch (byte) {
		case 0x66:
			p->operand_size = true;
			break;
		case 0xf2:
			p->repne = true;
			break;
		case 0xf3:
			p->rep = true;
			break;
		case 0xf0:
			p->lock = true;
			break;
		case 0x26: case 0x2e: case 0x36: case 0x3e:
			/* without meaning in 64-bit mode; 0x3e is what is left of `lock` on one CPU */
			break;
		case 0x64:
			p->segment = O2C_SEG_FS;
			break;
		case 0x65:
			p->segment = O2C_SEG_GS;
			break;
		case 0x67:
			return -EOPNOTSUPP;
		default:
			if ((byte & 0xf0) == 0x40)
				p->rex = byte;	/* counts only when it stands right before the opcode */
			else
				c->at -= !c->overrun;
			return c->overrun ? -EINVAL : 0;
		}
	}
}

/* Reads ModRM, SIB and displacement. Returns ModRM, or a negative errno. */
static int read_modrm(struct cursor *c, const struct prefixes *p, struct o2c_insn *insn)
{
	u8 modrm = next_byte(c);
	u8 mod = modrm >> 6;
	u8 rm = modrm & 7;
	u8 rex_x = (p->rex & 2) << 2;
	u8 rex_b = (p->rex & 1) << 3;

	insn->base = O2C_REG_NONE;
	insn->index = O2C_REG_NONE;
	insn->scale = 0;
	insn->displacement = 0;
	insn->segment = p->segment;
	if (mod == 3) {
		insn->base = rm | rex_b;
		return modrm;
	}
	if (rm == 4) {
		u8 sib = next_byte(c);
		u8 index = ((sib >> 3) & 7) | rex_x;

		if (index != 4) {
			insn->index = index;
			insn->scale = 1 << (sib >> 6);
		}
		if ((sib & 7) == 5 && mod == 0)
			insn->displacement = next_signed(c, 4);
		else
			insn->base = (sib & 7) | rex_b;
	} else if (rm == 5 && mod == 0) {
		insn->base = O2C_REG_RIP;
		insn->displacement = next_signed(c, 4);
	} else {
		insn->base = rm | rex_b;
	}
	if (mod == 1)
		insn->displacement = next_signed(c, 1);
	else if (mod == 2)
		insn->displacement = next_signed(c, 4);
	return modrm;
}

static u8 integer_size(const struct prefixes *p, bool byte)
{
	if (byte)
		return 1;
	if (p->rex & 8)
		return 8;
	return p->operand_size ? 2 : 4;
}

static void set_source(struct o2c_insn *insn, const struct prefixes *p, u8 modrm)
{
	u8 reg = (modrm >> 3) & 7;

	insn->source = reg | ((p->rex & 4) << 1);
	if (insn->size == 1 && !p->rex && reg >= 4) {
		insn->source = reg - 4;
		insn->source_high = true;
	}
}

/* SSE and non-temporal stores; the size is what decides them. */
static int vector_store_size(u8 opcode, const struct prefixes *p)
{
	bool plain = !p->operand_size && !p->rep && !p->repne;

	switch (opcode) {
	case 0x11:			/* movups movupd movss movsd */
		return p->rep ? 4 : p->repne ? 8 : 16;
	case 0x13:			/* movlps movlpd */
	case 0x17:			/* movhps movhpd */
		return p->rep || p->repne ? -EOPNOTSUPP : 8;
	case 0x29:			/* movaps movapd */
	case 0x2b:			/* movntps movntpd */
		return p->rep || p->repne ? -EOPNOTSUPP : 16;
	case 0x7e:			/* movd movq; with rep a load */
		return p->rep || p->repne ? -EOPNOTSUPP : p->rex & 8 ? 8 : 4;
	case 0x7f:			/* movq (mmx) movdqa movdqu */
		return p->repne ? -EOPNOTSUPP : plain ? 8 : 16;
	case 0xc3:			/* movnti */
		return plain ? (p->rex & 8 ? 8 : 4) : -EOPNOTSUPP;
	case 0xd6:			/* movq */
		return p->operand_size && !p->rep && !p->repne ? 8 : -EOPNOTSUPP;
	case 0xe7:			/* movntq movntdq */
		return p->rep || p->repne ? -EOPNOTSUPP : plain ? 8 : 16;
	}
	return -EOPNOTSUPP;
}

static int decode_two_byte(struct cursor *c, const struct prefixes *p, struct o2c_insn *insn)
{
	u8 opcode = next_byte(c);
	int modrm, size;

	switch (opcode) {
	case 0x11: case 0x13: case 0x17: case 0x29: case 0x2b:
	case 0x7e: case 0x7f: case 0xc3: case 0xd6: case 0xe7:
		size = vector_store_size(opcode, p);
		if (size < 0)
			return size;
		insn->form = O2C_FORM_STORE;
		insn->size = size;
		return read_modrm(c, p, insn);
	case 0x90 ... 0x9f:		/* setcc */
		insn->form = O2C_FORM_STORE;
		insn->size = 1;
		return read_modrm(c, p, insn);
	case 0xab: case 0xb3: case 0xbb:	/* bts btr btc */
		insn->form = O2C_FORM_BIT;
		insn->operation = (opcode >> 3) & 3;
		insn->size = integer_size(p, false);
		modrm = read_modrm(c, p, insn);
		set_source(insn, p, modrm);
		return modrm;
	case 0xba:			/* bts btr btc with an immediate */
		insn->form = O2C_FORM_BIT;
		insn->size = integer_size(p, false);
		modrm = read_modrm(c, p, insn);
		insn->operation = (modrm >> 3) & 3;
		if (((modrm >> 3) & 7) < 5)
			return -EOPNOTSUPP;
		insn->immediate = (u8)next_byte(c);
		return modrm;
	case 0xb0: case 0xb1:
		insn->form = O2C_FORM_CMPXCHG;
		insn->size = integer_size(p, opcode == 0xb0);
		modrm = read_modrm(c, p, insn);
		set_source(insn, p, modrm);
		return modrm;
	case 0xc0: case 0xc1:
		insn->form = O2C_FORM_XADD;
		insn->size = integer_size(p, opcode == 0xc0);
		modrm = read_modrm(c, p, insn);
		set_source(insn, p, modrm);
		return modrm;
	case 0xc7:
		insn->form = O2C_FORM_CMPXCHG_WIDE;
		insn->size = p->rex & 8 ? 16 : 8;
		modrm = read_modrm(c, p, insn);
		return ((modrm >> 3) & 7) == 1 ? modrm : -EOPNOTSUPP;
	}
	return -EOPNOTSUPP;
}

static int decode_group(struct cursor *c, const struct prefixes *p, struct o2c_insn *insn, u8 opcode)
{
	int modrm;
	u8 extension;

	insn->size = integer_size(p, !(opcode & 1));
	modrm = read_modrm(c, p, insn);
	extension = (modrm >> 3) & 7;
	insn->operation = extension;
	switch (opcode) {
	case 0x80: case 0x81: case 0x83:
		insn->form = O2C_FORM_ALU;
		if (extension == 7)	/* cmp */
			return -EOPNOTSUPP;
		insn->immediate = next_signed(c, opcode == 0x81 ? min_t(u8, insn->size, 4) : 1);
		return modrm;
	case 0xc0: case 0xc1:
		insn->form = O2C_FORM_SHIFT;
		insn->immediate = (u8)next_byte(c);
		return modrm;
	case 0xd0: case 0xd1:
		insn->form = O2C_FORM_SHIFT;
		insn->immediate = 1;
		return modrm;
	case 0xd2: case 0xd3:
		insn->form = O2C_FORM_SHIFT;
		insn->source = 1;	/* cl */
		return modrm;
	case 0xc6: case 0xc7:
		insn->form = O2C_FORM_STORE;
		next_signed(c, min_t(u8, insn->size, 4));
		return extension ? -EOPNOTSUPP : modrm;
	case 0xf6: case 0xf7:
		insn->form = O2C_FORM_UNARY;
		if (extension != 2 && extension != 3)
			return -EOPNOTSUPP;
		insn->operation = extension == 2 ? O2C_NOT : O2C_NEG;
		return modrm;
	case 0xfe: case 0xff:
		if (extension < 2) {
			insn->form = O2C_FORM_UNARY;
			insn->operation = extension ? O2C_DEC : O2C_INC;
			return modrm;
		}
		if (opcode == 0xfe || (extension != 2 && extension != 4))
			return -EOPNOTSUPP;
		insn->form = extension == 2 ? O2C_FORM_CALL : O2C_FORM_JUMP;
		insn->indirect = true;
		insn->size = 0;
		return modrm;
	}
	return -EOPNOTSUPP;
}

static int decode_one_byte(struct cursor *c, const struct prefixes *p, struct o2c_insn *insn, u8 opcode)
{
	int modrm;

	switch (opcode) {
	case 0x00: case 0x01: case 0x08: case 0x09: case 0x10: case 0x11: case 0x18: case 0x19:
	case 0x20: case 0x21: case 0x28: case 0x29: case 0x30: case 0x31:
		insn->form = O2C_FORM_ALU;
		insn->operation = opcode >> 3;
		break;
	case 0x86: case 0x87:
		insn->form = O2C_FORM_XCHG;
		break;
	case 0x88: case 0x89:
		insn->form = O2C_FORM_STORE;
		break;
	case 0x80: case 0x81: case 0x83:
	case 0xc0: case 0xc1: case 0xd0: case 0xd1: case 0xd2: case 0xd3:
	case 0xc6: case 0xc7: case 0xf6: case 0xf7: case 0xfe: case 0xff:
		return decode_group(c, p, insn, opcode);
	case 0xa4: case 0xa5: case 0xaa: case 0xab:
		if (p->lock)
			return -EOPNOTSUPP;
		insn->form = O2C_FORM_STRING;
		insn->size = integer_size(p, !(opcode & 1));
		insn->rep = p->rep || p->repne;
		insn->moves = opcode < 0xaa;
		insn->base = 7;		/* rdi */
		return 0;
	case 0xe8:
	case 0xe9:
		if (p->operand_size)
			return -EOPNOTSUPP;
		insn->form = opcode == 0xe8 ? O2C_FORM_CALL : O2C_FORM_JUMP;
		insn->immediate = next_signed(c, 4);
		return 0;
	case 0xeb:
		insn->form = O2C_FORM_JUMP;
		insn->immediate = next_signed(c, 1);
		return 0;
	default:
		return -EOPNOTSUPP;
	}
	insn->size = integer_size(p, !(opcode & 1));
	modrm = read_modrm(c, p, insn);
	set_source(insn, p, modrm);
	return modrm;
}

/*
 * Decodes the instruction at `bytes`. Returns 0, -EINVAL when the bytes end too early, -EOPNOTSUPP for what
 * cannot be denied.
 */
int o2c_decode(const u8 *bytes, unsigned int available, struct o2c_insn *insn)
{
	struct cursor c = { .bytes = bytes, .available = available };
	struct prefixes p = {};
	bool transfer;
	int ret;
	u8 opcode;

	memset(insn, 0, sizeof(*insn));
	insn->base = O2C_REG_NONE;
	insn->index = O2C_REG_NONE;
	insn->source = O2C_REG_NONE;
	ret = read_prefixes(&c, &p);
	if (ret)
		return ret;
	opcode = next_byte(&c);
	ret = opcode == 0x0f ? decode_two_byte(&c, &p, insn) : decode_one_byte(&c, &p, insn, opcode);
	if (c.overrun)
		return -EINVAL;
	if (ret < 0)
		return ret;
	insn->length = c.at;
	transfer = insn->form == O2C_FORM_CALL || insn->form == O2C_FORM_JUMP;
	if (transfer && insn->indirect)
		/* kprobes take no transfer through memory; the register is not a memory operand */
		return ret >> 6 == 3 ? 0 : -EOPNOTSUPP;
	if (!transfer && insn->form != O2C_FORM_STRING && ret >> 6 == 3)
		return -EOPNOTSUPP;
	if (p.lock && (insn->form == O2C_FORM_STORE || insn->form == O2C_FORM_SHIFT))
		return -EOPNOTSUPP;
	return 0;
}
