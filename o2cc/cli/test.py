# SPDX-License-Identifier: Apache-2.0
"""`o2c test`: the tests of a policy."""

from __future__ import annotations

import json

import click

from o2cc.cli.common import EXIT_CLEAN, Reporter, diagnostic_command
from o2cc.cli.completion import FILE, complete_kernel
from o2cc.cli.start import quiet_interrupt


@click.command("test")
@diagnostic_command
@click.argument("policy", type=FILE)
@click.option(
    "-k",
    "--kernel",
    metavar="RELEASE|FILE",
    shell_complete=complete_kernel,
    help="The kernel or description that the policy is tested for.",
)
@click.option("--only", metavar="TEXT", help="Run only tests whose name contains this.")
@click.option("--json", "json_form", is_flag=True, help="Print the results as JSON.")
def test(reporter: Reporter, policy: str, kernel: str | None, only: str | None, json_form: bool) -> int:
    """Run the `test` blocks of POLICY on the reference interpreter: no kernel, no root.

    The checks that run are those that are compiled for the kernel. The exit status is 1 when an expectation is not
    met, or when there is no test to run.

    \b
    Examples:
      o2c test sctp.o2c -k 6.1.0-57-amd64
      o2c test sctp.o2c --only 'memory of others' --json
    """
    with quiet_interrupt():
        from o2cc.compiler import Options, Stopwatch  # late, for a fast `--help`
        from o2cc.diagnostics import DiagnosticError, error
        from o2cc.driver import compile_source, fallback_note
        from o2cc.options import CompileOptions
        from o2cc.simulation.policy_tests import run_tests

    source = reporter.read_source(policy)
    compiled, _ = compile_source(source, CompileOptions(kernel=kernel), Options(passes=()), Stopwatch())
    reporter.extend(fallback_note(compiled.description, kernel, source))
    every = tuple(run_tests(compiled.policy, compiled.description, compiled.module))
    results = [result for result in every if only is None or only in result.name]
    if every and not results:
        names = tuple(f"there is: {result.name}" for result in every)
        raise DiagnosticError(error("O2C0272", f"no test's name contains `{only}`", path=policy, notes=names))
    if not results:
        raise DiagnosticError(
            error(
                "O2C0272", "there is no test to run", path=policy, help='write `test "what it shows" { ... }`'
            )
        )
    for result in results:
        reporter.extend(result.problems)
        if not json_form:
            click.echo(f"{'ok    ' if result.passed else 'FAILED'}  {result.name}")
    failed = sum(not result.passed for result in results)
    if json_form:
        click.echo(
            json.dumps(
                [
                    {"name": r.name, "passed": r.passed, "problems": [p.message for p in r.problems]}
                    for r in results
                ],
                indent=1,
            )
        )
    else:
        click.echo(f"{len(results) - failed} passed, {failed} failed")
    return EXIT_CLEAN
