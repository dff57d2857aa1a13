# SPDX-License-Identifier: Apache-2.0
"""Whatever the text, the parser answers in bounded time, with a tree or with diagnostics."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.report.locate import sources_by_name
from o2cc.report.render import ErrorFormat, render
from o2cc.syntax.formatter import format_source
from o2cc.syntax.lexical import MAX_SOURCE_CHARACTERS
from o2cc.syntax.nodes import PolicyFile
from o2cc.syntax.parser import parse

from .derivations import derive_text

# Of CPU time. Generous: a slow machine must not fail it, quadratic work must.
SECONDS = 20

SMALL = 'compartment a { code modules "m" write struct s { x } gate f(n) { require n < 5 } }\n'


def outcome(text: str) -> PolicyFile | tuple[str, ...]:
    """The tree, or the codes of the diagnostics, each of which renders in every format."""
    source = SourceFile("x.o2c", text)
    try:
        return parse(source)
    except DiagnosticError as problem:
        diagnostics = problem.diagnostics
    for diagnostic in diagnostics:
        assert diagnostic.primary is not None
        assert 0 <= diagnostic.primary.span.start <= diagnostic.primary.span.end <= len(text)
    for format in ErrorFormat:
        assert render(diagnostics, sources_by_name([source]), format)
    return tuple(diagnostic.code for diagnostic in diagnostics)


HUGE = {
    "longer_than_the_limit": ("x" * (10 << 20), "O2C0107"),
    "nested_braces": ("{" * 100_000, "O2C0109"),
    "nested_braces_closed": ("{" * 100_000 + "}" * 100_000, "O2C0109"),
    "nested_parentheses": ("const X = " + "(" * 100_000, "O2C0109"),
    "nested_blocks": ("compartment a { " * 60_000, "O2C0109"),
    "closing_braces": ("}" * 100_000, "O2C0117"),
    "junk": ("\x7fELF\x02\x01\x01\0\0\0" * 1000, "O2C0108"),
    "nul": ("use a\0b", "O2C0108"),
    "replacement_characters": ("\ufffd" * 100_000, "O2C0102"),
    "semicolons": ("; " * 100_000, "O2C0105"),
    "long_chain": ("const X = 1" + " + 1" * 30_000, "O2C0109"),
    "long_prefix_chain": ("const X = " + "!" * 30_000 + "1", "O2C0109"),
    "many_digits": ("const X = " + "9" * 500_000, "O2C0111"),
    "one_long_word": ("a" * 500_000, "O2C0112"),
    "unclosed_comment": ("/*" * 400_000, "O2C0104"),
    "unclosed_strings": ('use a "\n' * 50_000, "O2C0103"),
    "errors_on_every_line": ("const X =\n" * 20_000, "O2C0101"),
    "open_compartments": ("compartment a {\n" * 60, "O2C0116"),
}


@pytest.mark.parametrize("name", HUGE)
def test_refuses_hostile_text_quickly(name: str) -> None:
    text, code = HUGE[name]
    started = time.process_time()
    codes = outcome(text)
    assert time.process_time() - started < SECONDS
    assert isinstance(codes, tuple)
    assert code in codes


LARGE = {
    "comments": "//\n" * 100_000,
    "block_comments": "/**/" * 60_000,
    "blank_lines": "\n" * 1_000_000,
    "rules": "compartment a {\n" + "    write struct s { x }\n" * 5_000 + "}\n",
    "uses": "use a.b\n" * 10_000,
    "one_set": "set s = { " + ", ".join(f"f{i}" for i in range(20_000)) + " }",
    "one_path": "const X = a" + ".b" * 30_000,
    "groups": "compartment a { icall " + ", ".join(["{ f }"] * 15_000) + " }",
    "one_line_string": 'code modules "'.join(["compartment a { ", "x" * 500_000 + '" }']),
}


@pytest.mark.parametrize("name", LARGE)
def test_parses_and_formats_large_text_quickly(name: str) -> None:
    text = LARGE[name]
    assert len(text) <= MAX_SOURCE_CHARACTERS
    started = time.process_time()
    assert isinstance(outcome(text), PolicyFile)
    formatted = format_source(SourceFile("x.o2c", text))
    assert time.process_time() - started < SECONDS
    assert formatted.strip() or not text.strip()


def test_number_of_diagnostics_is_bounded() -> None:
    codes = outcome("const X =\n" * 20_000)
    assert isinstance(codes, tuple)
    assert 10 <= len(codes) <= 100


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("\ufeff")
@example('"')
@example("'")
@example("/")
@example("*/")
@example("compartment")
@example("compartment a {")
@example("test")
@example("extern fn")
@example("\u2028use a")
@example("use a // \ud800")
@example("0x")
@example("x.")
def test_any_text(text: str) -> None:
    outcome(text)


_VOCABULARY = """
compartment test use const set extern fn entry caps shared write struct union gate call icall self ops of modules
in functions except entries heap private tracked stack audition at access free require transition until quiescent
for most on violation deny report kill missed probes strict given store to enter leave phase final expect allow a b
skb n whole imports writes reads frees gives takes lends as when pure returns held { } ( ) [ ] , . .. ... : = == < >
+ - * / % & | ^ << >> && || ! ~ 0 1 64 0.5 KiB s "x" a_* ; ' " § // /* */ #
"""
_WORDS = st.sampled_from(_VOCABULARY.split())


@settings(max_examples=400, deadline=None)
@given(st.lists(_WORDS, max_size=60), st.sampled_from((" ", "\n", "")))
def test_any_words(words: list[str], gap: str) -> None:
    outcome(gap.join(words))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32), st.data())
def test_mutated_policies(seed: int, data: st.DataObject) -> None:
    text = derive_text(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 8))
        insert = data.draw(st.one_of(st.text(max_size=3), _WORDS))
        text = text[:at] + insert + text[at + length :]
    outcome(text)


def test_errors_far_apart_are_all_found() -> None:
    broken = "compartment b { heap private 5 }\n"
    text = "".join(SMALL + (broken if i % 10 == 0 else "") for i in range(100))
    assert outcome(text) == ("O2C0110",) * 10


def test_an_error_does_not_hide_the_next_item() -> None:
    codes = outcome("compartment a { gate f(n { } }\n" + "const X = \n" + SMALL + "set s { a }\n")
    assert isinstance(codes, tuple)
    assert len(codes) == 3


def test_unknown_items_side_by_side_are_all_found() -> None:
    text = "compartment a {\n    writ struct s { x }\n    gat f(x)\n    cal imports\n    heap tracked\n}\nconts X = 1\n"
    assert outcome(text) == ("O2C0112",) * 4


WELL_FORMED = """
use std.linux

compartment a {
    code   functions { f_* } except { f_x } of vmlinux
    write  struct sock {
        sk_err, sk_drops,
        sk_lock.slock,
    }
    write  symbols { v, w.x } except { w.x.y }
    in functions { f_a } { write struct y { z }  on violation kill }
    entry  f_b(skb) { lends skb as packet until return }
    gate   g(p, n) {
        require n < (p.len + 3) * 2 && held(p)
        transfer p as packet to kernel
    }
    call   imports except { h, i }
    icall  self, { j }
    transition { until quiescent, at most 60 s }
}

test "t" {
    given p: struct sock held as packet { sk_err = 4 }
    call g(p, 3) as q
    expect deny
}
"""


@pytest.mark.parametrize("at", [i for i, char in enumerate(WELL_FORMED) if char in "{}()"])
def test_one_missing_bracket_gives_few_messages_near_it(at: int) -> None:
    broken = SourceFile("x.o2c", WELL_FORMED[:at] + WELL_FORMED[at + 1 :])
    with pytest.raises(DiagnosticError) as refusal:
        parse(broken)
    diagnostics = refusal.value.diagnostics
    assert len(diagnostics) <= 2
    spans = [label.span for d in diagnostics for label in (d.primary, *d.secondary) if label is not None]
    line, _ = broken.position(at)
    # Some brackets can only be missed where the block around them ends.
    assert min(abs(broken.position(span.start)[0] - line) for span in spans) <= 6
