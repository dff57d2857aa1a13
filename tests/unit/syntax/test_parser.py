# SPDX-License-Identifier: Apache-2.0
"""What the parser makes of each form of the language."""

from __future__ import annotations

from fractions import Fraction
from typing import TypeVar

import pytest

from o2cc.diagnostics import SourceFile
from o2cc.syntax import nodes as n
from o2cc.syntax.parser import parse

T = TypeVar("T", bound=n.Node)


def _file(text: str) -> n.PolicyFile:
    return parse(SourceFile("p.o2c", text))


def _item(text: str, kind: type[T]) -> T:
    (item,) = _file(text).items
    assert isinstance(item, kind)
    return item


def _rule(text: str, kind: type[T]) -> T:
    (rule,) = _item(f"compartment c {{ {text} }}", n.Compartment).rules
    assert isinstance(rule, kind)
    return rule


def _clause(text: str, kind: type[T]) -> T:
    (clause,) = _item(f"extern fn f(p, q) {text}", n.ExternFunction).clauses
    assert isinstance(clause, kind)
    return clause


def _step(text: str, kind: type[T]) -> T:
    (step,) = _item(f'test "t" {{ {text} }}', n.Test).steps
    assert isinstance(step, kind)
    return step


def _condition(text: str) -> n.Expression:
    return _item(f"const X = {text}", n.Const).value


def _shape(expression: n.Expression) -> str:
    """The expression with all parentheses."""
    match expression:
        case n.Binary():
            return f"({_shape(expression.left)} {expression.operator} {_shape(expression.right)})"
        case n.Unary():
            return f"{expression.operator}{_shape(expression.operand)}"
        case n.Integer():
            return f"{expression.value}{expression.unit or ''}"
        case n.Path():
            return expression.text
        case n.FunctionCall():
            return f"{expression.function.text}({', '.join(map(_shape, expression.arguments))})"
        case n.SizeOf():
            return f"sizeof({expression.type.text})"
        case n.Ratio():
            return str(expression.value)


# ---------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("a || b && c", "(a || (b && c))"),
        ("a && b || c", "((a && b) || c)"),
        ("a & 1 == 0", "((a & 1) == 0)"),
        ("a | b ^ c & d", "(a | (b ^ (c & d)))"),
        ("a + b << 2", "((a + b) << 2)"),
        ("a >> 1 < b", "((a >> 1) < b)"),
        ("1 + 2 * 3 - 4", "((1 + (2 * 3)) - 4)"),
        ("a - b - c", "((a - b) - c)"),
        ("a % 4 / 2", "((a % 4) / 2)"),
        ("-a * b", "(-a * b)"),
        ("!held(p) && !(a == b)", "(!held(p) && !(a == b))"),
        ("~a & b", "(~a & b)"),
        ("- - 1", "--1"),
        ("p.next.prev != q", "(p.next.prev != q)"),
        ("writable(p, n + 1)", "writable(p, (n + 1))"),
        ("sizeof(struct sk_buff) + sizeof(u32)", "(sizeof(struct sk_buff) + sizeof(u32))"),
        ("64 KiB - 1", "(64KiB - 1)"),
        ("0xfF_00", "65280"),
        ("1_000", "1000"),
        ("a*b", "(a * b)"),
        ("f()", "f()"),
    ],
)
def test_precedence(text: str, shape: str) -> None:
    assert _shape(_condition(text)) == shape


@pytest.mark.parametrize(
    ("text", "scaled"),
    [
        ("5 B", 5),
        ("64 KiB", 65536),
        ("2MiB", 2 << 20),
        ("1 GiB", 1 << 30),
        ("7 ns", 7),
        ("3 us", 3_000),
        ("4 ms", 4_000_000),
        ("60 s", 60_000_000_000),
        ("2 min", 120_000_000_000),
        ("18446744073709551615", (1 << 64) - 1),
    ],
)
def test_quantity(text: str, scaled: int) -> None:
    value = _condition(text)
    assert isinstance(value, n.Integer)
    assert value.scaled == scaled


def test_ratio_is_exact() -> None:
    value = _condition("0.99")
    assert isinstance(value, n.Ratio)
    assert value.value == Fraction(99, 100)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "word",
    ["write", "call", "entry", "size", "free", "to", "of", "in", "s", "B", "min", "kernel", "self", "test"],
)
def test_keywords_are_names_where_names_are_expected(word: str) -> None:
    rule = _rule(f"write struct {word} {{ {word}, x.{word} }}", n.WriteStruct)
    assert rule.type.name.text == word
    assert rule.fields is not None
    assert [field.text for field in rule.fields.fields] == [word, f"x.{word}"]
    gate = _rule(f"gate {word}({word}) {{ require {word}.x == 1 }}", n.Gate)
    assert gate.function.text == word
    assert gate.parameters.parameters[0].name.text == word


def test_quoted_symbol() -> None:
    assert _rule('gate "a.part.0"()', n.Gate).function.text == "a.part.0"


def test_span_covers_the_item_and_name_its_word() -> None:
    source = SourceFile("p.o2c", "use std.linux\n\n  const A = 1 // one\ncompartment c {\n heap tracked\n}\n")
    file = parse(source)
    assert [source.slice(item.span) for item in file.items] == [
        "use std.linux",
        "const A = 1",
        "compartment c {\n heap tracked\n}",
    ]
    compartment = file.items[2]
    assert isinstance(compartment, n.Compartment)
    assert source.slice(compartment.name.span) == "c"
    assert source.slice(file.comments[0].span) == "// one"


def test_every_span_is_inside_its_parent() -> None:
    file = _file(
        "compartment c { in functions { f_* } { write struct s { a } gate g(x) { require x[0] } } }".replace(
            "[0]", ""
        )
        + ' test "t" { given p: struct s owned { a = 1 } store f+4 to p.a + 1 size 8 expect deny }'
        + " extern fn m(a: struct s, n) writes a.b[n], a when n > 0"
    )
    for node in n.walk(file):
        for child in n.children(node):
            assert node.span.start <= child.span.start <= child.span.end <= node.span.end, (node, child)


# ---------------------------------------------------------------- items


def test_use() -> None:
    assert _item("use a.b.c", n.Use).module.text == "a.b.c"


def test_set_with_everything() -> None:
    value = _item('set x = { a, b_*, "c.0", std.y, }, std.linux.z, imports except { b_1 }, w', n.SetDef).value
    assert [type(element) for element in value.include] == [
        n.SymbolPattern,
        n.SymbolPattern,
        n.SymbolPattern,
        n.SetRef,
        n.SetRef,
        n.Imports,
    ]
    assert [getattr(element, "text", "") for element in value.include[:3]] == ["a", "b_*", "c.0"]
    assert [getattr(element, "is_glob", None) for element in value.include[:3]] == [False, True, False]
    assert len(value.exclude) == 2


def test_shared_types() -> None:
    assert [t.text for t in _item("shared struct net, union u", n.SharedTypes).types] == [
        "struct net",
        "union u",
    ]


def test_capability() -> None:
    caps = _item(
        "caps packet(s: struct sk_buff) { s whole  s.head[0 .. s.end]  s.sk as sock, s.x[4] }", n.CapsDef
    )
    assert caps.name.text == "packet"
    assert [type(item.place.extent) for item in caps.items] == [n.Whole, n.Range, type(None), n.Length]
    assert caps.items[2].capability is not None
    assert caps.items[2].capability.text == "sock"


def test_extern_function_with_several_names() -> None:
    function = _item('extern fn { a, "b_*", c_? }(l) writes l whole', n.ExternFunction)
    assert [name.text for name in function.names if isinstance(name, n.SymbolPattern)] == ["a", "b_*", "c_?"]


def test_extern_function_in_braces_is_the_same() -> None:
    bare = _item("extern fn f(p, n, ...) writes p[n] frees p as packet pure", n.ExternFunction)
    braced = _item("extern fn f(p, n, ...) { writes p[n] frees p as packet pure }", n.ExternFunction)
    assert n.without_spans(bare) == n.without_spans(braced)
    assert bare.parameters.variadic


def test_extern_without_clauses() -> None:
    assert _item("extern fn f()", n.ExternFunction).clauses == ()


def test_clauses_follow_without_marks() -> None:
    function = _item("extern fn memcpy(dst, src, n) writes dst[n] reads src[n]", n.ExternFunction)
    assert [type(clause) for clause in function.clauses] == [n.Writes, n.Reads]


def test_extern_entry() -> None:
    by_name = _item("extern entry timer(t: struct timer_list) lends t until return", n.ExternEntry)
    assert by_name.name is not None
    assert by_name.name.text == "timer"
    by_field = _item("extern entry struct net_protocol.handler(skb) gives skb as packet", n.ExternEntry)
    assert by_field.table is not None
    assert by_field.table.text == "struct net_protocol"
    assert by_field.field is not None
    assert by_field.field.text == "handler"


# ---------------------------------------------------------------- clauses


def test_places_with_and_without_commas() -> None:
    assert n.without_spans(_clause("writes p.next p.prev, q", n.Writes)) == n.without_spans(
        _clause("writes p.next, p.prev, q", n.Writes)
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("writes p[q] when q > 0", n.Writes),
        ("reads p", n.Reads),
        ("shares result", n.Shares),
        ("frees p", n.Frees),
        ("frees p as packet when q == 0", n.Frees),
        ("allocates result[q]", n.Allocates),
        ("gives result as packet until return", n.Gives),
        ("takes p as packet", n.Takes),
        ("lends p as packet until return when q != 0", n.Lends),
        ("transfer p as packet to kernel", n.Transfer),
        ("transfer p to self", n.Transfer),
        ("returns held p", n.Returns),
        ("returns owned", n.Returns),
        ("stores callback p.function as entry timer_callback", n.StoresCallback),
        ("calls callback q", n.CallsCallback),
        ("pure", n.Pure),
        ("require q <= 64 KiB && held(p)", n.Require),
        ("on violation of gate, free kill", n.OnViolation),
        ("on violation deny", n.OnViolation),
        ("on deny return -14", n.OnDeny),
    ],
)
def test_clause(text: str, kind: type[n.Node]) -> None:
    _clause(text, kind)


def test_transfer_parts() -> None:
    clause = _clause("transfer p.skb as packet to kernel", n.Transfer)
    assert (clause.place.path.text, clause.to) == ("p.skb", n.Party.KERNEL)
    assert clause.capability is not None
    assert clause.capability.text == "packet"


# ---------------------------------------------------------------- rules


def test_code_rules() -> None:
    assert [m.text for m in _rule('code modules "a", "b"', n.CodeModules).modules] == ["a", "b"]
    assert _rule("code functions { ip6_* } except { ip6_x } of vmlinux", n.CodeFunctions).modules is None
    of_module = _rule('code functions { f } of modules "m"', n.CodeFunctions)
    assert of_module.modules is not None
    assert of_module.modules[0].text == "m"


def test_write_rules() -> None:
    assert _rule("write struct T", n.WriteStruct).fields is None
    fields = _rule("write struct T { whole, ops, a.b.*, } except { a.b.c }", n.WriteStruct).fields
    assert fields is not None
    assert fields.whole
    assert [f.text for f in fields.fields] == ["ops", "a.b.*"]
    assert [f.text for f in fields.excluded] == ["a.b.c"]
    behind = _rule("write behind struct sk_buff { head[0 .. end], dev, data[len] }", n.WriteBehind)
    assert [type(r.extent) for r in behind.ranges] == [n.Range, type(None), n.Length]
    pernet = _rule("write pernet id as struct sctp_net { a }", n.WritePernet)
    assert pernet.type is not None
    assert pernet.fields is not None
    symbols = _rule("write symbols { a, init_net.sctp.* } except { init_net.sctp.x }", n.WriteSymbols)
    assert [s.text for s in symbols.symbols] == ["a", "init_net.sctp.*"]


def test_indirect_call_targets() -> None:
    rule = _rule(
        'icall self, { f }, ops struct T of modules "a", "b", ops struct U, std.x except { g }',
        n.IndirectCall,
    )
    assert [type(t) for t in rule.targets] == [
        n.SelfTarget,
        n.SymbolPattern,
        n.OpsTarget,
        n.OpsTarget,
        n.SetRef,
    ]
    ops = rule.targets[2]
    assert isinstance(ops, n.OpsTarget)
    assert [m.text for m in ops.modules] == ["a", "b"]
    assert len(rule.excluded) == 1


def test_scoped_rules() -> None:
    rule = _rule(
        "in functions { a_* } except { a_b } { write struct x  call { c }  on violation kill }", n.InFunctions
    )
    assert [type(r) for r in rule.rules] == [n.WriteStruct, n.Call, n.OnViolation]
    assert len(rule.functions.exclude) == 1


def test_entries_of_tables() -> None:
    rule = _rule("entries of struct proto_ops { release, bind }, struct net_protocol", n.Entries)
    assert rule.tables[0].fields is not None
    assert rule.tables[1].fields is None


def test_audition_transition_and_modes() -> None:
    audition = _rule(
        'audition "t.json" at access, free { require confidence >= 0.99 accept payload "kmalloc-512", "x" }',
        n.Audition,
    )
    assert audition.moments == (n.Moment.ACCESS, n.Moment.FREE)
    assert [type(i) for i in audition.items] == [n.Require, n.AcceptPayload]
    transition = _rule("transition { until quiescent for 5 s, at most 60 s }", n.Transition)
    assert [type(i) for i in transition.items] == [n.UntilQuiescent, n.AtMost]
    assert _rule("on missed kill", n.OnMissed).action is n.Action.KILL
    assert _rule("probes strict", n.Probes).mode is n.ProbeMode.STRICT
    on = _rule("on violation of write, call report", n.OnViolation)
    assert on.kinds == (n.ViolationKind.WRITE, n.ViolationKind.CALL)


# ---------------------------------------------------------------- tests


def test_test_steps() -> None:
    store = _step("store f+0x1c to s.cb + 8 size 8", n.StoreStep)
    assert (store.site.function.text, store.site.offset) == ("f", 0x1C)
    assert _step("store f to p", n.StoreStep).site.offset is None
    given = _step("given s: struct sk_buff held as packet { head = b, a.b = 4 }", n.GivenObject)
    assert (given.state, len(given.fields)) == (n.ObjectState.HELD, 2)
    assert isinstance(_step("given b: buffer 64 B foreign", n.GivenObject).type, n.BufferType)
    assert _step("given n = 5", n.GivenValue).name.text == "n"
    call = _step("call alloc_skb(9, 0) as s", n.CallStep)
    assert call.result is not None
    assert len(call.arguments) == 2
    assert _step("gate g(s)", n.GateStep).result is None
    assert _step("icall f+3 to commit_creds", n.IndirectCallStep).site.offset == 3
    assert _step("enter e()", n.EnterStep).arguments == ()
    assert _step("phase final", n.PhaseStep).phase is n.PhaseName.FINAL
    assert _step("expect audition", n.ExpectStep).outcome is n.Outcome.AUDITION
    _step("leave", n.LeaveStep)


def test_test_names_its_compartment() -> None:
    test = _item('test "t" of c { leave }', n.Test)
    assert test.compartment is not None
    assert test.compartment.text == "c"


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("text", ["", "\n\n", "// only a comment", "/* a */ /* b */\n", "\r\n"])
def test_files_without_items(text: str) -> None:
    assert _file(text).items == ()


def test_comments_are_kept_in_order() -> None:
    file = _file('// a\nuse std.x // b\n/* c\n */ compartment z { /* d */ code modules "/* no */ // no" }\n')
    assert [c.text for c in file.comments] == ["// a", "// b", "/* c\n */", "/* d */"]
    assert [c.own_line for c in file.comments] == [True, False, True, False]


def test_line_ends_mean_nothing() -> None:
    one_line = _file("use a.b compartment c { heap tracked stack private 1 KiB on violation deny }")
    many = _file(
        "use\na\n.\nb\ncompartment\r\nc\n{\nheap\ntracked\nstack\nprivate\n1\nKiB\non\nviolation\ndeny\n}"
    )
    assert n.without_spans(one_line).items == n.without_spans(many).items


def test_grammar_has_no_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    """lark settles a conflict silently, by shifting; one form would then shadow another."""
    import logging

    from lark import Lark
    from lark import logger as lark_logger

    from o2cc.resources import resource_directory

    text = (resource_directory("grammar") / "o2c.lark").read_text(encoding="utf-8")
    level = lark_logger.level
    lark_logger.setLevel(logging.DEBUG)
    lark_logger.addHandler(caplog.handler)
    try:
        Lark(
            'start: "a" | start start', parser="lalr", debug=True
        )  # has one, so that silence means something
        assert "conflict" in caplog.text.lower()
        caplog.clear()
        Lark(text, parser="lalr", debug=True, maybe_placeholders=False)
    finally:
        lark_logger.removeHandler(caplog.handler)
        lark_logger.setLevel(level)
    assert "conflict" not in caplog.text.lower()
