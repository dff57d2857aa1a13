# SPDX-License-Identifier: Apache-2.0
"""Every message of the checker: a policy that causes it, and the message as a person sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import o2cc.policy
from o2cc.report.render import ErrorFormat, render

from .cases import CASES, EVERYTHING
from .run import compartment, run

CODE = re.compile(r'"(O2C0[23]\d\d)"')

# Needs a file that cannot be read; tested with the resolver.
ELSEWHERE = {"O2C0209"}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, snapshot: SnapshotAssertion) -> None:
    _, diagnostics, sources = run(CASES[name])
    shown = [item for item in diagnostics if item.code not in _noise(name)]
    assert shown, "this policy should have something wrong"
    assert f"{CASES[name]}\n{render(shown, sources, ErrorFormat.TEXT)}" == snapshot(name=name)


def _noise(name: str) -> set[str]:
    """Codes of what the made-up target always has, except in the cases that are about them."""
    about = {"gate_unknown": "O2C0300", "addresses_taken": "O2C0242", "no_reason": "O2C0236"}
    return {"O2C0300", "O2C0242", "O2C0236"} - {about.get(name, "")}


def test_every_code_has_a_case() -> None:
    used = {
        code
        for path in Path(o2cc.policy.__file__).parent.glob("*.py")
        for code in CODE.findall(path.read_text(encoding="utf-8"))
    }
    seen = {item.code for text in CASES.values() for item in run(text)[1]}
    assert used - seen - ELSEWHERE == set()


def test_a_policy_that_only_reports_may_cut_its_transition_off() -> None:
    _, diagnostics, _ = run(compartment("transition { at most 60 s }"))
    assert "O2C0252" not in {item.code for item in diagnostics}


def test_a_good_policy_has_nothing_wrong() -> None:
    policy, diagnostics, sources = run(compartment(*EVERYTHING))
    assert policy is not None
    assert not diagnostics, render(diagnostics, sources, ErrorFormat.TEXT)


def test_messages_follow_the_style() -> None:
    for name, text in CASES.items():
        for item in run(text)[1]:
            assert not item.message.endswith("."), name
            assert item.message[0] == "`" or not item.message[0].isupper(), name


@pytest.mark.parametrize("name", CASES)
def test_nothing_breaks_without_a_target(name: str) -> None:
    run(CASES[name], bare=True)
