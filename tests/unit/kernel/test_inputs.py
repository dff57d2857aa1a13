# SPDX-License-Identifier: Apache-2.0
"""ELF, BTF, kallsyms and compressed images: what is read, and that broken input is a diagnostic."""

import bz2
import gzip
import lzma
import random
import struct
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import Btf, read_btf
from o2cc.kernel.elf import read_elf
from o2cc.kernel.image import decompress, kernel_image
from o2cc.kernel.kallsyms import read_kallsyms
from o2cc.kernel.layout import module_layout
from o2cc.kernel.types import TypeBuilder, find_prototypes, kernel_facts

from .build import (
    SYMBOLS,
    TEXT_START,
    BtfWriter,
    assemble,
    codes_of,
    function,
    kallsyms,
    kernel_btf,
    kernel_file,
    module_source,
)


def code(problem: pytest.ExceptionInfo[DiagnosticError]) -> str:
    return problem.value.diagnostics[0].code


def lz4_legacy(data: bytes) -> bytes:
    """One legacy frame: literals, then a match that overlaps itself (how runs are stored)."""
    literals = data
    block = bytearray((15 << 4 | 4,))
    rest = len(literals) - 15
    while rest >= 255:
        block.append(255)
        rest -= 255
    block.append(rest)
    block += literals + struct.pack("<H", 1)
    block += bytes((5 << 4,)) + b"ends!"
    return (
        b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + bytes(block) + struct.pack("<I", len(data) + 13)
    )


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("xz", lzma.compress),
    ("lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    ("zstd", lambda data: zstandard.ZstdCompressor().compress(data)),
    ("gzip", gzip.compress),
    ("bzip2", bz2.compress),
]


@pytest.mark.parametrize(("name", "pack"), PACKERS, ids=[name for name, _ in PACKERS])
def test_compressed_files(name: str, pack: Callable[[bytes], bytes]) -> None:
    data = random.Random(1).randbytes(5000) + bytes(70000)
    packed = pack(data)
    assert decompress(packed, "x") == data
    assert decompress(packed + b"trailing", "x") == data
    with pytest.raises(DiagnosticError) as problem:
        decompress(packed[: len(packed) // 2], "x")
    assert code(problem) == "O2C0403"


def test_lz4_of_kernels() -> None:
    data = random.Random(2).randbytes(700)
    assert decompress(lz4_legacy(data), "x") == data + data[-1:] * 8 + b"ends!"
    with pytest.raises(DiagnosticError):
        decompress(lz4_legacy(data)[:300], "x")


def test_what_is_not_compressed_stays_as_it_is() -> None:
    assert decompress(b"\x7fELF and more", "x") == b"\x7fELF and more"


@pytest.mark.parametrize("pack", [lzma.compress, lambda data: zstandard.ZstdCompressor().compress(data)])
def test_boot_images(pack: Callable[[bytes], bytes]) -> None:
    kernel = kernel_file()
    payload = pack(kernel) + struct.pack("<I", len(kernel))
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0x40, len(payload))
    image += bytes(0x40) + payload
    assert kernel_image(bytes(image), "vmlinuz") == kernel
    for broken in (bytes(image[:-100]), b"MZ" + bytes(100), b""):
        with pytest.raises(DiagnosticError):
            kernel_image(broken, "vmlinuz")


@pytest.mark.parametrize("new", [False, True], ids=["before 6.4", "since 6.4"])
def test_kallsyms(new: bool) -> None:
    long_name = "n" * 300
    symbols = [(0x1000, "A", "per_cpu_thing"), (TEXT_START + 8, "t", long_name), *SYMBOLS]
    found = read_kallsyms(bytes(776) + kallsyms(symbols, new=new) + bytes(64), "vmlinux")
    assert len(found.names) == len(symbols)
    assert found.address("_text") == TEXT_START
    assert found.address(long_name) == TEXT_START + 8
    assert found.address("per_cpu_thing") == 0x1000
    assert found.address("twice") is None
    assert found.address("absent") is None
    position = found.covering(TEXT_START + 0x150)
    assert position is not None
    assert found.names[position] == "ip6_helper"


def test_kallsyms_that_are_not_there() -> None:
    for data in (b"", bytes(5000), kallsyms(SYMBOLS)[:-600], random.Random(3).randbytes(100000)):
        with pytest.raises(DiagnosticError) as problem:
            read_kallsyms(data, "vmlinux")
        assert code(problem) == "O2C0406"


def test_btf_types() -> None:
    writer = kernel_btf()
    number = writer.integer("u32", 4)
    inner = writer.struct("", 8, [("low", number, 0), ("high", number, 32)])
    writer.struct("outer", 24, [("", inner, 0), ("flags", number, 64), ("list", writer.array(number, 3), 96)])
    writer.bitfields("bits", 4, [("a", number, 0, 3), ("b", number, 3, 7)])
    writer.typedef("pair_t", inner)
    found = read_btf(writer.bytes(), "vmlinux")
    outer = found.find("outer", kinds.STRUCT)
    assert outer is not None
    assert found.size(outer) == 24
    builder = TypeBuilder(found)
    bits = found.find("bits", kinds.STRUCT)
    assert bits is not None
    builder.add_structs([outer, bits])
    table = builder.table({})
    high = table.find_field("outer", "high")
    assert high is not None
    assert (high.offset, high.size) == (4, 4)
    array = table.find_field("outer", "list")
    assert array is not None
    assert (array.offset, array.size, array.type.count) == (12, 12, 3)
    field = table.find_field("bits", "b")
    assert field is not None
    assert (field.offset, field.bit_offset, field.bitfield_size, field.size) == (0, 3, 7, 2)
    assert table.find_field("outer", "nothing") is None
    assert table.field_names("outer") == ("low", "high", "flags", "list")


def test_split_btf_continues_the_kernels() -> None:
    base_writer = kernel_btf()
    base = read_btf(base_writer.bytes(), "vmlinux")
    sock = base.find("sock", kinds.STRUCT)
    assert sock is not None
    writer = BtfWriter(base.end_id, base.end_string)
    own = writer.struct("sample_sock", 72, [("base", sock, 0), ("number", 1, 512)])
    writer.function("sample_open", writer.prototype(0, [("s", writer.pointer(own))]))
    split = read_btf(writer.bytes(), "sample", base)
    builder = TypeBuilder(split)
    prototypes, seeds = find_prototypes(builder, ["sample_open", "kfree_skb", "unknown"])
    assert sorted(prototypes) == ["kfree_skb", "sample_open"]
    assert prototypes["sample_open"].parameters[0].type.pointee_struct == "sample_sock"
    builder.add_structs(seeds)
    place = builder.table(prototypes).find_field("sample_sock", "base.sk_prot")
    assert place is not None
    assert place.offset == 8


def test_split_btf_without_strings() -> None:
    base = read_btf(kernel_btf().bytes(), "vmlinux")
    data = bytearray(BtfWriter(base.end_id, base.end_string).bytes())
    struct.pack_into("<I", data, 20, 0)
    found = read_btf(bytes(data[:-1]), "sample", base)
    assert found.end_id == base.end_id
    assert codes_of(lambda: read_btf(bytes(data[:-1]), "vmlinux")) == {"O2C0405"}


def test_modules_do_not_see_each_others_structs() -> None:
    """The kernel only declares `secret`; one module defines it. What is kept of the kernel must not mix them."""
    base_writer = kernel_btf()
    declared = base_writer.add(7, "secret", 0, 0)
    base_writer.struct("holder", 8, [("hidden", base_writer.pointer(declared), 0)])

    def with_definition(base: Btf) -> TypeBuilder:
        writer = BtfWriter(base.end_id, base.end_string)
        writer.struct("secret", 4, [("inside", 1, 0)])
        return TypeBuilder(read_btf(writer.bytes(), "one", base))

    def without(base: Btf) -> TypeBuilder:
        return TypeBuilder(read_btf(BtfWriter(base.end_id, base.end_string).bytes(), "other", base))

    for order in ((with_definition, without), (without, with_definition)):
        base = read_btf(base_writer.bytes(), "vmlinux")
        holder = base.find("holder", kinds.STRUCT)
        assert holder is not None
        for make in order:
            builder = make(base)
            builder.add_structs([holder])
            assert ("secret" in builder.table({}).struct_by_name) == (make is with_definition)


def test_kernel_facts() -> None:
    symbols = read_kallsyms(kallsyms(SYMBOLS), "vmlinux")
    facts = kernel_facts(read_btf(kernel_btf().bytes(), "vmlinux"), symbols, "aa")
    assert facts.fields["page.compound_head"].offset == 8
    assert facts.sizes["page"] == 64
    assert facts.enums["PG_slab"] == 9
    assert facts.constants["thread_size"] == 0x4000
    assert "page_offset_base" in facts.symbols
    assert "vmemmap_base" not in facts.symbols


def test_elf_facts() -> None:
    elf = read_elf(assemble(module_source(function("f", "mov [rip + counter], edi\nret"))), "sample.ko")
    assert elf.relocatable
    assert elf.build_id == "01020304"
    assert elf.module_info()["name"] == "sample"
    text = elf.section_by_name[".text"]
    assert [relocation.offset for relocation in elf.relocations(text)] == [2]
    assert {symbol.name for symbol in elf.symbols} >= {"f", "counter"}


def walk_btf(found: Btf) -> None:
    """Ask for everything that a scan asks for."""
    builder = TypeBuilder(found)
    structs = [id for kind in (kinds.STRUCT, kinds.UNION) for id in found.ids_by_kind.get(kind, ())]
    prototypes, seeds = find_prototypes(builder, list(found.named(kinds.FUNC)))
    builder.add_structs([*structs, *seeds])
    builder.table(prototypes)
    kernel_facts(found, None, "")


BTF = kernel_btf().bytes()
OBJECT = assemble(
    module_source(function("f", "call g\nmov [rip + counter], edi\nlock inc dword ptr [rdi]\nret"))
)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_mutated_btf_gives_diagnostics_only(data: st.DataObject) -> None:
    changed = mutate(data, BTF)
    assert codes_of(lambda: walk_btf(read_btf(changed, "vmlinux"))) <= {"O2C0405"}


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_mutated_elf_gives_diagnostics_only(data: st.DataObject) -> None:
    changed = mutate(data, OBJECT)

    def read() -> None:
        elf = read_elf(changed, "sample.ko")
        elf.module_info()
        _ = elf.build_id
        module_layout(elf)

    assert codes_of(read) <= {"O2C0401", "O2C0402"}


def mutate(data: st.DataObject, original: bytes) -> bytes:
    """Some bytes of ``original`` changed, or its end cut off."""
    changed = bytearray(original)
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            position = data.draw(st.integers(0, len(changed) - 1))
            value = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)) | st.integers(0, 255))
            width = data.draw(st.sampled_from((1, 1, 2, 4)))
            changed[position : position + width] = bytes((value,)) * len(changed[position : position + width])
    return bytes(changed)
