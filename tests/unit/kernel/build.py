# SPDX-License-Identifier: Apache-2.0
"""Makes small inputs for the scanner's tests: object files from assembler text, BTF, kallsyms tables, kernels."""

import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import read_btf
from o2cc.kernel.description import Function, Site
from o2cc.kernel.elf import read_elf
from o2cc.kernel.kernels import Kernel
from o2cc.kernel.layout import Layout, module_layout
from o2cc.kernel.patches import read_patches, section_tables
from o2cc.kernel.scan import prepare
from o2cc.kernel.sites import UnitFacts, describe_unit

TEXT_START = 0xFFFFFFFF81000000
RELEASE = "6.1.0-test"


@cache
def assemble(source: str) -> bytes:
    """The object file of assembler text (Intel syntax)."""
    with tempfile.TemporaryDirectory() as directory:
        text, output = Path(directory, "a.s"), Path(directory, "a.o")
        text.write_text(".intel_syntax noprefix\n" + source)
        subprocess.run(["as", "--64", "-o", str(output), str(text)], check=True, capture_output=True)
        return output.read_bytes()


def function(name: str, body: str, *, size: bool = True) -> str:
    """Assembler text of one global function."""
    end = f".size {name}, .-{name}\n" if size else ""
    return f".text\n.globl {name}\n.type {name}, @function\n{name}:\n{body}\n{end}"


def module_source(body: str, release: str = RELEASE) -> str:
    """Assembler text of a module of that release around ``body``."""
    return (
        f'.section .modinfo,"a"\n.asciz "vermagic={release} SMP preempt"\n.asciz "name=sample"\n'
        f".text\n{body}\n"
        '.section .note.gnu.build-id,"a",@note\n.long 4, 4, 3\n.asciz "GNU"\n.byte 1, 2, 3, 4\n'
    )


def layout_of(source: str) -> Layout:
    return module_layout(read_elf(assemble(source), "sample.o"))


def analyse(source: str, release: str = "6.1.0") -> list[Function]:
    """Every function of assembler text, as the scanner describes it without types."""
    layout = layout_of(source)
    patches = read_patches(layout, section_tables(layout))
    prepared = prepare(layout, patches)
    facts = UnitFacts(
        layout,
        patches,
        sorted(patches.sites),
        release,
        None,
        {},
        {},
        frozenset(prepared.pointers),
        frozenset({".init.text"}),
    )
    found = []
    for analysis, values in prepared.units:
        found += [described for _, described in describe_unit(analysis, values, facts)]
    return found


def one(body: str, release: str = "6.1.0") -> Function:
    """The only function of assembler text ``body``."""
    return analyse(function("f", body), release)[0]


def site(described: Function, kind: str, number: int = 0) -> Site:
    """The ``number``-th site of that kind."""
    return [item for item in described.sites if item.kind == kind][number]


class BtfWriter:
    """Writes BTF: each method adds a type and gives its id."""

    def __init__(self, first_id: int = 1, first_string: int = 0) -> None:
        self.types = bytearray()
        self.strings = bytearray(b"\0")
        self.next_id = first_id
        self.first_string = first_string

    def string(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return self.first_string + len(self.strings) - len(text) - 1

    def add(
        self, kind: int, name: str, vlen: int, reference: int, extra: bytes = b"", flag: bool = False
    ) -> int:
        info = kind << 24 | vlen | (1 << 31 if flag else 0)
        self.types += struct.pack("<III", self.string(name), info, reference) + extra
        self.next_id += 1
        return self.next_id - 1

    def integer(self, name: str, size: int, signed: bool = False) -> int:
        return self.add(1, name, 0, size, struct.pack("<I", (1 << 24 if signed else 0) | size * 8))

    def pointer(self, target: int) -> int:
        return self.add(2, "", 0, target)

    def array(self, element: int, count: int) -> int:
        return self.add(3, "", 0, 0, struct.pack("<III", element, element, count))

    def struct(
        self, name: str, size: int, members: Sequence[tuple[str, int, int]], union: bool = False
    ) -> int:
        extra = b"".join(struct.pack("<III", self.string(text), id, bits) for text, id, bits in members)
        return self.add(5 if union else 4, name, len(members), size, extra)

    def bitfields(self, name: str, size: int, members: Sequence[tuple[str, int, int, int]]) -> int:
        extra = b"".join(
            struct.pack("<III", self.string(t), id, width << 24 | bits) for t, id, bits, width in members
        )
        return self.add(4, name, len(members), size, extra, flag=True)

    def enum(self, name: str, values: Sequence[tuple[str, int]]) -> int:
        extra = b"".join(struct.pack("<Ii", self.string(text), value) for text, value in values)
        return self.add(6, name, len(values), 4, extra)

    def typedef(self, name: str, target: int) -> int:
        return self.add(8, name, 0, target)

    def prototype(self, returns: int, parameters: Sequence[tuple[str, int]]) -> int:
        extra = b"".join(struct.pack("<II", self.string(text), id) for text, id in parameters)
        return self.add(13, "", len(parameters), returns, extra)

    def function(self, name: str, prototype: int) -> int:
        return self.add(12, name, 1, prototype)

    def bytes(self) -> bytes:
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + bytes(self.types) + bytes(self.strings)


def kernel_btf() -> BtfWriter:
    """BTF with the few structs that a scan looks for, and some more for tests."""
    writer = BtfWriter()
    byte = writer.integer("unsigned char", 1)
    word = writer.integer("unsigned long", 8)
    number = writer.integer("int", 4, signed=True)
    writer.struct("list_head", 16, [("next", word, 0), ("prev", word, 64)])
    sock = writer.struct("sock", 64, [("sk_err", number, 0), ("sk_prot", word, 64)])
    pointer = writer.pointer(sock)
    buffer = writer.struct(
        "sk_buff", 32, [("sk", pointer, 0), ("head", writer.pointer(byte), 64), ("len", number, 128)]
    )
    skb = writer.pointer(buffer)
    writer.struct("page", 64, [("flags", word, 0), ("compound_head", word, 64)])
    writer.enum("pageflags", [("PG_locked", 0), ("PG_slab", 9)])
    receive = writer.prototype(number, [("skb", skb)])
    close = writer.prototype(0, [("sk", pointer), ("timeout", word)])
    writer.struct(
        "proto_ops",
        32,
        [("family", number, 0), ("recv", writer.pointer(receive), 64), ("close", writer.pointer(close), 128)],
    )
    writer.function("kfree_skb", writer.prototype(0, [("skb", skb)]))
    # A function of the kernel with the name of one in the sample module, and another prototype.
    writer.function("sample_last", receive)
    writer.function("ip6_sample", receive)
    writer.struct("unreached", 16, [("value", word, 0)])
    return writer


def module_btf() -> str:
    """Assembler text of a module's split BTF over that of `kernel_btf`: the prototypes of two functions."""
    base = read_btf(kernel_btf().bytes(), "vmlinux")
    ids = {name: base.find(name, kinds.STRUCT) or 0 for name in ("sock", "sk_buff", "proto_ops")}
    number, word = base.named(kinds.INT)["int"], base.named(kinds.INT)["unsigned long"]
    writer = BtfWriter(base.end_id, base.end_string)
    buffer, sock = writer.pointer(ids["sk_buff"]), writer.pointer(ids["sock"])
    writer.function("sample_receive", writer.prototype(number, [("skb", buffer)]))
    writer.function("sample_close", writer.prototype(0, [("sk", sock), ("timeout", word)]))
    data = ", ".join(map(str, writer.bytes()))
    return f'.section .BTF,"",@progbits\n.byte {data}\n'


def kallsyms(symbols: Iterable[tuple[int, str, str]], base: int = TEXT_START, new: bool = False) -> bytes:
    """The kernel's symbol tables for (address, type letter, name), in the order of versions before or since 6.4.

    Every token is one character: what the format allows without compression.
    """
    ordered = sorted(symbols)
    tokens = [bytes((code,)) if 32 < code < 127 else b"x%02x" % code for code in range(256)]
    table, index = bytearray(), []
    for token in tokens:
        index.append(len(table))
        table += token + b"\0"
    names, markers = bytearray(), []
    for number, (_, letter, name) in enumerate(ordered):
        if number % 256 == 0:
            markers.append(len(names))
        text = (letter + name).encode()
        names += (
            bytes((len(text),)) if len(text) < 128 else bytes((len(text) & 127 | 128, len(text) >> 7))
        ) + text
    offsets = b"".join(
        struct.pack("<i", address if address < 1 << 31 else base - 1 - address) for address, _, _ in ordered
    )
    blob = bytearray(b"before\0\0")

    def put(data: bytes) -> None:
        blob.extend(bytes(-len(blob) % 8) + data)

    def put_addresses() -> None:
        put(offsets)
        put(struct.pack("<Q", base))

    if not new:
        put_addresses()
    put(struct.pack("<I", len(ordered)))
    put(bytes(names))
    put(struct.pack(f"<{len(markers)}I", *markers))
    put(bytes(table))
    put(struct.pack("<256H", *index))
    if new:
        put_addresses()
    return bytes(blob)


def elf_file(sections: Sequence[tuple[str, int, int, int, bytes]], kind: int = 2) -> bytes:
    """An ELF file of (name, type, flags, address, content) sections."""
    names = bytearray(b"\0")
    headers = [struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    body = bytearray(64)
    for name, type_, flags, address, content in [*sections, (".shstrtab", 3, 0, 0, b"")]:
        at = len(names)
        names += name.encode() + b"\0"
        if name == ".shstrtab":
            content = bytes(names)
        body += bytes(-len(body) % 16)
        headers.append(
            struct.pack("<IIQQQQIIQQ", at, type_, flags, address, len(body), len(content), 0, 0, 16, 0)
        )
        body += content
    body += bytes(-len(body) % 16)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident,
        kind,
        62,
        1,
        0,
        0,
        len(body),
        0,
        64,
        0,
        0,
        64,
        len(headers),
        len(headers) - 1,
    )
    return header + bytes(body[64:]) + b"".join(headers)


# Enough symbols for the tables to look like a kernel's.
FILLER = tuple((TEXT_START + 0x10000 + 16 * number, "t", f"filler_{number}") for number in range(1200))
SYMBOLS = (
    (TEXT_START, "T", "_text"),
    (TEXT_START + 0x100, "T", "ip6_sample"),
    (TEXT_START + 0x140, "t", "ip6_helper"),
    (TEXT_START + 0x180, "T", "kfree_skb"),
    (TEXT_START + 0x1C0, "T", "__x86_return_thunk"),
    (TEXT_START + 0x200000, "D", "page_offset_base"),
    (TEXT_START + 0x200000, "D", "__start_init_task"),
    (TEXT_START + 0x204000, "D", "__end_init_task"),
    (TEXT_START + 0x204010, "D", "ip6_ops"),
    (TEXT_START + 0x204030, "D", "ip6_counter"),
    (TEXT_START + 0x204040, "D", "twice"),
    (TEXT_START + 0x204048, "D", "twice"),
    *FILLER,
)


def kernel_file(release: str = RELEASE, code: bytes = b"\xc3", new: bool = False, data: bytes = b"") -> bytes:
    """A kernel image: ``code`` lies at ``ip6_sample``, ``data`` at ``ip6_ops``."""
    text = bytearray(b"\x90" * 0x20000)
    text[0x100 : 0x100 + len(code)] = code
    area = bytearray(0x5000)
    area[0x4010 : 0x4010 + len(data)] = data
    banner = f"Linux version {release} (builder@host)".encode().ljust(128, b"\0")
    return elf_file(
        [
            (".text", 1, 6, TEXT_START, bytes(text)),
            (".rodata", 1, 2, TEXT_START + 0x100000, banner + kallsyms(SYMBOLS, new=new)),
            (".BTF", 1, 2, TEXT_START + 0x180000, kernel_btf().bytes()),
            (".data", 1, 3, TEXT_START + 0x200000, bytes(area)),
            (
                ".notes",
                7,
                2,
                TEXT_START + 0x300000,
                struct.pack("<III4s4s", 4, 4, 3, b"GNU\0", b"\xaa\xbb\xcc\xdd"),
            ),
        ]
    )


def write_kernel(
    directory: Path, release: str = RELEASE, *, code: bytes = b"\xc3", data: bytes = b""
) -> Kernel:
    """A kernel on disk, opened."""
    path = directory / "vmlinux"
    path.write_bytes(kernel_file(release, code, data=data))
    return Kernel(path)


def codes_of(action: Callable[[], object]) -> set[str]:
    """The codes of the diagnostics that an action raises; nothing else may come out of it."""
    try:
        action()
    except DiagnosticError as problem:
        return {item.code for item in problem.diagnostics}
    return set()
