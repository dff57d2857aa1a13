# SPDX-License-Identifier: Apache-2.0
"""Each rule of the verifier, shown by the smallest text that breaks it and by one that keeps it."""

import pytest

from o2cc.diagnostics import SourceFile
from o2cc.ir.parser import parse_module
from o2cc.ir.verifier import verify

PRELUDE = """module m { }
map objects hash (base) -> (size, type) capacity 16
map other hash (base, kind) -> (size) capacity 16
map events ring_buffer () -> (time, cpu) capacity 4096
table grants (type 2, start 4) length 2 { }
table globals (hits 8, small 2) length 1 writable { }
function twice(a) {
  %r = add %a, %a
  return %r
}
"""


def codes(text: str) -> list[str]:
    return [d.code for d in verify(parse_module(SourceFile("t.ir", PRELUDE + text), own_spans=True))]


def check(body: str) -> str:
    return f"check c {{\n{body}\n}}\n"


GOOD = {
    "dominating definition": check("%a = reg rbx\n br %a, x, y\nx:\n jump y\ny:\n return 0\n"),
    "value from before a diamond": check(
        "%a = reg rbx\n br %a, x, y\nx:\n jump z\ny:\n jump z\nz:\n %b = add %a, 1\n verdict deny"
    ),
    "entry after branch": check(
        "%e = lookup objects, 1\n br %e, f, g\nf:\n %s = entry %e objects.size\n verdict allow\ng:\n verdict deny"
    ),
    "entry after comparison with 0": check(
        "%e = lookup objects, 1\n %z = eq %e, 0\n br %z, g, f\nf:\n entry %e objects.size = 1\n verdict allow\ng:\n verdict deny"
    ),
    "unused unreachable block": check("verdict allow\nx:\n verdict deny"),
    "counting up": check(
        "$i = 0\n jump h\nh:\n %c = ult $i, 10\n br %c, b, d\nb:\n %n = add $i, 1\n $i = %n\n jump h\nd:\n verdict allow"
    ),
    "do while": check(
        "jump h\nh:\n %n = add $i, 1\n $i = %n\n %c = uge %n, 10\n br %c, d, h\nd:\n verdict allow"
    ),
    "nested loops": check(
        "jump h\nh:\n %c = ult $i, 10\n br %c, b, d\nb:\n $j = 0\n jump k\n"
        "k:\n %e = ult $j, 4\n br %e, l, m\nl:\n %o = add $j, 2\n $j = %o\n jump k\n"
        "m:\n %n = add $i, 1\n $i = %n\n jump h\nd:\n verdict allow"
    ),
    "counting up on each of two ways round": check(
        "%a = reg rbx\n jump h\nh:\n %c = ult $i, 10\n br %c, b, d\nb:\n br %a, s, t\n"
        "s:\n %n = add $i, 1\n $i = %n\n jump h\nt:\n %m = add $i, 2\n $i = %m\n jump h\nd:\n verdict allow"
    ),
    "site with all parameters": check("%a = param size\n verdict allow") + "site 1 f+0x1 store c(size = 8)\n",
    "tracepoint": "hook h raw_tracepoint kfree {\n %a = arg 1\n return %a\n}\n",
    "function hook": "hook h kprobe kfree {\n %a = reg rdi\n return 0\n}\n",
}

BAD = {
    "two maps of one name": ("map objects hash (a) -> (b) capacity 1\n", ["O2C0502"]),
    "a function named like a map": ("function objects() {\n return 0\n}\n", ["O2C0502"]),
    "a value twice": (check("%a = reg rbx\n %a = reg rbx\n verdict allow"), ["O2C0502"]),
    "a parameter assigned": ("function f(a) {\n %a = add %a, 1\n return %a\n}\n", ["O2C0502"]),
    "two blocks of one name": (check("jump x\nx:\n verdict allow\nx:\n verdict deny"), ["O2C0502"]),
    "no such block": (check("jump nowhere"), ["O2C0503"]),
    "no such value": (check("return %a"), ["O2C0503"]),
    "used before assigned": (check("%b = add %a, 1\n %a = reg rbx\n verdict allow"), ["O2C0504"]),
    "assigned on one path only": (
        check("%a = reg rbx\n br %a, x, y\nx:\n %b = add %a, 1\n jump y\ny:\n return %b"),
        ["O2C0504"],
    ),
    "assigned in the loop body only": (
        check(
            "jump h\nh:\n %c = ult $i, 10\n br %c, b, d\nb:\n %n = add $i, 1\n $i = %n\n jump h\nd:\n return %n"
        ),
        ["O2C0504"],
    ),
    "register in a function": ("function f() {\n %a = reg rbx\n return 0\n}\n", ["O2C0505"]),
    "register in a tracepoint": ("hook h raw_tracepoint k {\n %a = reg rbx\n return 0\n}\n", ["O2C0505"]),
    "unknown register": (check("%a = reg ebx\n verdict allow"), ["O2C0503"]),
    "parameter in a function": ("function f() {\n %a = param size\n return 0\n}\n", ["O2C0505"]),
    "argument in a check": (check("%a = arg 0\n verdict allow"), ["O2C0505"]),
    "verdict in a hook": ("hook h kprobe k {\n verdict allow\n}\n", ["O2C0505"]),
    "store to a constant table": (check("store grants[0].start = 1\n verdict allow"), ["O2C0505"]),
    "emit to a hash": (check("%a = emit objects, [1, 2]\n verdict allow"), ["O2C0505"]),
    "lookup in a ring buffer": (check("%a = lookup events, 1\n verdict allow"), ["O2C0505"]),
    "entry without branch": (
        check("%e = lookup objects, 1\n %s = entry %e objects.size\n verdict allow"),
        ["O2C0506"],
    ),
    "entry on the wrong side": (
        check(
            "%e = lookup objects, 1\n br %e, g, f\nf:\n %s = entry %e objects.size\n verdict allow\ng:\n verdict deny"
        ),
        ["O2C0506"],
    ),
    "entry after paths join again": (
        check(
            "%e = lookup objects, 1\n br %e, f, g\nf:\n jump g\ng:\n %s = entry %e objects.size\n verdict allow"
        ),
        ["O2C0506"],
    ),
    "entry of another map": (
        check(
            "%e = lookup objects, 1\n br %e, f, g\nf:\n %s = entry %e other.size\n verdict allow\ng:\n verdict deny"
        ),
        ["O2C0506"],
    ),
    "entry that is no handle": (
        check("%a = reg rbx\n entry %a objects.size = 1\n verdict allow"),
        ["O2C0506"],
    ),
    "arithmetic on a handle": (
        check("%e = lookup objects, 1\n %a = add %e, 8\n verdict allow"),
        ["O2C0506"],
    ),
    "handle stored": (check("%e = lookup objects, 1\n $x = %e\n verdict allow"), ["O2C0506"]),
    "handle as key": (check("%e = lookup objects, 1\n %f = lookup objects, %e\n verdict allow"), ["O2C0506"]),
    "handle returned": ("function f() {\n %e = lookup objects, 1\n return %e\n}\n", ["O2C0506"]),
    "missing word of key": (check("%e = lookup other, 1\n verdict allow"), ["O2C0507"]),
    "missing field": (check("%e = update objects, [1], [2]\n verdict allow"), ["O2C0507"]),
    "unknown field": (
        check(
            "%e = lookup objects, 1\n br %e, f, g\nf:\n %s = entry %e objects.siz\n verdict allow\ng:\n verdict deny"
        ),
        ["O2C0503"],
    ),
    "unknown column": (check("%a = load grants[0].end\n verdict allow"), ["O2C0503"]),
    "unknown function": (check("%a = call thrice(1)\n verdict allow"), ["O2C0503"]),
    "wrong number of arguments": (check("%a = call twice(1, 2)\n verdict allow"), ["O2C0507"]),
    "six parameters": ("function f(a, b, c, d, e, f) {\n return 0\n}\n", ["O2C0507"]),
    "odd read": (check("%a = read 3 0\n verdict allow"), ["O2C0507"]),
    "verdict out of range": (check("return 3"), ["O2C0507"]),
    "atomic on two bytes": (check("%a = fetch_add globals[0].small, 1\n verdict allow"), ["O2C0507"]),
    "exchange of four bytes": (check("%a = cmpxchg globals[0].small, 1, 2\n verdict allow"), ["O2C0507"]),
    "rows beyond the length": ("table t (a 8) length 1 {\n 1\n 2\n}\n", ["O2C0507"]),
    "number beyond its column": ("table t (a 1) length 1 {\n 256\n}\n", ["O2C0507"]),
    "ring buffer of odd size": ("map r ring_buffer () -> (a) capacity 5000\n", ["O2C0507"]),
    "hash without key": ("map r hash () -> (a) capacity 5000\n", ["O2C0507"]),
    "endless loop": (check("jump h\nh:\n jump h"), ["O2C0508"]),
    "loop without step": (
        check("jump h\nh:\n %c = ult $i, 10\n br %c, h, d\nd:\n verdict allow"),
        ["O2C0508"],
    ),
    "loop that can miss its step": (
        check(
            "%a = reg rbx\n jump h\nh:\n %c = ult $i, 10\n br %c, b, d\nb:\n br %a, s, h\n"
            "s:\n %n = add $i, 1\n $i = %n\n jump h\nd:\n verdict allow"
        ),
        ["O2C0508"],
    ),
    "loop that resets its counter": (
        check(
            "jump h\nh:\n %c = ult $i, 10\n br %c, b, d\nb:\n %n = add $i, 1\n $i = %n\n $i = 0\n jump h\n"
            "d:\n verdict allow"
        ),
        ["O2C0508"],
    ),
    "loop to a bound that is no constant": (
        check(
            "%a = reg rbx\n jump h\nh:\n %c = ult $i, %a\n br %c, b, d\nb:\n %n = add $i, 1\n $i = %n\n jump h\n"
            "d:\n verdict allow"
        ),
        ["O2C0508"],
    ),
    "inner loop without bound": (
        check(
            "%a = reg rbx\n jump h\nh:\n %c = ult $i, 10\n br %c, b, d\nb:\n br %a, b, m\n"
            "m:\n %n = add $i, 1\n $i = %n\n jump h\nd:\n verdict allow"
        ),
        ["O2C0508"],
    ),
    "recursion": (
        "function f() {\n %a = call g()\n return 0\n}\nfunction g() {\n %a = call f()\n return 0\n}\n",
        ["O2C0509"],
    ),
    "site of an unknown check": ("site 1 f+0x1 store c()\n", ["O2C0503"]),
    "site without a parameter": (
        check("%a = param size\n verdict allow") + "site 1 f+0x1 store c(siz = 8)\n",
        ["O2C0503"],
    ),
    "two sites of one number": (
        check("verdict allow") + "site 1 f+0x1 store c()\nsite 1 f+0x2 store c()\n",
        ["O2C0502"],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_accepts(name: str) -> None:
    assert codes(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_rejects(name: str) -> None:
    text, expected = BAD[name]
    assert codes(text) == expected


def test_call_depth_counts_frames_of_stub_and_check() -> None:
    chain = "".join(f"function f{n}() {{\n %a = call f{n + 1}()\n return 0\n}}\n" for n in range(1, 7))
    last = "function f7() {\n return 0\n}\n"
    assert codes(chain + last + check("%a = call f2()\n verdict allow")) == []
    assert codes(chain + last + check("%a = call f1()\n verdict allow")) == ["O2C0509"]
    inline = last.replace("()", "() inline")
    assert codes(chain + inline + check("%a = call f1()\n verdict allow")) == []


def test_messages_point_at_the_line() -> None:
    text = PRELUDE + check("%a = reg rbx\n %b = add %a, %q\n verdict allow")
    source = SourceFile("t.ir", text)
    (found,) = verify(parse_module(source, own_spans=True))
    assert found.primary is not None
    assert source.slice(found.primary.span) == "%b = add %a, %q"
    assert found.message == "nothing assigns `%q`"
    assert found.notes == ("in check `c`, block `entry`: `%b = add %a, %q`",)
