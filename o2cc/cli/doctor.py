# SPDX-License-Identifier: Apache-2.0
"""`o2c doctor`: what this machine can load and enforce, and how to get there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import click

from o2cc.cli.common import EXIT_CLEAN, EXIT_ERRORS, Reporter, diagnostic_command
from o2cc.cli.completion import FILE, complete_kernel
from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import running_kernel
from o2cc.runtime.doctor import Facts, Grade, examine, judge

_MARKS = {Grade.GOOD: ("ok  ", "green"), Grade.NOTE: ("note", "yellow"), Grade.BAD: ("bad ", "red")}


@click.command()
@diagnostic_command
@click.argument("policy", required=False, metavar="[POLICY.o2c]", type=FILE)
@click.option(
    "-k",
    "--kernel",
    metavar="RELEASE|FILE",
    shell_complete=complete_kernel,
    help="Description to look at, as for `o2cc`.",
)
@click.option("--json", "json_form", is_flag=True, help="Print as JSON.")
def doctor(reporter: Reporter, policy: str | None, kernel: str | None, json_form: bool) -> int:
    """Say what this machine can load and enforce, and how to get there.

    With a policy, also whether its target is there and described, and which of its functions share their name.
    Changes nothing. The exit status is 0 when policies can be loaded for reporting, else 1.
    """
    facts = examine()
    if policy is not None:
        facts = _about(reporter, policy, kernel, facts)
    verdict = judge(facts)
    if json_form:
        click.echo(json.dumps({"facts": asdict(facts), **asdict(verdict)}, indent=1))
    else:
        for finding in verdict.findings:
            mark, colour = _MARKS[finding.grade]
            click.echo(f"{click.style(mark, fg=colour)}  {finding.subject}: {finding.text}")
            if finding.remedy:
                click.echo(f"      {finding.remedy}")
        can = "yes" if verdict.can_report else "no"
        click.echo(f"policies that report: {can}")
        click.echo(f"policies that deny:   {'yes' if verdict.can_prevent else 'no'}")
    return EXIT_CLEAN if verdict.can_report else EXIT_ERRORS


def _about(reporter: Reporter, policy: str, kernel: str | None, facts: Facts) -> Facts:
    from o2cc.compiler import modules_of, parse_policy  # late: the rest needs no compiler
    from o2cc.driver import find_description, target_of

    source = reporter.read_source(policy)
    parsed = parse_policy(source)
    target = target_of(parsed)
    is_module = bool(modules_of(parsed))
    facts = replace(
        facts, target=target, target_loaded=running_kernel.module_loaded(target) if is_module else None
    )
    try:
        description = find_description(target, kernel or facts.release, source)
    except DiagnosticError:
        return facts
    symbols = running_kernel.read_symbols(target if is_module else None)
    ambiguous = tuple(
        sorted(f.name for f in description.functions if f.ambiguous or f.name in symbols.ambiguous)
    )
    return replace(facts, description=description.kernel.build_id, ambiguous=tuple(dict.fromkeys(ambiguous)))
