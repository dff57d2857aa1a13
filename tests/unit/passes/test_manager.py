# SPDX-License-Identifier: Apache-2.0
"""Pipelines: their text, their facts, what happens to a pass that breaks the IR, and the commands around them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from o2cc.cli.explain import explain
from o2cc.cli.opt import opt
from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.parser import parse_module
from o2cc.passes.dead_code import DeadCode
from o2cc.passes.manager import Pass, PassContext, parse_pipeline, run_pipeline
from o2cc.passes.merge_equal import MergeEqual
from o2cc.passes.registry import PASSES
from o2cc.passes.unused_functions import UnusedFunctions

TEXT = """module m { }
table t (word 8) length 1 writable { }
map objects hash (base) -> (size) capacity 16
function f(a) {
  %x = add %a, 1
  return %x
}
check c {
  %r = reg rbx
  %y = call f(%r)
  store t[0].word = %y
  %e = lookup objects, %y
  br %e, some, none
some:
  %s = entry %e objects.size
  return 0
none:
  return 1
}
site 1 func+0x10 store c(size = 8) at 0:3..8
site 2 func+0x18 store c(size = 8) covered 1
discharged func+0x20 store own-frame "the proof" premises ("a premise")
"""
TEXT = 'source 0 "policy.o2c"\n' + TEXT


def module() -> ir.Module:
    return parse_module(SourceFile("t.ir", TEXT))


@dataclass(frozen=True)
class Wrecker(Pass):
    """Changes a module in a way that only whole-module rules see."""

    name: str = ""

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        return WRECKS[self.name](module)


WRECKS: dict[str, Callable[[ir.Module], ir.Module]] = {
    "function gone": lambda m: replace(m, functions=()),
    "function with another parameter": lambda m: replace(
        m, functions=(replace(m.functions[0], parameters=("a", "b")),)
    ),
    "table gone": lambda m: replace(m, tables=()),
    "table constant": lambda m: replace(m, tables=(replace(m.tables[0], writable=False),)),
    "map gone": lambda m: replace(m, maps=()),
    "check gone": lambda m: replace(m, checks=()),
    "site twice": lambda m: replace(m, sites=(m.sites[0], *m.sites)),
    "leader gone": lambda m: replace(m, sites=m.sites[1:]),
    "check renamed": lambda m: replace(m, checks=(replace(m.checks[0], name="d"),)),
    "check wants more": lambda m: replace(
        m,
        checks=(
            replace(
                m.checks[0],
                blocks=(ir.Block("entry", (ir.Parameter(ir.Value("p"), "more"),), ir.Return(ir.Value("p"))),),
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", WRECKS)
def test_what_a_pass_breaks_is_our_bug(name: str) -> None:
    with pytest.raises(DiagnosticError) as raised:
        run_pipeline(module(), [Wrecker(name)], PassContext())
    (problem,) = raised.value.diagnostics
    assert problem.code == "O2C0533"
    assert problem.notes


def test_invalid_modules_do_not_run() -> None:
    with pytest.raises(DiagnosticError, match="O2C0503"):
        run_pipeline(replace(module(), functions=()), [DeadCode()], PassContext())


def test_facts_are_asked_for_before_anything_runs() -> None:
    seen: list[str] = []
    passes = [DeadCode(), PASSES["discharge-own-frame"]()]
    with pytest.raises(DiagnosticError) as raised:
        run_pipeline(module(), passes, PassContext(), lambda step, _: seen.append(str(step)))
    assert [d.code for d in raised.value.diagnostics] == ["O2C0532", "O2C0532"]
    assert seen == []


def test_each_result_is_observed() -> None:
    seen: list[tuple[str, int]] = []
    run_pipeline(
        module(),
        [UnusedFunctions(("c",)), MergeEqual()],
        PassContext(),
        lambda step, result: seen.append((str(step), len(result.functions))),
    )
    assert seen == [("unused-functions{keep=c}", 1), ("merge-equal", 1)]


def test_pipelines_are_read_as_they_are_written() -> None:
    text = "dead-code,unused-functions{keep=a;b},merge-checks{check=x maximum=4},constant-folding"
    passes = parse_pipeline(text, PASSES)
    assert ",".join(map(str, passes)) == text
    assert parse_pipeline(" dead-code , merge-equal", PASSES) == (DeadCode(), MergeEqual())


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("dead-cod", "O2C0530", "did you mean `dead-code`?"),
        ("", "O2C0531", ""),
        ("dead-code,,merge-equal", "O2C0531", ""),
        ("merge-checks{maximum=x}", "O2C0531", ""),
        ("merge-checks{maximun=4}", "O2C0531", ""),
        ("merge-checks{maximum", "O2C0531", ""),
        ("dead-code{x}", "O2C0531", ""),
    ],
)
def test_wrong_pipelines(text: str, code: str, words: str) -> None:
    with pytest.raises(DiagnosticError) as raised:
        parse_pipeline(text, PASSES)
    assert raised.value.diagnostics[0].code == code
    assert words in (raised.value.diagnostics[0].help or "")


def test_every_pass_has_a_name_and_a_line_of_help() -> None:
    for name, kind in PASSES.items():
        assert kind.command_name() == name
        first = (kind.__doc__ or "").splitlines()[0]
        assert first.endswith(".")
        assert len(first) < 72


# --- commands ---------------------------------------------------------------------------------------------


def test_opt_runs_from_file_to_file(tmp_path: Path) -> None:
    given, result = tmp_path / "in.ir", tmp_path / "out.ir"
    given.write_text(TEXT)
    done = CliRunner().invoke(opt, [str(given), "-p", "dead-code", "-o", str(result), "--print-after"])
    assert done.exit_code == 0, done.output
    assert "; after dead-code" in done.output
    assert "%s = entry" not in result.read_text()
    assert "source 0" in result.read_text()
    again = CliRunner().invoke(opt, [str(result), "--default"])
    assert again.exit_code == 0
    assert again.output.startswith("module m {")


def test_opt_shows_errors_where_they_stand(tmp_path: Path) -> None:
    given, result = tmp_path / "in.ir", tmp_path / "out.ir"
    given.write_text(TEXT.replace("reg rbx", "reg ebx"))
    done = CliRunner().invoke(opt, [str(given), "-o", str(result)])
    assert done.exit_code == 1
    assert "O2C0503" in done.output
    assert "in.ir:10:3" in done.output
    assert not result.exists()


def test_opt_takes_constants(tmp_path: Path) -> None:
    given = tmp_path / "in.ir"
    given.write_text("module m { }\nfunction f() {\n return offset(slab.slab_cache)\n}\n")
    assert CliRunner().invoke(opt, [str(given)]).exit_code == 1
    done = CliRunner().invoke(opt, [str(given), "--constant", "offset(slab.slab_cache)=0x18"])
    assert "offset(slab.slab_cache)=24" in done.output
    assert CliRunner().invoke(opt, [str(given), "--constant", "offset"]).exit_code == 2


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\x7fELF", b"module", b"{" * 100_000, b"module m {}\n" + b"(" * 1000]
)
def test_opt_survives_junk(tmp_path: Path, content: bytes) -> None:
    given = tmp_path / "in.ir"
    given.write_bytes(content)
    done = CliRunner().invoke(opt, [str(given)])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)


def test_explain_tells_check_proof_and_cover(tmp_path: Path) -> None:
    given = tmp_path / "in.ir"
    given.write_text(TEXT)
    runner = CliRunner()
    checked = runner.invoke(explain, ["func+0x10", str(given)])
    assert checked.output == (
        "func+0x10: store, checked at run time (site 1)\n  check: c(size = 8)\n  policy: policy.o2c\n"
    )
    proved = runner.invoke(explain, ["func+32", str(given)]).output
    assert "needs no check (own-frame)" in proved
    assert "the proof" in proved
    assert "- a premise" in proved
    assert "decided by the check of site 1" in runner.invoke(explain, ["func+0x18", str(given)]).output


def test_explain_helps_to_find_the_place(tmp_path: Path) -> None:
    given = tmp_path / "in.ir"
    given.write_text(TEXT)
    nearest = CliRunner().invoke(explain, ["func+0x11", str(given)])
    assert nearest.exit_code == 1
    assert "`func+0x10`, `func+0x18`, `func+0x20`" in nearest.output
    assert "did you mean `func`?" in CliRunner().invoke(explain, ["funk+0x10", str(given)]).output
    assert "O2C0540" in CliRunner().invoke(explain, ["func+", str(given)]).output
    assert "O2C0541" in CliRunner().invoke(explain, ["other", str(given)]).output


def test_explain_lists_a_function(tmp_path: Path) -> None:
    given = tmp_path / "in.ir"
    given.write_text(TEXT)
    assert CliRunner().invoke(explain, ["func", str(given)]).output == (
        "func+0x10    store          checked: c\n"
        "func+0x18    store          checked, by the check of site 1: c\n"
        "func+0x20    store          needs no check: own-frame\n"
    )
