# SPDX-License-Identifier: Apache-2.0
"""Shared code that is compiled before the object is made: the object does not depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import o2cc.bpf.emit
from o2cc.bpf.compiler import CompiledText, MachineCode, compile_texts
from o2cc.bpf.emit import Ahead, compile_shared, emit_object
from o2cc.bpf.layout import Layout
from o2cc.compiler import Options, Stopwatch, emit
from o2cc.diagnostics import SourceFile
from o2cc.driver import compile_source
from o2cc.ir import nodes as ir
from o2cc.options import CompileOptions
from o2cc.resources import resource_directory
from o2cc.second_process import Task
from tests.unit.bpf import modules

FUNCTIONS = frozenset(function.name for function in modules.module().functions)


def _task(found: CompiledText | None) -> Task[CompiledText | None]:
    """What is there when it is asked for."""
    return Task(lambda: found, None)


def _object(ahead: Ahead, layout: Layout = Layout.SITE) -> bytes:
    return emit_object(modules.module(), layout=layout, sources=modules.SOURCES, ahead=ahead).data


@pytest.mark.parametrize("layout", list(Layout))
def test_the_object_is_the_same_however_it_went(layout: Layout) -> None:
    plain = _object(Ahead(), layout)
    right = compile_shared(modules.module())
    assert right is not None
    other = replace(right, text=right.text + "; of another module", data=b"not to be used")
    for found in (right, other, None):
        assert _object(Ahead(FUNCTIONS, _task(found)), layout) == plain


def test_what_is_there_is_used() -> None:
    """A wrong object under the right text is taken, which shows that LLVM was not asked again."""
    right = compile_shared(modules.module())
    smaller = compile_shared(replace(modules.module(), hooks=()))
    assert right is not None
    assert smaller is not None
    with pytest.raises(KeyError):
        _object(Ahead(FUNCTIONS, _task(replace(right, data=smaller.data))))


def test_what_passes_add_is_compiled_with_the_checks() -> None:
    """As if the functions had come from a pass: nothing that was compiled ahead is lost with them."""
    assert _object(Ahead(frozenset(), _task(None))) == _object(Ahead())


def test_a_mistake_in_shared_code_is_told_when_the_object_is_made() -> None:
    plain = modules.module()
    function = plain.functions[0]
    start = replace(function.blocks[0], terminator=ir.Jump("nowhere"))
    broken = replace(plain, functions=(replace(function, blocks=(start, *function.blocks[1:])),))
    assert compile_shared(broken) is None


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("example", ["sctp", "cls_route"])
def test_the_examples_need_no_second_compilation(
    example: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes over sites do change something, but not what was compiled ahead."""
    seen: list[bool] = []

    def watched(
        texts: Sequence[str], largest: int, ahead: Task[CompiledText | None]
    ) -> dict[str, MachineCode]:
        known = ahead.result()
        seen.append(known is not None and known.text == texts[0])
        return compile_texts(texts, largest, _task(known))

    monkeypatch.setattr(o2cc.bpf.emit, "compile_texts", watched)
    policy = resource_directory("examples") / f"{example}.o2c"
    source = SourceFile(str(policy), policy.read_text(encoding="utf-8"))
    options = Options(layout=layout, ahead=True)
    compiled, _ = compile_source(source, CompileOptions(kernel="6.1.0-57-amd64"), options, Stopwatch())
    emit(compiled, options, Stopwatch())
    assert seen == [True]
