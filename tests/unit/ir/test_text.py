# SPDX-License-Identifier: Apache-2.0
"""The text form: constants, spans, libraries, speed, and texts that are not IR."""

import random
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError, SourceFile, Span
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.parser import parse_library, parse_module
from o2cc.ir.printer import print_module, print_number
from o2cc.ir.verifier import verify

EXAMPLE = re.findall(
    r"```ir\n(.*?)```",
    (Path(__file__).parents[3] / "docs" / "ir.md").read_text(encoding="utf-8"),
    re.DOTALL,
)[0]


def parsed(text: str, constants: dict[str, int] | None = None) -> ir.Module:
    return parse_module(SourceFile("t.ir", text), constants or {})


def returned(text: str, constants: dict[str, int] | None = None) -> ir.Operand:
    module = parsed(f"module m {{ }}\nfunction f(a) {{\n return {text}\n}}\n", constants)
    terminator = module.functions[0].blocks[0].terminator
    assert isinstance(terminator, ir.Return)
    return terminator.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("0x10", 16),
        ("-1", 2**64 - 1),
        ("-0x8", 2**64 - 8),
        ("18446744073709551615", 2**64 - 1),
        ("-9223372036854775808", 2**63),
    ],
)
def test_numbers(text: str, value: int) -> None:
    assert returned(text) == ir.Constant(value)


@pytest.mark.parametrize(
    "text", ["18446744073709551616", "-9223372036854775809", "1" * 5000, "0x" + "f" * 5000]
)
def test_numbers_beyond_64_bits(text: str) -> None:
    with pytest.raises(DiagnosticError, match="64 bits"):
        returned(text)


@given(st.integers(0, 2**64 - 1))
def test_printed_numbers_are_read_back(value: int) -> None:
    assert returned(print_number(value)) == ir.Constant(value)


def test_named_constants_come_from_outside_and_are_printed_with_their_value() -> None:
    constant = returned("offset( slab.slab_cache )", {"offset( slab.slab_cache )": 24})
    assert constant == ir.Constant(24, "offset( slab.slab_cache )")
    assert returned("size(struct  page)", {"size(struct page)": 64}) == ir.Constant(64, "size(struct page)")
    assert returned("const(LIMIT)=7") == ir.Constant(7, "const(LIMIT)")
    assert returned("const(LIMIT)", {"const(LIMIT)": -1}) == ir.Constant(2**64 - 1, "const(LIMIT)")
    with pytest.raises(DiagnosticError, match="O2C0501") as raised:
        returned("const(LIMIT)", {"const(LIMITS)": 1})
    assert raised.value.diagnostics[0].help == "did you mean `const(LIMITS)`?"


def test_spans_are_kept() -> None:
    text = (
        'module m { }\nsource 7 "a policy.o2c"\ncheck c at 7:1..2 {\n %a = reg rbx at 7:3..5\n %b = reg rcx\n return 0\n}\n'
        "site 0 f+0x0 store c() at 7:8..8\n"
    )
    module = parsed(text)
    assert module.checks[0].span == Span("a policy.o2c", 1, 2)
    assert module.checks[0].blocks[0].spans == (Span("a policy.o2c", 3, 5), None)
    assert module.sites[0].span == Span("a policy.o2c", 8, 8)
    assert parsed(print_module(module)) == module


def test_sources_get_line_and_column_in_comments() -> None:
    source = SourceFile("p.o2c", "line one\nline two\n")
    module = parsed(
        'module m { }\nsource 0 "p.o2c"\ncheck c {\n return 0\n}\nsite 0 f+0x0 store c() at 0:14..17\n'
    )
    text = print_module(module, {"p.o2c": source})
    assert text.splitlines()[-1].endswith("; p.o2c:2:6")
    assert parsed(text) == module


def test_libraries_know_where_each_instruction_stands() -> None:
    text = "map m hash (a) -> (b) capacity const(SIZE)\nfunction f(a) {\n  %x = add %a, const(SIZE)\n  return %x\n}\n"
    source = SourceFile("library/f.ir", text)
    library = parse_library(source, {"const(SIZE)": 4})
    assert library.maps[0].capacity == 4
    (span,) = library.functions[0].blocks[0].spans
    assert span is not None
    assert source.slice(span) == "%x = add %a, const(SIZE)"
    assert source.position(span.start) == (3, 3)
    assert library.functions[0].span is not None
    assert source.slice(library.functions[0].span) == "function f(a)"


@pytest.mark.parametrize("text", ["module m { }\n", "check c {\n return 0\n}\nsite 0 f+0x0 store c()\n"])
def test_libraries_have_no_header_and_no_sites(text: str) -> None:
    with pytest.raises(DiagnosticError, match="a library has no module header and no sites"):
        parse_library(SourceFile("x.ir", text))


def test_every_error_of_a_file_is_reported() -> None:
    wrong = "\n".join(f"  %a{n} = addd %a, {n}" for n in range(50))
    with pytest.raises(DiagnosticError) as raised:
        parsed(
            f"module m {{ }}\nfunction f(a) {{\n{wrong}\n  return %a\n}}\nmap x hsh (a) -> (b) capacity 1\n"
        )
    assert len(raised.value.diagnostics) == 51


def test_large_modules_are_fast() -> None:
    module = parsed(EXAMPLE)
    large = replace(
        module,
        sites=tuple(replace(module.sites[0], number=number) for number in range(4000)),
        checks=tuple(replace(module.checks[0], name="store_rbx" if n == 0 else f"c{n}") for n in range(500)),
        discharged=module.discharged * 2000,
    )
    start = time.process_time()
    assert parsed(print_module(large)) == large
    assert verify(large) == ()
    assert time.process_time() - start < 4


# --- texts that are not IR --------------------------------------------------------------------------------

TOKENS = re.findall(r'"[^"]*"|[%$]?[\w.]+|\S|\n', EXAMPLE)


def survives(text: str) -> None:
    source = SourceFile("t.ir", text)
    for read in (parse_module, parse_library):
        try:
            module = read(source)
        except DiagnosticError as problem:
            for diagnostic in problem.diagnostics:
                assert diagnostic.primary is None or diagnostic.primary.span.end <= len(text)
            continue
        if not verify(module):
            assert parse_module(SourceFile("t.ir", print_module(module))) == module


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
def test_mutated_texts_give_diagnostics(seed: int) -> None:
    choose = random.Random(seed)
    tokens = list(TOKENS)
    for _ in range(choose.randint(1, 12)):
        place = choose.randrange(len(tokens))
        action = choose.random()
        if action < 0.4:
            tokens[place] = choose.choice(TOKENS)
        elif action < 0.6:
            del tokens[place]
        elif action < 0.8:
            tokens.insert(place, choose.choice(TOKENS))
        else:
            tokens[place] = tokens[place][: len(tokens[place]) // 2] + choose.choice('"\0\u00e9(){};:')
    survives(" ".join(tokens))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_diagnostics(text: str) -> None:
    survives(text)
    survives("module m { }\nfunction f(a) {\n" + text)


def test_a_block_needs_its_terminator_before_the_next() -> None:
    build = Builder()
    build.add(1, 2)
    with pytest.raises(ValueError, match="not terminated"):
        build.start("next")
    build.decide(ir.Verdict.ALLOW)
    with pytest.raises(ValueError, match="no block is begun"):
        build.add(1, 2)
    assert build.finish()[0].spans == ()
