# SPDX-License-Identifier: Apache-2.0
"""Whatever parses gets an answer: a checked policy or diagnostics, never another exception."""

from __future__ import annotations

import contextlib
import re
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.policy.checker import check
from o2cc.policy.names import ParsedModule
from o2cc.report.render import ErrorFormat, render
from o2cc.syntax import nodes
from o2cc.syntax.parser import parse
from tests.unit.syntax.derivations import policy_texts

from .cases import CASES
from .run import compartment, library, run
from .target import describe

WORD = re.compile(r"\b(skb|len|sk_buff|sctp_rcv|p|x9|size|head|free)\b")
NAMES = (
    "demo_open", "demo_rcv", "demo_object", "demo_ops", "sk_buff", "sock", "net", "timer_list", "kfree", "memcpy", "send",
    "mystery", "skb", "sk", "len", "head", "size", "inner", "list", "notify", "users", "value", "owner", "sk_err", "demo",
    "packet", "socket", "timer", "PAGE", "result", "held", "writable", "granted", "demo_table", "demo_net_id", "std",
    "dangerous", "object", "buffer", "n", "function", "open",
)  # fmt: skip
DESCRIPTION = describe()


@settings(max_examples=120, deadline=None)
@given(policy_texts(), st.integers(0, 2**32))
def test_what_parses_is_checked(text: str, seed: int) -> None:
    random = Random(seed)
    renamed = WORD.sub(lambda _: random.choice(NAMES), text)
    text = f'use std.demo\ncompartment main {{ code modules "demo" }}\n{renamed}'
    source = SourceFile("policy.o2c", text)
    try:
        parsed = parse(source)
    except DiagnosticError:
        return
    for name in {item.name.text for item in parsed.items if isinstance(item, nodes.Compartment)}:
        for target in (DESCRIPTION, None):
            resolve = library()
            try:
                _, diagnostics = check(ParsedModule("", source, parsed), target, resolve, compartment=name)
            except DiagnosticError as failure:
                diagnostics = failure.diagnostics
            render(diagnostics, {source.name: source, **resolve.sources}, ErrorFormat.TEXT)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.sampled_from(sorted(CASES)), st.integers(0, 10_000))
def test_rules_of_several_policies_together(first: str, second: str, cut: int) -> None:
    """Rules of one case put into another, cut anywhere."""
    one, other = CASES[first], CASES[second]
    position = cut % (len(one) + 1)
    with contextlib.suppress(DiagnosticError):  # of the parser
        run(one[:position] + other + one[position:])


def test_a_set_of_dangerous_functions_may_be_all_imports() -> None:
    """Catches a crash when a pointer leads to a function of such a set that is not called directly."""
    _, diagnostics, _ = run(compartment("icall { kernel_write }", before="set dangerous = imports\n"))
    told = [item.message.split("`")[1] for item in diagnostics if item.code == "O2C0306"]
    assert told[-1] == "kernel_write"  # of the callees all others
    assert {"kfree", "send", "mystery"} < set(told)
