# SPDX-License-Identifier: Apache-2.0
"""The standard library: complete in itself, and complete for the targets that travel with the package."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from o2cc.diagnostics import Collector, DiagnosticError, SourceFile, Span
from o2cc.kernel import store
from o2cc.policy.capabilities import Capabilities, capability_named
from o2cc.policy.context import Context
from o2cc.policy.gates import GateBuilder
from o2cc.policy.library import FileResolver
from o2cc.policy.model import Action
from o2cc.policy.names import ParsedModule, load_program
from o2cc.policy.target import TargetCode
from o2cc.policy.unknown import callees_of
from o2cc.resources import resource_directory
from o2cc.syntax import nodes
from o2cc.syntax.formatter import format_source
from o2cc.syntax.parser import parse
from tests.unit.standard_library import standard_library

from .target import describe

MODULES = sorted(name for name in standard_library().names() if name.startswith("std."))
STDLIB = resource_directory("stdlib")
SPAN = Span("<test>", 0, 0)


def everything() -> Context:
    """All modules, for no target."""
    source = SourceFile("<test>", "".join(f"use {name}\n" for name in MODULES))
    collector = Collector()
    program = load_program(ParsedModule("", source, parse(source)), standard_library(), collector)
    collector.raise_if_errors()
    return Context(program, None, collector, Capabilities())


def test_there_is_a_library() -> None:
    assert {"std.linux", "std.net", "std.netfilter", "std.sched"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_it_begins_with_its_licence(name: str) -> None:
    path = STDLIB / f"{name.removeprefix('std.')}.o2c"
    assert path.read_text(encoding="utf-8").startswith("// SPDX-License-Identifier: Apache-2.0\n")


@pytest.mark.parametrize("name", MODULES)
def test_it_is_formatted(name: str) -> None:
    path = STDLIB / f"{name.removeprefix('std.')}.o2c"
    text = path.read_text(encoding="utf-8")
    assert format_source(SourceFile(path.name, text)) == text


def test_names_and_clauses_hold_for_every_function() -> None:
    context = everything()
    functions = dict.fromkeys(
        [*context.program.functions, *(item[0] for item in context.program.function_globs)], SPAN
    )
    gates = GateBuilder(context, TargetCode(None), Action.DENY).build(functions, {}, (), SPAN)
    assert [item.message for item in context.collector.diagnostics] == []
    assert len(gates) == len(functions) > 500


def test_nothing_is_said_twice_and_everything_says_something() -> None:
    context = everything()
    for name, (_, node) in context.program.functions.items():
        clauses = {type(clause) for clause in node.clauses}
        assert not (nodes.Pure in clauses and len(clauses) > 1), name


def test_entries_name_known_capabilities() -> None:
    context = everything()
    for module in context.program.modules.values():
        for item in nodes.walk(module.file):
            if isinstance(item, nodes.Gives | nodes.Lends | nodes.Takes) and item.capability is not None:
                capability_named(context, module, item.capability)
    assert [item.message for item in context.collector.diagnostics] == []


@pytest.mark.parametrize(
    "function", ["commit_creds", "call_usermodehelper_exec", "set_memory_x", "text_poke_bp", "kernel_write"]
)
def test_dangerous_functions(function: str) -> None:
    context = everything()
    defined = context.program.definitions["std.linux"][nodes.SetDef, "dangerous"].node
    assert isinstance(defined, nodes.SetDef)
    patterns = [item.text for item in defined.value.include if isinstance(item, nodes.SymbolPattern)]
    assert any(fnmatch.fnmatchcase(function, pattern) for pattern in patterns)


def test_all_calls_of_bundled_targets_are_known() -> None:
    bundled = sorted(resource_directory("descriptions").rglob("*.o2k"))
    assert {path.stem for path in bundled} >= {"sctp", "nf_tables", "cls_route", "ip6_output"}
    for path in bundled:
        callees = callees_of(store.load(path), MODULES, standard_library())
        # Clones that the compiler made (`foo.isra.0`) have parameters that nobody knows.
        assert [gate.function for gate in callees.unknown if "." not in gate.function] == [], path.name
        assert callees.total == len(callees.unknown) + sum(callees.known.values()) > 0


def test_unknown_calls_are_listed_with_what_is_not_checked() -> None:
    callees = callees_of(describe(), MODULES, standard_library())
    names = {gate.function: gate for gate in callees.unknown}
    assert callees.total == 12
    mystery = names["mystery"]
    assert (mystery.by_type, mystery.shared) == (("object", "callback"), ("net",))
    assert mystery.unchecked == ("buffer",)
    assert mystery.callers == ("demo_write",)
    assert mystery.signature.startswith("int mystery(struct demo_object *object, struct net *net")
    assert "kfree" not in names


def test_files_beside_the_policy(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine.o2c").write_text("const A = 1\n", encoding="utf-8")
    resolve = FileResolver(tmp_path)
    module = resolve("lib.mine")
    assert module is not None
    assert resolve("lib.mine") is module
    assert resolve("lib.other") is None
    assert FileResolver()("lib.mine") is None
    assert [source.text for source in resolve.sources] == ["const A = 1\n"]


def test_a_module_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.o2c").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DiagnosticError) as failure:
        FileResolver(tmp_path)("bad")
    assert failure.value.diagnostics[0].code == "O2C0209"
