# SPDX-License-Identifier: Apache-2.0
"""One snapshot a mistake: the source and what the user is told, together."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion

from o2cc.diagnostics import Diagnostic, DiagnosticError, SourceFile
from o2cc.report.explain import known_codes
from o2cc.report.locate import sources_by_name
from o2cc.report.render import ErrorFormat, render
from o2cc.syntax.parser import parse

CASES = {
    "semicolon": "use std.linux;\nuse std.net;\n",
    "misspelled_item": 'compartmint a {\n    code modules "a"\n}\n',
    "misspelled_rule": 'compartment a {\n    code modules "a"\n    writ struct sock { sk_err }\n}\n',
    "word_of_another_language": "import std.linux\n",
    "rule_in_the_wrong_block": "compartment a {\n    in functions { f } {\n        heap tracked\n    }\n}\n",
    "missing_comma": "compartment a {\n    write struct sock { sk_err sk_drops }\n}\n",
    "missing_comma_over_lines": "set s = {\n    one,\n    two\n    three,\n}\n",
    "assignment_in_condition": "compartment a {\n    gate f(n) { require n = 5 }\n}\n",
    "missing_operand": "compartment a {\n    gate f(n) { require n <= }\n}\n",
    "doubled_operator": "compartment a {\n    gate f(n) { require n > 1 && && n < 3 }\n}\n",
    "chained_comparison": "compartment a {\n    gate f(n) { require 1 < n < 3 }\n}\n",
    "item_not_finished": "compartment a {\n    call imports except\n    icall self\n}\n",
    "missing_parenthesis": "compartment a {\n    gate f(n { require n > 1 }\n}\n",
    "unclosed_block_at_the_end": 'compartment a {\n    code modules "a"\n',
    "unclosed_block_before_an_item": 'compartment a {\n    code modules "a"\n\ntest "t" {\n    leave\n}\n',
    "brace_too_many": "use std.linux\n}\n",
    "end_in_the_middle": "const LIMIT =",
    "single_quotes": "compartment a {\n    code modules 'a'\n}\n",
    "string_not_closed": 'compartment a {\n    code modules "a\n    heap tracked\n}\n',
    "comment_not_closed": "use std.linux\n/* and so on\n",
    "hash_comment": "# confine\nuse std.linux\n",
    "unknown_character": "use std.linux\nset s = { §, b }\n",
    "size_without_unit": "compartment a {\n    heap private 64\n}\n",
    "time_for_a_size": "compartment a {\n    stack private 16 ms\n}\n",
    "size_for_a_time": "compartment a {\n    transition { at most 60 KiB }\n}\n",
    "unknown_unit": "compartment a {\n    heap private 64 MB\n}\n",
    "unknown_unit_of_nothing": "const X = 5 parsecs\n",
    "number_too_large": "const X = 18446744073709551616\n",
    "number_too_large_by_unit": "const X = 17179869184 GiB\n",
    "number_without_digits": "const X = 0x_\n",
    "ratio_too_long": f"const X = 0.{'9' * 60}\n",
    "parameter_after_variadic": "extern fn f(a, ..., b) pure\n",
    "capability_of_two": "caps c(a: struct sock, b) { a whole }\n",
    "string_as_icall_target": 'compartment a {\n    icall self, "nft_*"\n}\n',
    "unknown_action": "compartment a {\n    on violation block\n}\n",
    "unknown_state": 'test "t" {\n    given p: struct sock fried\n}\n',
    "expect_unknown": 'test "t" {\n    expect denied\n}\n',
    "empty_field_list": "compartment a {\n    write struct sock {}\n}\n",
    "nested_too_deep": f"const X = {'(' * 65}1{')' * 65}\n",
    "expression_too_long": f"const X = {' + '.join(['1'] * 70)}\n",
    "control_character": "use std.\0linux\n",
    "tabs_before_the_mark": "compartment a {\n\t\tcode\tmodules\ta\n}\n",
    "very_long_line": f"set s = {{ {', '.join(f'f{i}' for i in range(200))}, g h }}\n",
    "semicolon_in_a_list": "set s = { a; b }\n",
    "list_not_closed": "compartment a {\n    write struct x { y\n    heap tracked\n}\n",
    "field_after_the_struct": "compartment a {\n    write struct sock.sk_err\n}\n",
    "struct_forgotten": "compartment a {\n    write sock { sk_err }\n}\n",
    "clauses_without_braces": "compartment a {\n    gate kfree(p) require held(p)\n}\n",
    "pattern_without_braces": "compartment a {\n    in functions sctp_sf_* { call imports }\n}\n",
    "pattern_as_a_call": "compartment a {\n    call *\n}\n",
    "name_without_quotes": "compartment a {\n    code modules sctp\n}\n",
    "quotes_around_a_name": 'use "std.linux"\n',
    "parameter_as_in_c": "extern fn f(struct sock *p) pure\n",
    "pointer_type": "extern fn f(p: struct sock *) pure\n",
    "fn_forgotten": "extern memcpy(d, s, n) writes d[n]\n",
    "misspelled_clause": "extern fn memcpy(d, s, n) write d[n]\n",
    "arrow": "compartment a {\n    gate f(x) { require x->len < 5 }\n}\n",
    "word_and": "compartment a {\n    gate f(x) { require x.len < 5 and x.len > 3 }\n}\n",
    "word_not": "compartment a {\n    gate f(x) { require not held(x) }\n}\n",
    "word_in": "compartment a {\n    gate f(x) { require x in { 1, 2 } }\n}\n",
    "conditional_operator": "compartment a {\n    gate f(x) { require x ? 1 : 0 }\n}\n",
    "bare_time": "compartment a {\n    transition { 60 s }\n}\n",
    "bare_size": "compartment a {\n    heap 64 MiB\n}\n",
    "hidden_direction": "// harmless \u202e\ncompartment a {}\n",
    "hidden_line_end": "compartment a {\n    // no\u2028    heap tracked\n    // no\r    call imports\n}\n",
    "hidden_space": 'compartment a {\n    code modules "sc\u200btp"\n}\n',
    "list_not_opened": "compartment a {\n    write struct x\n        y, z.w,\n    }\n    heap tracked\n}\n",
    "list_not_closed_after_a_comma": "compartment a {\n    write struct x {\n        y,\n    write struct z\n}\n",
    "list_not_closed_before_except": "compartment a {\n    write struct x { y, z* except { zz }\n}\n",
    "several": (
        "use std.linux;\n"
        "compartment a {\n"
        "    cod modules 'a'\n"
        "    gate f(n) { require n = 5 }\n"
        "    heap private 4\n"
        "}\n"
        'test "t" {\n'
        "    expects deny\n"
        "}\n"
    ),
}


def diagnostics_of(source: SourceFile) -> tuple[Diagnostic, ...]:
    """What the parser says of a source that it refuses."""
    with pytest.raises(DiagnosticError) as refusal:
        parse(source)
    return refusal.value.diagnostics


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, snapshot: SnapshotAssertion) -> None:
    source = SourceFile("policy.o2c", CASES[name])
    rendered = render(diagnostics_of(source), sources_by_name([source]), ErrorFormat.TEXT)
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in source.text)
    assert f"{shown}\n--------\n{rendered}" == snapshot


def test_every_syntax_code_has_a_case() -> None:
    shown = {
        diagnostic.code
        for text in CASES.values()
        for diagnostic in diagnostics_of(SourceFile("policy.o2c", text))
    }
    # O2C0107 is about a megabyte of text, too long for a snapshot: see test_limits.py.
    assert {code for code in known_codes() if code.startswith("O2C01")} - shown == {"O2C0107"}


@pytest.mark.parametrize("name", CASES)
def test_style(name: str) -> None:
    for diagnostic in diagnostics_of(SourceFile("policy.o2c", CASES[name])):
        for text in (diagnostic.message, diagnostic.help or "x", *diagnostic.notes):
            assert not text.endswith(".")
            assert text[0].islower() or not text[0].isalpha()
