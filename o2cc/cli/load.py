# SPDX-License-Identifier: Apache-2.0
"""`o2c load`: a policy, or a compiled object, into the running kernel."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable
from dataclasses import asdict

import click

from o2cc.bpf.info import SiteInfo
from o2cc.bpf.info import read as read_info
from o2cc.bpf.layout import Layout
from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.completion import FILE, complete_kernel
from o2cc.cli.progress import ProgressBar
from o2cc.diagnostics import Diagnostic, DiagnosticError, error, warning
from o2cc.files import read_bytes
from o2cc.options import CompileOptions, Degrade
from o2cc.runtime import loader, state
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.plan import listed, tracking_sites
from o2cc.runtime.progress import Progress

_ELF = b"\x7fELF"


@click.command()
@diagnostic_command
@click.argument("policy", metavar="POLICY.o2c|OBJECT.bpf.o", type=FILE)
@click.option(
    "-k",
    "--kernel",
    metavar="RELEASE|FILE",
    shell_complete=complete_kernel,
    help="Description of this kernel, as for `o2cc`.",
)
@click.option(
    "--layout",
    type=click.Choice([str(value) for value in Layout]),
    default=str(Layout.SHAPE),
    show_default=True,
    help="One program a shape of check, or one a site.",
)
@click.option(
    "--only",
    metavar="GLOB,...",
    multiple=True,
    help="Check only functions of these names; what keeps track of memory is attached everywhere. Can be repeated.",
)
@click.option(
    "--degrade",
    type=click.Choice([str(value) for value in Degrade]),
    help="Accept that violations are not prevented, only reported, or the task killed afterwards.",
)
@click.option(
    "--accept-gaps", is_flag=True, help="Load although a violation cannot be denied at some of the places."
)
@click.option(
    "--perf",
    is_flag=True,
    help="Attach what only reports through perf, although o2c.ko is loaded, which does it faster.",
)
@click.option("--json", "json_form", is_flag=True, help="Print the result as JSON.")
def load(
    reporter: Reporter,
    policy: str,
    kernel: str | None,
    layout: str,
    only: tuple[str, ...],
    degrade: str | None,
    accept_gaps: bool,
    perf: bool,
    json_form: bool,
) -> None:
    """Load a policy, or an object that `o2cc` made, and attach its checks.

    What says `deny` is carried out by the kernel module o2c.ko; without it, such a policy is refused unless
    --degrade is given. A policy that only reports is attached by o2c.ko where that is loaded, else by perf. The policy stays in force when this command ends, until `o2c unload` or a reboot. Needs root.

    \b
    Examples:
      o2c load sctp.o2c
      o2c load sctp.o2c --degrade report --only 'sctp_*'
      o2c load sctp.bpf.o --json
    """
    with ProgressBar(enabled=not json_form) as progress:
        data = _object(reporter, policy, kernel, Layout(layout), degrade, progress)
        if reporter.has_errors:
            return
        globs = ",".join(only)
        options = LoadOptions(
            wanted=matcher(globs, tracking_sites(read_info(data, policy))) if only else matcher(None),
            only=globs if only else None,
            degrade=degrade,
            accept_gaps=accept_gaps,
            perf=perf,
            warn=lambda diagnostic: reporter.extend((diagnostic,)),
        )
        loaded = loader.load(data, path=policy, options=options, progress=progress)
    if json_form:
        click.echo(json.dumps(asdict(loaded), indent=1))
    else:
        click.echo(summary(loaded))
    reporter.extend(notes_of(loaded))


def matcher(globs: str | None, tracking: frozenset[int] = frozenset()) -> Callable[[SiteInfo], bool]:
    """Which sites `--only` asks for; compiler suffixes (`.isra.0`, `.cold`) belong to their function.

    ``tracking``: numbers of sites that are wanted in any case.  Without those that keep track of memory, what other
    functions allocate would be denied to the chosen ones.
    """
    if globs is None:
        return lambda site: True
    patterns = [pattern.strip() for pattern in globs.split(",") if pattern.strip()]

    def wanted(site: SiteInfo) -> bool:
        if site.number in tracking:
            return True
        names = {site.function, site.function.partition(".")[0]}
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return wanted


def summary(loaded: state.State) -> str:
    """One line for a person."""
    how = "violations are prevented" if loaded.enforced else "violations are reported"
    if loaded.by_module and not loaded.enforced:
        how += " through o2c.ko"
    if loaded.degraded:
        how += f", weaker than the policy by --degrade {loaded.degraded}"
    part = "".join(f"; {problem}" for problem in loaded.problems)
    return f"{loaded.name}: {loaded.attached} sites attached, {how}{part}"


def notes_of(loaded: state.State) -> list[Diagnostic]:
    """What is weaker than the policy's reader would think."""
    found = []
    if loaded.failures:
        found.append(
            warning(
                "O2C0840",
                f"{_count(len(loaded.failures), 'check is', 'checks are')} not there",
                notes=listed(loaded.failures),
                help=f"`o2c status {loaded.name}` goes on showing them",
            )
        )
    if loaded.observed:
        found.append(
            warning(
                "O2C0841",
                f"{_count(len(loaded.observed), 'place only reports', 'places only report')} "
                f"though the policy says more",
                notes=listed(loaded.observed),
                help=f"`o2c status {loaded.name}` goes on showing them",
            )
        )
    return found


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _object(
    reporter: Reporter,
    policy: str,
    kernel: str | None,
    layout: Layout,
    degrade: str | None,
    progress: Progress,
) -> bytes:
    """The object's bytes: the file's own, or compiled now.  Raises DiagnosticError."""
    if policy.endswith(".o") or (policy != "-" and read_bytes(policy)[:4] == _ELF):
        if degrade == Degrade.KILL:
            raise DiagnosticError(
                error(
                    "O2C0836",
                    "what an object does about a violation is fixed when it is compiled",
                    help=f"compile the policy with `o2cc --degrade {degrade}`, or give `o2c load` the policy",
                )
            )
        return read_bytes(policy)
    from o2cc.compiler import Options, Stopwatch, emit  # late: an object needs no compiler
    from o2cc.driver import compile_source
    from o2cc.policy.model import Action

    source = reporter.read_source(policy)
    # Another kernel's description, which commands without root fall back on, would only be refused later.
    kernel = kernel or os.uname().release
    options = CompileOptions(kernel=kernel, layout=layout, degrade=Degrade(degrade) if degrade else None)
    inner = Options(layout=layout, degrade=Action(degrade) if degrade else None, ahead=True)
    watch = Stopwatch()
    progress("compile", 0, 2)
    compiled, warnings = compile_source(source, options, inner, watch)
    reporter.extend(warnings)
    progress("compile", 1, 2)
    emitted = emit(compiled, inner, watch)
    progress("compile", 2, 2)
    return emitted.data
