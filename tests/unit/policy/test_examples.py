# SPDX-License-Identifier: Apache-2.0
"""The example policies, against the descriptions that travel with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.kernel import store
from o2cc.kernel.description import Description
from o2cc.policy import model
from o2cc.policy.checker import check
from o2cc.policy.model import CheckedPolicy
from o2cc.policy.names import ParsedModule
from o2cc.report.render import ErrorFormat, render
from o2cc.resources import resource_directory
from o2cc.syntax.formatter import format_source
from o2cc.syntax.parser import parse
from tests.unit.standard_library import standard_library

EXAMPLES = sorted(resource_directory("examples").glob("*.o2c"))
PAIRS = [
    (example, description)
    for example in EXAMPLES
    for description in sorted(resource_directory("descriptions").rglob(f"{example.stem}.o2k"))
]


@cache
def described(path: Path) -> Description:
    return store.load(path)


@cache
def checked(example: Path, description: Path) -> CheckedPolicy:
    source = SourceFile(f"examples/{example.name}", example.read_text(encoding="utf-8"))
    resolve = standard_library()
    try:
        policy, _ = check(ParsedModule("", source, parse(source)), described(description), resolve)
    except DiagnosticError as failure:
        sources = {item.name: item for item in (source, *resolve.sources)}
        pytest.fail(render(failure.diagnostics, sources, ErrorFormat.TEXT))
    return policy


def identifier(path: Path) -> str:
    return path.stem if path.suffix == ".o2c" else path.parent.name


def test_there_are_examples_for_two_kernels() -> None:
    assert {example.stem for example, _ in PAIRS} >= {"sctp", "nf_tables", "cls_route", "ip6_output"}
    assert len({description.parent for _, description in PAIRS}) >= 2


@pytest.mark.parametrize(("example", "description"), PAIRS, ids=identifier)
def test_an_example_has_no_errors(example: Path, description: Path) -> None:
    policy = checked(example, description)
    assert policy.name == example.stem
    assert policy.entries
    assert policy.gates


@pytest.mark.parametrize(("example", "description"), PAIRS, ids=identifier)
def test_every_grant_of_an_example_says_why(example: Path, description: Path) -> None:
    for grant in checked(example, description).grants:
        assert grant.reason, grant


@pytest.mark.parametrize(("example", "description"), PAIRS, ids=identifier)
def test_no_example_allows_what_is_dangerous_everywhere(example: Path, description: Path) -> None:
    policy = checked(example, description)
    dangerous = {
        gate.function
        for gate in policy.gates
        if any(isinstance(effect, model.Dangerous) for effect in gate.effects)
    }
    for rule in policy.allowed_calls:
        assert rule.function not in dangerous or rule.scope is not None, rule.function


@pytest.mark.parametrize("example", EXAMPLES, ids=identifier)
def test_an_example_is_formatted(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert format_source(SourceFile(example.name, text)) == text
