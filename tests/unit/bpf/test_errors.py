# SPDX-License-Identifier: Apache-2.0
"""Modules that cannot become an object: a diagnostic each, never a traceback, never the end of the process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import zstandard

from o2cc.bpf import info
from o2cc.bpf.emit import emit_object
from o2cc.bpf.layout import Layout
from o2cc.diagnostics import DiagnosticError
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from tests.unit.bpf import modules


def refusal(module: ir.Module, layout: Layout = Layout.SITE) -> list[tuple[str, str]]:
    with pytest.raises(DiagnosticError) as caught:
        emit_object(module, layout=layout, sources=modules.SOURCES)
    return [(d.code, d.message) for d in caught.value.diagnostics]


def with_hook(code: Builder, **more: Any) -> ir.Module:
    hook = ir.Hook("hook", ir.HookKind.SYSCALL, "", code.finish(), modules.WRITE)
    return replace(ir.Module("one", (), hooks=(hook,)), **more)


@pytest.mark.parametrize("layout", list(Layout))
def test_a_site_must_give_what_its_check_reads(layout: Layout) -> None:
    module = modules.module()
    poor = replace(module.sites[1], parameters=(("displacement", 0), ("site", 1)))
    assert refusal(replace(module, sites=(module.sites[0], poor)), layout) == [
        ("O2C0601", "site `sctp_outq_tail+0x40` does not give the parameter `size` of its check `store_rdi`")
    ]


def test_all_problems_are_reported_together() -> None:
    module = modules.module()
    lost = replace(module.sites[0], check="gone")
    again = replace(module.sites[1], number=0)
    twice = replace(module.maps[0], name="decide")
    codes = [code for code, _ in refusal(replace(module, sites=(lost, again), maps=(twice, module.maps[1])))]
    assert codes == ["O2C0602", "O2C0600", "O2C0602"]


@pytest.mark.parametrize("name", ["", "1x", "a-b", "é", 'a"b', "a b"])
def test_names_that_cannot_be_in_an_object(name: str) -> None:
    module = modules.module()
    hook = replace(module.hooks[0], name=name)
    assert refusal(replace(module, hooks=(hook,)))[0][0] == "O2C0602"


def test_a_kernel_symbol_cannot_have_the_name_of_a_map() -> None:
    code = Builder()
    code.update("objects", (code.symbol("objects"),), (1,))
    code.give_back(0)
    module = with_hook(code, maps=modules.module().maps)
    assert refusal(module) == [
        ("O2C0602", "`objects` is the name of a kernel symbol and of something in the object")
    ]


def test_there_is_no_atomic_addition_to_a_byte() -> None:
    code = Builder()
    code.fetch_add("bytes", 0, "byte", 1)
    code.give_back(0)
    module = with_hook(code, tables=(ir.Table("bytes", (("byte", 1),), (), 8, writable=True),))
    assert refusal(module)[0][0] == "O2C0603"


@pytest.mark.parametrize(
    "instruction",
    [
        ir.Register(ir.Value("v"), "rbx"),
        ir.Argument(ir.Value("v"), 0),
        ir.Parameter(ir.Value("v"), "size"),
        ir.Load(ir.Value("v"), "none", ir.Constant(0), "word"),
        ir.Lookup(ir.Value("v"), "none", (ir.Constant(0),)),
        ir.Call(ir.Value("v"), "none", ()),
        ir.Binary(ir.Value("v"), ir.BinaryOperator.ADD, ir.Value("none"), ir.Constant(0)),
        ir.EntryLoad(ir.Value("v"), ir.Value("none"), "none", "none"),
        ir.Read(ir.Value("v"), 3, ir.Constant(0)),
    ],
    ids=lambda instruction: type(instruction).__name__,
)
def test_invalid_ir_is_a_diagnostic_here_too(instruction: ir.Instruction) -> None:
    block = ir.Block("entry", (instruction,), ir.Return(ir.Constant(0)))
    module = ir.Module("one", (), hooks=(ir.Hook("hook", ir.HookKind.SYSCALL, "", (block,)),))
    assert refusal(module)[0][0] == "O2C0600"


def test_too_much_stack_is_found_without_a_kernel() -> None:
    code = Builder()
    words = [code.read(8, number) for number in range(80)]
    code.call("other", 1)
    total: ir.Operand = ir.Constant(0)
    for number, word in enumerate(words):
        total = code.binary(
            ir.BinaryOperator.MUL, code.binary(ir.BinaryOperator.ADD, total, word), number + 3
        )
    code.give_back(total)
    other = Builder()
    other.give_back(other.helper(ir.HelperKind.NOW))
    module = with_hook(code, functions=(ir.Function("other", ("x",), other.finish()),))
    ((code_, message),) = refusal(module)
    assert code_ == "O2C0607"
    assert message.startswith("`hook` and what it calls need ")


def test_calls_that_nest_too_deeply_are_found_without_a_kernel() -> None:
    functions = []
    for number in range(9):
        code = Builder()
        code.helper(ir.HelperKind.NOW)
        code.give_back(
            code.call(f"f{number + 1}", ir.Value("x")) if number < 8 else code.helper(ir.HelperKind.NOW)
        )
        functions.append(ir.Function(f"f{number}", ("x",), code.finish()))
    start = Builder()
    start.give_back(start.call("f0", 1))
    assert refusal(with_hook(start, functions=tuple(functions))) == [
        ("O2C0607", "`hook` calls 10 functions deep, and BPF allows 8")
    ]


def test_a_key_larger_than_the_stack() -> None:
    code = Builder()
    code.lookup("wide", *range(60))
    code.give_back(0)
    wide = ir.Map("wide", ir.MapKind.HASH, tuple(f"k{n}" for n in range(60)), ("v",), 16)
    assert refusal(with_hook(code, maps=(wide,)))[0][0] == "O2C0607"


def test_a_function_too_large_for_its_jumps_does_not_end_the_process() -> None:
    code = Builder()
    word: ir.Operand = code.helper(ir.HelperKind.NOW)
    code.branch(word, "long", "end")
    code.start("long")
    for number in range(3400):
        word = code.call("mix", word, *(number * 0x9E3779B97F4A7C15 + n for n in range(4)))
    code.jump("end")
    code.start("end")
    code.give_back(0)
    mix = Builder()
    mix.give_back(mix.binary(ir.BinaryOperator.XOR, mix.helper(ir.HelperKind.NOW), ir.Value("a")))
    module = with_hook(code, functions=(ir.Function("mix", ("a", "b", "c", "d", "e"), mix.finish()),))
    assert [code_ for code_, _ in refusal(module)] == ["O2C0610"]


def test_too_many_places_for_one_object() -> None:
    module = modules.module()
    sites = tuple(modules.site(n, "store_rbx", "f", n) for n in range(33000))
    assert [code for code, _ in refusal(replace(module, sites=sites))] == ["O2C0604"]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", b"junk" * 50, b"\x7fELF\x02\x01\x01" + bytes(57), b"\x7fELF" + bytes(range(256)) * 4],
)
def test_a_file_that_is_not_an_object(data: bytes) -> None:
    with pytest.raises(DiagnosticError) as caught:
        info.read(data, "x.bpf.o")
    assert [(d.code, d.path) for d in caught.value.diagnostics] == [("O2C0608", "x.bpf.o")]


def _codes(data: bytes) -> set[str]:
    try:
        info.read(data)
    except DiagnosticError as refused:
        return {d.code for d in refused.diagnostics}
    return set()


def test_a_damaged_object_never_gives_a_traceback() -> None:
    data = emit_object(modules.module(), layout=Layout.SITE, sources=modules.SOURCES).data
    seen: set[str] = set()
    for position in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        seen |= _codes(bytes(damaged)) | _codes(data[:position])
    assert seen == {"O2C0608"}


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format":NOW}', '{"format":NOW,"sites":3}'])
def test_a_description_that_is_not_one(text: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        info.decode(zstandard.ZstdCompressor().compress(text.replace("NOW", str(info.FORMAT)).encode()))
    assert caught.value.diagnostics[0].code == "O2C0608"


def test_another_format_is_named() -> None:
    with pytest.raises(DiagnosticError, match=f"format 1, this version reads {info.FORMAT}"):
        info.decode(zstandard.ZstdCompressor().compress(b'{"format":1}'))
