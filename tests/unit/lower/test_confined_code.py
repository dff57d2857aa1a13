# SPDX-License-Identifier: Apache-2.0
"""A policy for some functions of a description that holds more."""

from __future__ import annotations

from pathlib import Path

from o2cc.bpf.layout import Layout
from o2cc.compiler import Options, Stopwatch, compile_module, parse_policy
from o2cc.diagnostics import SourceFile
from o2cc.policy.library import FileResolver
from tests.unit.lower.confined import sctp

TEXT = """
use std.linux
use std.net

compartment part {
    code functions { sctp_rcv, sctp_v4_* } of modules "sctp"
    heap tracked
    entry sctp_rcv(skb) { gives skb as packet }
    icall self
    call imports
    on violation report
}
"""


def test_only_the_functions_that_the_policy_names_are_confined() -> None:
    """Catches checks in code that is not the compartment's, and calls of it that count as its own."""
    parsed = parse_policy(SourceFile("policy.o2c", TEXT))
    compiled = compile_module(parsed, sctp(), FileResolver(Path()), Options(layout=Layout.SHAPE), Stopwatch())
    functions = {site.function for site in compiled.module.sites}
    functions |= {proof.function for proof in compiled.module.discharged}
    assert functions
    assert all(name == "sctp_rcv" or name.startswith("sctp_v4_") for name in functions)
    calls = {site.note for site in compiled.module.sites if site.function == "sctp_rcv"}
    assert "call of sctp_inq_push" in calls
