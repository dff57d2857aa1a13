# SPDX-License-Identifier: Apache-2.0
"""What each instruction means, by the reference interpreter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.ir.interpreter import Interpreter, evaluate
from o2cc.ir.machine import Machine
from o2cc.ir.nodes import BinaryOperator, Verdict
from o2cc.ir.parser import parse_module
from o2cc.ir.verifier import require_valid

PRELUDE = """module m { }
map objects hash (base) -> (size, type) capacity 2
map recent lru_hash (base) -> (size) capacity 2
map events ring_buffer () -> (time, cpu) capacity 4096
table grants (type 2, start 4) length 3 {
  1 10
  2 20
}
table globals (hits 8, small 4) length 2 writable { }
"""
WORDS = st.integers(0, 2**64 - 1) | st.integers(0, 130) | st.integers(2**64 - 130, 2**64 - 1)


def machine(text: str) -> Interpreter:
    module = parse_module(SourceFile("t.ir", PRELUDE + text))
    require_valid(module)
    return Interpreter(Machine(module))


def function(body: str, *arguments: int) -> int:
    names = ", ".join("abcde"[: len(arguments)])
    return machine(f"function f({names}) {{\n{body}\n}}\n").run_function("f", *arguments).value


@pytest.mark.parametrize(
    ("operator", "left", "right", "expected"),
    [
        ("add", 2**64 - 1, 2, 1),
        ("sub", 1, 2, 2**64 - 1),
        ("mul", 2**63, 3, 2**63),
        ("udiv", 7, 2, 3),
        ("udiv", 7, 0, 0),
        ("umod", 7, 4, 3),
        ("umod", 7, 0, 7),
        ("and", 12, 10, 8),
        ("or", 12, 10, 14),
        ("xor", 12, 10, 6),
        ("shl", 1, 63, 2**63),
        ("shl", 1, 65, 2),
        ("lshr", 2**63, 63, 1),
        ("lshr", 8, 64, 8),
        ("ashr", 2**63, 63, 2**64 - 1),
        ("ashr", 8, 2, 2),
        ("ult", 1, 2**64 - 1, 1),
        ("slt", 1, 2**64 - 1, 0),
        ("slt", 2**64 - 1, 1, 1),
        ("sge", 1, 2**64 - 1, 1),
        ("uge", 5, 5, 1),
        ("ugt", 5, 5, 0),
        ("ule", 5, 5, 1),
        ("sle", 2**63, 2**63 - 1, 1),
        ("sgt", 2**63, 2**63 - 1, 0),
        ("eq", 3, 3, 1),
        ("ne", 3, 3, 0),
    ],
)
def test_operators(operator: str, left: int, right: int, expected: int) -> None:
    assert function(f"%r = {operator} %a, %b\n return %r", left, right) == expected


@given(WORDS, WORDS)
def test_comparisons_are_consistent(left: int, right: int) -> None:
    op = BinaryOperator
    for below, above, least, most in (
        (op.ULT, op.UGT, op.ULE, op.UGE),
        (op.SLT, op.SGT, op.SLE, op.SGE),
    ):
        assert evaluate(below, left, right) == evaluate(above, right, left)
        assert evaluate(least, left, right) == 1 - evaluate(above, left, right)
        assert evaluate(most, left, right) == 1 - evaluate(below, left, right)
    quotient, remainder = evaluate(op.UDIV, left, right), evaluate(op.UMOD, left, right)
    assert evaluate(op.ADD, evaluate(op.MUL, quotient, right), remainder) == left


def test_select_takes_any_nonzero_word() -> None:
    text = "%r = select %a, 5, 6\n return %r"
    assert [function(text, word) for word in (0, 1, 2**63)] == [6, 5, 5]


def test_variables_start_at_zero_and_loops_count() -> None:
    text = """ jump head
head:
  %more = ult $i, %a
  %in = ult $i, 100
  br %in, body, done
body:
  %sum = add $sum, $i
  $sum = %sum
  %n = add $i, 1
  $i = %n
  jump head
done:
  return $sum"""
    assert function(text, 3) == sum(range(100))


def test_reads_are_little_endian_and_zero_when_they_fault() -> None:
    runs = machine("function f(p) {\n %r = read 8 %p\n %s = read 2 %p\n %t = add %r, %s\n return %t\n}\n")
    runs.machine.memory.write_word(0x1FFC, 0x1122334455667788)  # crosses a page
    assert runs.run_function("f", 0x1FFC).value == 0x1122334455667788 + 0x7788
    runs.machine.memory.unmap(0x2003, 1)
    assert runs.run_function("f", 0x1FFC).value == 0x7788
    assert runs.run_function("f", 2**64 - 4).value == 0


def test_memory_lists_its_ranges() -> None:
    memory = machine("").machine.memory
    memory.write(0x1FFE, b"abcd")
    memory.write(0x5000, b"x")
    assert list(memory.ranges()) == [(0x1FFE, b"abcd"), (0x5000, b"x")]


def test_tables_ignore_what_is_out_of_bounds() -> None:
    assert function("%r = load grants[%a].start\n return %r", 1) == 20
    assert function("%r = load grants[%a].start\n return %r", 2) == 0
    assert function("%r = load grants[%a].start\n return %r", 2**40) == 0
    runs = machine(
        "function f(i, v) {\n store globals[%i].small = %v\n %old = fetch_add globals[%i].small, 2\n return %old\n}\n"
    )
    assert runs.run_function("f", 0, 2**32 - 1).value == 2**32 - 1
    assert runs.machine.tables["globals"].load(0, "small") == 1
    assert runs.run_function("f", 2, 5).value == 0
    assert set(runs.machine.tables["globals"].rows) == {0}


def test_a_word_is_exchanged_where_it_is_the_one_expected() -> None:
    body = "function f(i, e, n) {\n %old = cmpxchg globals[%i].hits, %e, %n\n return %old\n}\n"
    runs = machine(body)
    hits = runs.machine.tables["globals"]
    assert (runs.run_function("f", 0, 0, 7).value, hits.load(0, "hits")) == (0, 7)
    assert (runs.run_function("f", 0, 0, 9).value, hits.load(0, "hits")) == (7, 7)
    assert runs.run_function("f", 2, 0, 9).value == 0
    assert set(hits.rows) == {0}


MAPS = """function put(k, v) {
  %r = update objects, [%k], [%v, 7]
  return %r
}
function add(k, v) {
  %r = update objects, [%k], [%v, 7], noexist
  return %r
}
function drop(k) {
  %r = delete objects, [%k]
  return %r
}
function change(k) {
  %e = lookup objects, %k
  br %e, found, missing
found:
  %s = entry %e objects.size
  %one = add %s, 1
  entry %e objects.size = %one
  %old = entry_fetch_add %e objects.type, 3
  %seen = entry_cmpxchg %e objects.type, 10, 20
  %not = entry_cmpxchg %e objects.type, 10, 30
  %sum = add %seen, %not
  return %sum
missing:
  return 0
}
"""


def test_maps_have_a_capacity_and_answer_with_errors() -> None:
    runs = machine(MAPS)
    assert runs.run_function("put", 1, 10).value == 0
    assert runs.run_function("add", 1, 11).value == 2**64 - 17
    assert runs.run_function("put", 2, 20).value == 0
    assert runs.run_function("put", 3, 30).value == 2**64 - 7
    assert runs.run_function("put", 2, 21).value == 0
    assert runs.run_function("drop", 3).value == 2**64 - 2
    assert runs.run_function("drop", 1).value == 0
    assert runs.machine.maps["objects"].snapshot() == {(2,): {"size": 21, "type": 7}}


def test_entries_are_changed_in_place() -> None:
    runs = machine(MAPS)
    assert runs.run_function("change", 1).value == 0
    runs.run_function("put", 1, 10)
    assert runs.run_function("change", 1).value == 10 + 20
    assert runs.machine.maps["objects"].snapshot() == {(1,): {"size": 11, "type": 20}}


def test_lru_maps_drop_the_entry_used_longest_ago() -> None:
    runs = machine(
        "function put(k) {\n %r = update recent, [%k], [0]\n return %r\n}\n"
        "function see(k) {\n %e = lookup recent, %k\n br %e, y, n\ny:\n return 1\nn:\n return 0\n}\n"
    )
    for key in (1, 2):
        assert runs.run_function("put", key).value == 0
    assert runs.run_function("see", 1).value == 1
    assert runs.run_function("put", 3).value == 0
    assert [runs.run_function("see", key).value for key in (1, 2, 3)] == [1, 0, 1]


def test_events_stop_when_the_ring_is_full() -> None:
    runs = machine(
        "hook h raw_tracepoint k {\n %t = now\n %c = cpu\n %r = emit events, [%t, %c]\n return %r\n}\n"
    )
    runs.machine.now, runs.machine.cpu = 5, 1
    outcome = runs.run_hook("h")
    assert outcome.events[0].fields == (5, 1)
    assert runs.machine.named_events() == [{"time": 5, "cpu": 1}]
    written = 1
    while runs.run_hook("h").value:
        written += 1
    assert written == 4095 // (8 + 16)
    runs.machine.rings["events"].drain()
    assert runs.run_hook("h").value == 1


def test_checks_read_registers_parameters_and_symbols() -> None:
    runs = machine(
        """check c {
  %r = reg rbx
  %d = param displacement
  %a = add %r, %d
  %b = symbol base
  %n = symbol absent
  %s = sub %a, %b
  %t = add %s, %n
  %ok = eq %t, 16
  br %ok, yes, no
yes:
  verdict allow
no:
  verdict audition
}
site 4 f+0x1 store c(displacement = -8)
"""
    )
    runs.machine.symbols = {"base": 100}
    outcome = runs.run_site(4, {"rbx": 124})
    assert (outcome.verdict, outcome.executed, outcome.path) == (Verdict.ALLOW, 10, ("c.entry", "c.yes"))
    assert runs.run_site(4, {"rbx": 125}).verdict is Verdict.AUDITION
    assert runs.run_check("c", {"rbx": 116}, {"displacement": 0}).verdict is Verdict.ALLOW


def test_calls_pass_words_and_return_verdict_codes() -> None:
    runs = machine(
        "function g(a, b) {\n %c = ult %a, %b\n br %c, y, n\ny:\n verdict deny\nn:\n return %a\n}\n"
        "hook h raw_tracepoint k {\n %a = arg 1\n %r = call g(%a, 5)\n return %r\n}\n"
    )
    assert runs.run_hook("h", arguments=(0, 4)).value == Verdict.DENY.code
    assert runs.run_hook("h", arguments=(0, 9)).value == 9
    assert runs.run_hook("h", arguments=()).value == Verdict.DENY.code


def test_kill_is_recorded() -> None:
    runs = machine("hook h kprobe k {\n %r = kill\n return %r\n}\n")
    runs.machine.pid_tgid, runs.machine.kill_result = 77, -1
    assert runs.run_hook("h").value == 2**64 - 1
    assert runs.machine.killed == [77]


def test_a_run_has_an_end() -> None:
    module = parse_module(SourceFile("t.ir", "module m { }\nfunction f() {\n jump x\nx:\n jump x\n}\n"))
    with pytest.raises(DiagnosticError, match="O2C0534"):
        Interpreter(Machine(module), maximum_steps=1000).run_function("f")
